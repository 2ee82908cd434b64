"""Nothing leaks: runs that crash, calls that fail, reapers that race, by the thousand, in a world with one seed.

Each schedule runs the library itself (`Run`, its heartbeat, `Reaper`, the broker, the clients of Ironic, Keystone and
S3) against `mlops_sdk.testing.http_cloud`, in virtual time. Calls fail as `leaks_faults.Kind` lists: the process is
gone before or after one, replies are lost, requests arrive late or twice, services refuse or are down, lists are
stale, clocks jump. Then:

*leaked*: something of a dead run is left (an allocation, a machine in use, a credential, an access rule, a claim), or
came back later than renewal + one reaper period + cleaning.

*wrongly_deleted*: something was taken from who may have it: a person, another deployment, a run of ours that lives, or
whoever got a machine the moment that it was free.

*met_by_later_than_cleaning*: tear-downs that were under way (or whose sender stood still) for longer than tear-down and
cleaning take, and met the next tenant of the machine. Ironic's API ties no tear-down to whose machine it is; so this is
measured, and no goal.

*peer*: a program that creates, works, and gives back in a `finally`, through the same failures.

`--provider nova` leases servers of Nova with ports and volumes instead, `nova-root` such that boot from a volume. Then
these count too, and there is nothing that a late request could meet: a server's id is used once.

Of `--schedules N`, each failure at each call comes first; then, if there is room, every pair of a crash, a lost reply
or a time-out; the rest is drawn from seeds. What fails is printed as one line: `--replay LINE` runs it again and prints
every call. `--replay NUMBER` draws a schedule from a seed.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from benchmarks.leaks_life import LIVES
from benchmarks.leaks_nova import Servers
from benchmarks.leaks_nova_peer import servers_leak_by_hand
from benchmarks.leaks_peer import leaks_by_hand
from benchmarks.leaks_run import Machines, Result, Scene, run_schedule, stage
from benchmarks.leaks_schedules import Schedule, draw, pairs, singles
from benchmarks.report import Goal, Report

if TYPE_CHECKING:
    from benchmarks.report import Options

_CHUNK: Final = 100
_QUICK: Final = 2_000
_USUAL: Final = 30_000
_PEERS: Final = 1_000
_SHOWN: Final = 20
IRONIC: Final = "ironic"
SCENES: Final[Mapping[str, Scene]] = MappingProxyType(
    {IRONIC: Machines(), "nova": Servers(), "nova-root": Servers(root_gib=20)}
)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came of many schedules. `provider`: of which scene."""

    provider: str = IRONIC
    schedules: int = 0
    calls: int = 0
    leaked: int = 0
    wrongly_deleted: int = 0
    beyond: int = 0
    window: int = 0
    longest_s: float = 0.0
    failures: list[str] = field(default_factory=list[str])

    def add(self, result: Result) -> None:
        """One more."""
        self.schedules += 1
        self.calls += result.calls
        self.leaked += bool(result.left or result.late or result.errors)
        self.wrongly_deleted += bool(result.wrong)
        self.beyond += result.beyond
        self.window += result.window
        self.longest_s = max(self.longest_s, result.took_s or 0.0)
        if not result.ok:
            late = (f"took {result.took_s:.0f} s",) if result.late else ()
            words = "; ".join((*result.wrong, *result.left, *late, *result.errors))
            scene = "" if self.provider == IRONIC else f"--provider {self.provider} "
            self.failures.append(f"{scene}--replay '{result.schedule}'  {words}")

    def merge(self, other: Tally) -> None:
        """Those of another worker."""
        self.schedules += other.schedules
        self.calls += other.calls
        self.leaked += other.leaked
        self.wrongly_deleted += other.wrongly_deleted
        self.beyond += other.beyond
        self.window += other.window
        self.longest_s = max(self.longest_s, other.longest_s)
        self.failures.extend(other.failures)


def run(options: Options) -> Report:
    """All schedules, on all cores; or one that is replayed."""
    provider = options.provider or IRONIC
    scene = SCENES[provider]
    if options.replay:
        return _replay(options.replay, provider)
    count = options.schedules or (_QUICK if options.quick else _USUAL)
    schedules = list(_chosen(count, options.seed, scene))
    processes = options.processes or len(os.sched_getaffinity(0))
    print(f"leaks: {len(schedules)} schedules in {processes} process{'es' * (processes > 1)}", flush=True)
    began = time.monotonic()
    tally = run_all(schedules, processes, provider)
    wall_s = time.monotonic() - began
    peers = min(_PEERS, count)
    with stage():
        naive = leaks_by_hand if provider == IRONIC else servers_leak_by_hand
        by_hand = sum(naive(draw(options.seed + number, scene.shape)) for number in range(peers))
    for line in tally.failures[:_SHOWN]:
        print(line)
    figures = {
        "schedules": float(tally.schedules),
        "leaked": float(tally.leaked),
        "wrongly_deleted": float(tally.wrongly_deleted),
        "calls": float(tally.calls),
        "wall_s": round(wall_s, 1),
        "longest_s": round(tally.longest_s, 1),
        "bound_s": scene.bound_s,
        "renewed_in_the_window": float(tally.window),
        "met_by_later_than_cleaning": float(tally.beyond),
        "peer_schedules": float(peers),
        "peer_leaked": float(by_hand),
    }
    print("\n".join(f"{name:<24} {value:>14,.1f}" for name, value in figures.items()))
    goals = {
        "leaked": Goal(op="==", goal=0.0),
        "wrongly_deleted": Goal(op="==", goal=0.0),
        "peer_leaked": Goal(op=">", goal=0.0),  # else the failures do no harm, and the zeros above say nothing
    }
    return Report(figures=figures, goals=goals)


def run_all(schedules: Iterable[Schedule], processes: int, provider: str = IRONIC) -> Tally:
    """Run them in so many processes."""
    run_these = partial(run_chunk, provider=provider)
    chunks = _chunks([str(schedule) for schedule in schedules])
    tally = Tally()
    if processes == 1:
        for chunk in chunks:
            tally.merge(run_these(chunk))
        return tally
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for part in pool.imap_unordered(run_these, chunks):
            tally.merge(part)
    return tally


def run_chunk(lines: list[str], provider: str = IRONIC) -> Tally:
    """Some schedules, by their lines."""
    tally, scene = Tally(provider=provider), SCENES[provider]
    with stage():
        for line in lines:
            tally.add(run_schedule(Schedule.parse(line, scene.shape), scene=scene))
    return tally


def lengths(scene: Scene) -> dict[str, int]:
    """How many calls each life sends when nothing fails, with its reaper."""
    with stage():
        return {life: run_schedule(Schedule(seed=0, life=life, nodes=1), scene=scene).calls for life in LIVES}


def _chosen(count: int, seed: int, scene: Scene) -> Iterator[Schedule]:
    calls = lengths(scene)
    each = list(singles(calls))
    if count < len(each):
        each = []
    room = count - len(each)
    number = sum(n * (n - 1) // 2 for n in calls.values()) * 16
    twice = list(pairs(calls)) if number <= room else []
    drawn = (draw(seed + number, scene.shape) for number in range(room - len(twice)))
    return itertools.chain(each, twice, drawn)


def _chunks(lines: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(lines), _CHUNK):
        yield lines[start : start + _CHUNK]


def _replay(text: str, provider: str) -> Report:
    scene = SCENES[provider]
    with stage():
        result = run_schedule(Schedule.parse(text, scene.shape), traced=True, scene=scene)
    print("\n".join(result.trace))
    tally = Tally(provider=provider)
    tally.add(result)
    print(f"\n{result.schedule}\n" + ("\n".join(tally.failures) or "nothing leaked, nobody was touched"))
    figures = {"schedules": 1.0, "leaked": float(tally.leaked), "wrongly_deleted": float(tally.wrongly_deleted)}
    return Report(figures=figures)
