"""Runs one schedule and says what came of it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from benchmarks.leaks_faults import Kind
from benchmarks.leaks_judge import Judge
from benchmarks.leaks_life import (
    BUCKET,
    LIVES,
    MACHINES,
    PREEMPTED,
    SETTINGS,
    LightWire,
    Wire,
    hold,
    live,
    reap,
    settle_neighbours,
    urgent,
)
from benchmarks.leaks_schedules import Schedule, Shape
from benchmarks.leaks_world import Process, World
from mlops_sdk.errors import MlopsError
from mlops_sdk.testing.http_cloud.ironic import Pace
from mlops_sdk.testing.http_cloud.ironic_wire import FakeNode
from mlops_sdk.testing.http_cloud.virtual_time import virtual_time

LONG_S: Final = 3000.0
_PACE: Final = Pace()
_CONTENDER_S: Final = 150.0
_COLLECT_EVERY: Final = 400
_MESSAGES_S: Final = 15.0
_STANDING: Final = {Kind.FROZEN, Kind.CLOCK_JUMP, Kind.OUTAGE, Kind.THROTTLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a schedule.

    Attributes:
        schedule: Which.
        calls: How many calls were sent.
        left: What was still there of the dead at the end.
        wrong: What was taken from somebody who may have it.
        took_s: How long it took from the death of the last process of the run until nothing was left; None where the
            reapers themselves failed, or the clock, so that no bound is promised.
        beyond: How often a request that was longer under way than cleaning takes met the next tenant.
        window: How often a lease was taken that was renewed between the look and the act.
        ended: Names of the library's errors that the runs ended with.
        errors: What ended a process other than an error of the library.
        trace: One line a call, if it was asked for.
        bound_s: How long it may take.
    """

    schedule: Schedule
    calls: int
    left: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    took_s: float | None = None
    beyond: int = 0
    window: int = 0
    ended: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()
    bound_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Nothing leaked, nobody was touched, and in time."""
        return not (self.left or self.wrong or self.errors or self.late)

    @property
    def late(self) -> bool:
        """Whether it took longer than promised."""
        return self.took_s is not None and self.took_s > self.bound_s


def bound_s(*, deploy_s: float, cleaning_s: float, messages_s: float = _MESSAGES_S) -> float:
    """Renewal + one period + cleaning, as promised; and what a deployment under way takes to come to its end."""
    lease = SETTINGS.lease
    return lease.renew_for_s + lease.clock_skew_s + 1 + lease.reaper_period_s + deploy_s + cleaning_s + messages_s


class Judging(Protocol):
    """Who says what came of a world. See `leaks_judge.Judge`."""

    wrong: list[str]
    beyond: list[str]
    window: int

    def left(self) -> list[str]:
        """What is still there of the dead."""
        ...

    def touched(self) -> list[str]:
        """What the neighbours have lost."""
        ...


class Scene(Protocol):
    """What a schedule is played in: machines of one provider, neighbours, and who judges."""

    @property
    def bound_s(self) -> float:
        """How long it may take until nothing is left."""
        ...

    @property
    def shape(self) -> Shape:
        """What is drawn for it."""
        ...

    def set(self, world: World, schedule: Schedule) -> Judging:
        """Put everything in its place."""
        ...


class Machines:
    """Machines of Ironic."""

    bound_s = bound_s(deploy_s=_PACE.deploy_s, cleaning_s=_PACE.tear_down_s + _PACE.clean_s + 2 * SETTINGS.lease.poll_s)
    shape = Shape()

    def set(self, world: World, schedule: Schedule) -> Judging:
        """See `Scene.set`."""
        judge = Judge(world, SETTINGS, settle_neighbours(world), BUCKET)
        _spoil(world, schedule.spoiled)
        if schedule.tenants:
            _let_tenants_in(world)
        return judge


class _Current:
    """The world whose time it is."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.count = 0

    def get(self) -> World:
        if self.world is None:
            raise RuntimeError("no schedule runs")
        return self.world


CURRENT: Final = _Current()


@contextmanager
def stage() -> Generator[None]:
    """Within it schedules can be run."""
    reaper = logging.getLogger("mlops.reaper")
    said, reaper.disabled = reaper.disabled, True  # it tells of every outage that we make
    gc.disable()  # a world ends as a whole: collected now and then by `run_schedule`
    try:
        with virtual_time(CURRENT.get):
            yield
    finally:
        gc.enable()
        reaper.disabled = said


def run_schedule(
    schedule: Schedule, *, wire: Wire | None = None, traced: bool = False, scene: Scene | None = None
) -> Result:
    """Run one. Equal schedules have equal results. `scene`: default machines of Ironic."""
    scene = scene or Machines()
    world = CURRENT.world = World(schedule.seed, schedule.plan, pace=_PACE, traced=traced)
    wire = wire or LightWire()
    judge = scene.set(world, schedule)
    processes: list[Process] = []
    runs = [live(world, wire, LIVES[schedule.life], schedule.nodes)]
    begins = world.random.random() * _CONTENDER_S
    if schedule.life == PREEMPTED:
        runs.append(live(world, wire, urgent, MACHINES, name="contender", after_s=begins))
    elif schedule.contender:
        runs.append(live(world, wire, LIVES["release"], 2, name="contender", after_s=begins))
    for number in range(schedule.reapers):
        first = world.random.random() * SETTINGS.lease.reaper_period_s
        reap(world, wire, processes, name=f"reaper-{number}", after_s=first)
    world.run(LONG_S, lambda: _over(world, runs) and not judge.left())
    processes.extend(runs)
    result = Result(
        schedule=schedule,
        calls=world.calls,
        left=tuple(judge.left()),
        wrong=(*judge.wrong, *judge.touched()),
        took_s=_took_s(schedule, world, runs),
        beyond=len(judge.beyond),
        window=judge.window,
        ended=tuple(type(error).__name__ for run in runs for error in run.errors),
        errors=tuple(_unexpected(processes)),
        trace=tuple(world.trace or ()),
        bound_s=scene.bound_s,
    )
    world.end(processes)
    CURRENT.count += 1
    if CURRENT.count % _COLLECT_EVERY == 0:
        gc.collect()
    return result


def _over(world: World, runs: Iterable[Process]) -> bool:
    """Whether nobody of the runs acts any more, also not late."""
    return all(run.dead for run in runs) and not world.late and not world.frozen


def _took_s(schedule: Schedule, world: World, runs: Iterable[Process]) -> float | None:
    kinds = {fault.kind for fault in schedule.plan.values()}
    if schedule.spoiled or world.reapers_failed or kinds & _STANDING:
        return None
    return world.now - max(world.last_late, *(run.ended_at for run in runs))


def _spoil(world: World, spoiled: str) -> None:
    what, _, times = spoiled.partition(":")
    if what:
        next(iter(world.cloud.ironic.nodes.values())).fails[what] = int(times)


def _let_tenants_in(world: World) -> None:
    """Whoever waits for a machine takes it the moment it is free, and works on it for ever."""

    def take(node: FakeNode) -> Callable[[], None]:
        def work() -> None:
            world.cloud.ironic.settle()
            if node.provision_state == "available" and not node.allocation and not node.maintenance:
                hold(world, node, f"tenant-{node.name}")

        return work

    world.cloud.ironic.on_free = lambda node: world.at(world.now + world.random.random(), take(node))


def _unexpected(processes: Iterable[Process]) -> Generator[str]:
    for process in processes:
        for error in process.errors:
            if not isinstance(error, MlopsError):
                yield f"{process.name} ended with {error!r}"
