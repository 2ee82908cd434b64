"""A world of processes that talk to one fake cloud: virtual time, one seed, and a failure at each call that is told to.

Each process runs the library's own code in a greenlet (one more for its heartbeat). Whenever it sends, or sleeps, the
others may act: who comes next follows from the seed. A process that crashes never sends anything again.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from greenlet import getcurrent, greenlet

from benchmarks.leaks_faults import Fault, Kind
from benchmarks.leaks_past import Past
from mlops_sdk.testing.faults import Crash
from mlops_sdk.testing.http_cloud.ironic import Pace
from mlops_sdk.testing.http_cloud.messages import Answer, Call, NoAnswer
from mlops_sdk.testing.http_cloud.site import HttpCloud

if TYPE_CHECKING:
    from mlops_sdk.cloud import Cloud
    from mlops_sdk.config import KeystoneSettings
    from mlops_sdk.keeper import Beat, Stop
    from mlops_sdk.services import Services
    from mlops_sdk.testing.http_cloud.messages import ServiceName

TIMEOUT_S: Final = 30.0
_QUICK_S: Final = 0.05
_SHORT_S: Final = 1.0
_SLOW_S: Final = 3.0
_SLOW_SHARE: Final = 0.03


Watch: TypeAlias = "Callable[[Process, Call, float, Callable[[], Answer]], Answer]"
"""Sees each call as it arrives: who sent it, what it is, how many seconds it was under way; carries it out."""

Equip: TypeAlias = "Callable[[Services, Callable[[KeystoneSettings], Cloud]], Services]"
"""What a process has besides Ironic: its services, and how it logs in."""


class ServiceClock(Protocol):
    """Of a service: how far it is from the world's."""

    offset_s: float


class World:
    """One schedule's world.

    Args:
        seed: Everything that is drawn is drawn from it.
        plan: Which call of the processes that may fail fails how; counted from 1 over all of them.
        traced: Keep a line for each call.

    Attributes:
        now: Seconds since the world began.
        calls: How many calls the processes that may fail have sent.
        late: How many requests are still on their way though nobody waits for them.
        last_late: When the last of those arrived.
        living: Keys of runs whose process lives.
        frozen: How many processes stand still.
        clocks: Those of services that have one of their own; of all others it is Ironic's.
        equip: What its processes have besides.
        reapers_failed: Whether a call failed that was not the run's.
    """

    def __init__(self, seed: int, plan: dict[int, Fault], *, pace: Pace | None = None, traced: bool = False) -> None:
        self.now = 0.0
        self.random = random.Random(seed)  # noqa: S311 - of a simulation
        self.cloud = HttpCloud(self.monotonic, pace)
        self.plan = plan
        self.calls = 0
        self.late = 0
        self.last_late = 0.0
        self.trace: list[str] | None = [] if traced else None
        self.reapers_failed = False
        self.frozen = 0
        self.living: set[str] = set()
        self.outages: dict[str, float] = {}
        self.throttled: dict[str, float] = {}
        self.past = Past(self.cloud, kept=any(fault.kind is Kind.STALE for fault in plan.values()))
        self.watch: Watch = lambda _process, _call, _age_s, carry: carry()
        self.clocks: dict[ServiceName, ServiceClock] = {}
        self.equip: Equip = lambda services, _cloud: services
        self._queue: list[tuple[float, float, _Task | Callable[[], None]]] = []
        self._hub = getcurrent()
        self._ended = False

    def monotonic(self) -> float:
        """The world's time."""
        return self.now

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Let something happen then."""
        heapq.heappush(self._queue, (max(when, self.now), self.random.random(), what))

    def start(self, process: Process, work: Callable[[], None], *, after_s: float = 0.0) -> None:
        """Let a process do some work of its own from then on."""
        task = _Task(self, process, work)
        process.tasks.append(task)
        heapq.heappush(self._queue, (self.now + after_s, self.random.random(), task))

    def sleep(self, seconds: float) -> None:
        """Let time pass for the task that calls."""
        task = getcurrent()
        until = self.now + max(0.0, seconds)
        if not isinstance(task, _Task):
            self.now = until
            return
        task.process.check()
        if seconds < _SHORT_S and (not self._queue or self._queue[0][0] > until):
            self.now = until  # nobody else acts until then; what sleeps long lets `run` look whether all is done
            return
        heapq.heappush(self._queue, (until, self.random.random(), task))
        self._hub.switch()
        task.process.check()

    def run(self, until: float, done: Callable[[], bool]) -> None:
        """Let everything happen, until then or until `done`."""
        while self._queue and not done():
            when, _, what = heapq.heappop(self._queue)
            if when > until:
                break
            self.now = max(self.now, when)
            if not isinstance(what, _Task):
                what()
            elif self.now < what.process.frozen_until and not what.process.dead:
                heapq.heappush(self._queue, (what.process.frozen_until, self.random.random(), what))
            else:
                what.switch()

    def end(self, processes: list[Process]) -> None:
        """End what still runs, so that nothing of this world is left behind."""
        for process in processes:
            process.dead = True
            for task in process.tasks:
                if task and not task.dead:
                    task.throw(Crash())

    def refuse_if_out(self, call: Call) -> None:
        """Raises `NoAnswer` while the service is down."""
        if self.now < self.outages.get(call.service, 0.0):
            raise NoAnswer("connection refused")

    def refusal(self, call: Call) -> Answer | None:
        """The answer while a service wants to be left alone."""
        left_s = self.throttled.get(call.service, 0.0) - self.now
        return Fault(kind=Kind.THROTTLED, seconds=left_s).answer(call) if left_s > 0 else None

    def pause(self) -> float:
        """How long a message is on its way."""
        drawn = self.random.random()
        return _SLOW_S * drawn / _SLOW_SHARE if drawn < _SLOW_SHARE else _QUICK_S * drawn


class _Task(greenlet):
    """One thread of a process."""

    def __init__(self, world: World, process: Process, work: Callable[[], None]) -> None:
        super().__init__(self._work)
        self.process = process
        self._world = world
        self._do = work

    def _work(self) -> None:
        try:
            self._do()
        except Crash:
            pass
        except BaseException as error:  # noqa: BLE001 - what ends a process is told, whatever it is
            self.process.errors.append(error)


@dataclass(slots=True, kw_only=True, eq=False)
class Process:
    """A process of the deployment.

    Attributes:
        name: For the trace.
        run_key: Of its run; empty for a reaper.
        fails: Whether its calls count and may fail.
        dead: Nothing it sends arrives any more.
        frozen_until: It stands still until then.
        errors: What its work ended with.
    """

    world: World
    name: str
    run_key: str = ""
    fails: bool = True
    dead: bool = False
    ended_at: float = 0.0
    frozen_until: float = 0.0
    tasks: list[Any] = field(default_factory=list[Any])
    errors: list[BaseException] = field(default_factory=list[BaseException])
    on_crash: Callable[[], None] | None = None

    def check(self) -> None:
        """Raises `Crash` in a process that is dead."""
        if self.dead:
            raise Crash

    def exit(self) -> None:
        """It is over, well or not."""
        if not self.dead:
            self.dead = True
            self.world.living.discard(self.run_key)
            self.ended_at = self.world.now

    def crash(self) -> Crash:
        """As `kill -9` does it."""
        self.exit()
        if self.on_crash is not None:
            self.on_crash()
        return Crash()

    def keep(self, beat: Beat, every_s: float) -> Stop:
        """`Keeper`: a thread of this process."""
        stopped: list[bool] = []

        def work() -> None:
            while True:
                self.world.sleep(every_s)
                if stopped:
                    return
                beat()

        self.world.start(self, work)
        return lambda: stopped.append(True)

    def send(self, call: Call) -> Answer:
        """Carry a call to the cloud, or not, as the plan says."""
        self.check()
        world = self.world
        fault = None
        if self.fails:
            world.calls += 1
            fault = world.plan.get(world.calls)
            world.reapers_failed |= fault is not None and self.name != "run"
        number = world.calls
        world.sleep(world.pause())
        try:
            world.refuse_if_out(call)
            answer = world.refusal(call) or (self._deliver(call) if fault is None else self._fail(call, fault))
        except BaseException as error:
            self._note(number, call, fault, repr(error))
            raise
        self._note(number, call, fault, str(answer.status))
        world.sleep(world.pause())
        return answer

    def _note(self, number: int, call: Call, fault: Fault | None, came: str) -> None:
        trace = self.world.trace
        if trace is not None:
            which = f"{number:4d}" if self.fails else "   -"
            why = f"   <-- {fault}" if fault else ""
            trace.append(f"{self.world.now:9.2f} {which} {self.name:<10} {call} -> {came}{why}")

    def _deliver(self, call: Call, *, age_s: float = 0.0) -> Answer:
        if call.method != "GET":
            self.world.past.before(call)
        return self.world.watch(self, call, age_s, lambda: self.world.cloud.deliver(call))

    def _fail(self, call: Call, fault: Fault) -> Answer:
        world = self.world
        if fault.kind is Kind.CRASH_BEFORE:
            raise self.crash()
        if fault.kind is Kind.TIMEOUT:
            world.sleep(TIMEOUT_S)
            raise NoAnswer("timed out")
        if fault.kind is Kind.LATE:
            self._send_late(call, fault.seconds)
            world.sleep(TIMEOUT_S)
            raise NoAnswer("timed out; it will arrive")
        if fault.kind is Kind.THROTTLED:
            world.throttled[call.service] = world.now + fault.seconds
        refusal = fault.answer(call)
        if refusal is not None and not fault.done:
            return refusal
        self._shake(call, fault)
        if fault.kind is Kind.STALE and call.method == "GET":
            return world.past.answer(call, int(fault.seconds))
        age_s = fault.seconds if fault.kind is Kind.FROZEN else 0.0
        answer = self._deliver(call, age_s=age_s)
        return refusal or self._after(answer, call, fault)

    def _shake(self, call: Call, fault: Fault) -> None:
        """What happens to the world, or to this process, just before the call."""
        world = self.world
        if fault.kind is Kind.FROZEN:
            self.frozen_until = world.now + fault.seconds
            world.frozen += 1
            world.sleep(fault.seconds)
            world.frozen -= 1
        elif fault.kind is Kind.OUTAGE:
            world.outages[call.service] = world.now + fault.seconds
            world.refuse_if_out(call)
        elif fault.kind is Kind.CLOCK_JUMP:
            world.clocks.get(call.service, world.cloud.ironic).offset_s += fault.seconds

    def _after(self, answer: Answer, call: Call, fault: Fault) -> Answer:
        """What happens between the service and who waits for its answer."""
        if fault.kind is Kind.CRASH_AFTER:
            raise self.crash()
        if fault.kind is Kind.LOST_REPLY:
            self.world.sleep(TIMEOUT_S)
            raise NoAnswer("the reply was lost")
        if fault.kind is Kind.DUPLICATE:
            self.world.sleep(fault.seconds)
            return self._deliver(call)
        return answer

    def _send_late(self, call: Call, after_s: float) -> None:
        world = self.world
        world.late += 1

        def arrive() -> None:
            world.late -= 1
            world.last_late = world.now
            answer = self._deliver(call, age_s=after_s)
            self._note(0, call, None, f"{answer.status}, late")

        world.at(world.now + after_s, arrive)
