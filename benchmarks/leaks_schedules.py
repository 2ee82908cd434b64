"""Schedules: what happens in one world, drawn from a seed or told exactly; each has one line that replays it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from benchmarks.leaks_faults import SINGLES, Fault, Kind, drawn

_PAIR_KINDS: Final = (
    Fault(kind=Kind.CRASH_BEFORE),
    Fault(kind=Kind.CRASH_AFTER),
    Fault(kind=Kind.LOST_REPLY),
    Fault(kind=Kind.TIMEOUT),
)
_LIVES: Final = (
    *("release", "begin") * 3,
    *("extend", "replace") * 2,
    "attach",
    "generations",
    "hold",
    "park",
    "preempt",
)
_APART: Final = 80  # from a failure to the next: so the reapers that follow a death have their share


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is drawn of.

    Attributes:
        calls: About so many calls has a life with one machine.
        more: So many with each further one.
        spoils: What may fail on a machine; "" for nothing.
    """

    calls: Mapping[str, int] = field(
        default_factory=lambda: {
            "release": 110,
            "generations": 190,
            "begin": 80,
            "attach": 130,
            "extend": 120,
            "replace": 160,
            "hold": 110,
            "park": 160,
            "preempt": 130,
        }
    )
    more: int = 40
    spoils: tuple[str, ...] = (*("",) * 5, "deploy", "hang", "tear_down", "clean")


_IRONIC: Final = Shape()


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One.

    Attributes:
        seed: For how long messages take and who acts first.
        life: Which program runs.
        nodes: How many machines it leases.
        reapers: How many there are.
        tenants: Whether others take each machine as soon as it is free.
        contender: Whether another run of ours, to which nothing happens, wants machines too.
        spoiled: What fails on the first machine, and how often: ``clean:2``.
        plan: Which call fails how.
    """

    seed: int
    life: str = "release"
    nodes: int = 2
    reapers: int = 1
    tenants: bool = False
    contender: bool = False
    spoiled: str = ""
    plan: dict[int, Fault] = field(default_factory=dict[int, Fault])

    def __str__(self) -> str:
        faults = ",".join(f"{k}={fault.kind.name.lower()}:{fault.seconds:g}" for k, fault in sorted(self.plan.items()))
        others = self.tenants + 2 * self.contender
        return f"{self.seed};{self.life};{self.nodes};{self.reapers};{others};{self.spoiled};{faults}"

    @classmethod
    def parse(cls, text: str, shape: Shape = _IRONIC) -> Schedule:
        """From its line, or from the seed that it was drawn from.

        Raises:
            ValueError: it is neither.
        """
        if text.isdigit():
            return draw(int(text), shape)
        seed, life, nodes, reapers, others, spoiled, faults = text.split(";")
        plan: dict[int, Fault] = {}
        for each in filter(None, faults.split(",")):
            k, _, fault = each.partition("=")
            kind, _, seconds = fault.partition(":")
            plan[int(k)] = Fault(kind=Kind[kind.upper()], seconds=float(seconds))
        return cls(
            seed=int(seed),
            life=life,
            nodes=int(nodes),
            reapers=int(reapers),
            tenants=bool(int(others) & 1),
            contender=bool(int(others) & 2),
            spoiled=spoiled,
            plan=plan,
        )


def draw(seed: int, shape: Shape = _IRONIC) -> Schedule:
    """One with some failures, drawn from a seed."""
    source = random.Random(seed)  # noqa: S311 - of a simulation
    life, nodes = source.choice(_LIVES), source.choice((*(1,) * 7, 2, 2, 3))
    spoil = source.choice(shape.spoils)
    k = source.randint(1, shape.calls[life] + shape.more * (nodes - 1))
    plan = {k: drawn(source)}
    for _ in range(source.choice((0, 1, 1, 1, 2, 3))):
        k += source.randint(1, _APART)
        plan[k] = drawn(source)
    return Schedule(
        seed=seed,
        life=life,
        nodes=nodes,
        reapers=source.choice((1, 1, 1, 2)),
        tenants=source.choice((False, True)),
        contender=source.choice((*(False,) * 9, True)),
        spoiled=f"{spoil}:{source.choice((1, 2, 9))}" if spoil else "",
        plan=plan,
    )


def singles(calls: dict[str, int]) -> Iterator[Schedule]:
    """Each failure at each call of each life.

    Args:
        calls: How many calls each life has.
    """
    for life, count in calls.items():
        for k in range(1, count + 1):
            for number, fault in enumerate(SINGLES):
                yield Schedule(seed=k * 100 + number, life=life, nodes=1, tenants=bool(k % 2), plan={k: fault})


def pairs(calls: dict[str, int]) -> Iterator[Schedule]:
    """A crash, a lost reply or a time-out at each call of each life, and another at each later one."""
    base = Schedule(seed=0, nodes=1)
    for life, count in calls.items():
        for first in range(1, count + 1):
            for second in range(first + 1, count + 1):
                for one in _PAIR_KINDS:
                    for other in _PAIR_KINDS:
                        yield replace(base, seed=first * 1000 + second, life=life, plan={first: one, second: other})
