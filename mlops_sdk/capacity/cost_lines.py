"""What a run costs, line by line: training that counted, failed attempts, idle, stored checkpoints, serving. Pure.

Machines are paid for from the allocation to the end of their cleaning, whatever they do in between. Every second of a
machine is on exactly one line, so the lines add up to what was held:

    training   an attempt that succeeded, or still runs, was at work
    failed     an attempt was at work that failed, or of which nothing more was heard
    debug      kept after a failure, for a person to look at
    warm       kept for the next task, which did not need it yet
    idle       held, and no attempt of a job ran: deploying, between tasks, cleaning
    storage    checkpoints in the bucket, from their commit on
    serving    the serving host, while a version of the run is what it serves
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise, zip_longest
from typing import Final

from mlops_sdk.capacity.cost import Interval

GIB: Final = 1 << 30
MONTH_S: Final = 365 * 86400 / 12


class Line(enum.Enum):
    """What money was spent on."""

    TRAINING = "training"
    FAILED = "failed"
    DEBUG = "debug"
    WARM = "warm"
    IDLE = "idle"
    SPARE = "spare"
    STORAGE = "storage"
    SERVING = "serving"


UNIT: Final[Mapping[Line, str]] = {
    Line.TRAINING: "node-seconds",
    Line.FAILED: "node-seconds",
    Line.DEBUG: "node-seconds",
    Line.WARM: "node-seconds",
    Line.IDLE: "node-seconds",
    Line.SPARE: "node-seconds",
    Line.STORAGE: "GiB-months",
    Line.SERVING: "host-seconds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What things cost.

    Attributes:
        node_second: One second of a machine, by resource class; a class that is not named is free.
        gib_month: One GiB in the bucket for a month of 365 / 12 days.
        serving_second: One second of the serving host.
        currency: Of all of them.
    """

    node_second: Mapping[str, float] = field(default_factory=dict[str, float])
    gib_month: float = 0.0
    serving_second: float = 0.0
    currency: str = "EUR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A machine that was held for one generation of the run's lease.

    Attributes:
        generation: Which.
        interval: From when until when.
        spare_until: In reserve until then; None for one that was there to work.
        away_from: Lost from then on; None for one that was not.
    """

    generation: int
    interval: Interval
    spare_until: datetime | None = None
    away_from: datetime | None = None

    def works(self, start: datetime, end: datetime) -> bool:
        """Whether it was there to work all that time."""
        in_time = self.away_from is None or end <= self.away_from
        return in_time and (self.spare_until is None or start >= self.spare_until)

    @property
    def edges(self) -> tuple[datetime, ...]:
        """Moments at which what it is changes."""
        moments = (self.interval.start, self.interval.end, self.spare_until, self.away_from)
        return tuple(moment for moment in moments if moment is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """An attempt of a job on those of a generation that are there to work. `counted`: it succeeded, or still runs."""

    generation: int
    start: datetime
    end: datetime
    counted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The machines of a generation were kept though nothing ran on them: `Line.DEBUG` or `Line.WARM`."""

    generation: int
    start: datetime
    end: datetime
    line: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Bytes in the bucket."""

    bytes: int
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A version of the run was what an endpoint served."""

    endpoint: str
    version: str
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """All that a run is charged for."""

    holds: tuple[Hold, ...] = ()
    works: tuple[Work, ...] = ()
    waits: tuple[Wait, ...] = ()
    stored: tuple[Stored, ...] = ()
    served: tuple[Served, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """One line for one class of machine. `resource_class` is empty for storage and serving; `quantity` in `UNIT`."""

    line: Line
    resource_class: str
    quantity: float
    cost: float


def portions(
    spending: Spending, prices: Prices, *, since: datetime | None = None, until: datetime | None = None
) -> tuple[Portion, ...]:
    """The lines of a run, one for each class of machine, in the order of `Line`; what is zero is left out.

    Args:
        spending: What it is charged for.
        prices: At these prices.
        since: Only what was spent after this moment.
        until: Only what was spent before.

    Example:
        >>> portions(Spending(), Prices())
        ()
    """
    span = _Span(since=since, until=until)
    found: dict[tuple[Line, str], float] = {}
    for line, resource_class, seconds in _machine_seconds(spending, span):
        found[line, resource_class] = found.get((line, resource_class), 0.0) + seconds
    stored = sum(item.bytes / GIB * span.seconds(item.start, item.end) / MONTH_S for item in spending.stored)
    served = sum(span.seconds(start, end) for start, end in _merged((s.start, s.end) for s in spending.served))
    found[Line.STORAGE, ""] = stored
    found[Line.SERVING, ""] = served
    order = list(Line)
    return tuple(
        Portion(line=line, resource_class=name, quantity=quantity, cost=quantity * _price(prices, line, name))
        for (line, name), quantity in sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
        if quantity > 0
    )


def by_line(items: Iterable[Portion]) -> dict[Line, float]:
    """Cost by line, all lines named."""
    found = dict.fromkeys(Line, 0.0)
    for item in items:
        found[item.line] += item.cost
    return found


def total(items: Iterable[Portion]) -> float:
    """Cost of all of them."""
    return sum(item.cost for item in items)


def node_seconds_of(items: Iterable[Portion]) -> float:
    """Machine seconds of all of them."""
    return sum(item.quantity for item in items if UNIT[item.line] == "node-seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A version began to be what an endpoint serves."""

    run_key: str
    endpoint: str
    version: str
    at: datetime


def periods(rollouts: Iterable[Rollout], now: datetime) -> dict[str, tuple[Served, ...]]:
    """How long the versions of each run served, by run key.

    Each lasts until the next roll-out on its endpoint, or until now: while both versions run, the old one still serves.
    """
    found: dict[str, list[Served]] = {}
    ordered = sorted(rollouts, key=lambda r: (r.endpoint, r.at, r.run_key, r.version))
    for rollout, following in zip_longest(ordered, ordered[1:]):
        end = following.at if following is not None and following.endpoint == rollout.endpoint else now
        served = Served(endpoint=rollout.endpoint, version=rollout.version, start=rollout.at, end=end)
        found.setdefault(rollout.run_key, []).append(served)
    return {key: tuple(items) for key, items in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    since: datetime | None
    until: datetime | None

    def clip(self, start: datetime, end: datetime) -> tuple[datetime, datetime]:
        begun = self._inside(start)
        return begun, max(begun, self._inside(end))

    def seconds(self, start: datetime, end: datetime) -> float:
        begun, ended = self.clip(start, end)
        return (ended - begun).total_seconds()

    def _inside(self, moment: datetime) -> datetime:
        if self.until is not None:
            moment = min(moment, self.until)
        return moment if self.since is None else max(moment, self.since)


def _machine_seconds(spending: Spending, span: _Span) -> Iterable[tuple[Line, str, float]]:
    """Every moment of every machine, once: cut at all edges, then one look at each piece."""
    by_node: dict[str, list[Hold]] = {}
    for hold in spending.holds:
        if hold.interval.end > hold.interval.start:
            by_node.setdefault(hold.interval.node_id, []).append(hold)
    for holds in by_node.values():
        edges = {edge for hold in holds for moment in hold.edges for edge in span.clip(moment, moment)}
        edges |= {edge for work in (*spending.works, *spending.waits) for edge in span.clip(work.start, work.end)}
        cuts = sorted(edges)
        for start, end in pairwise(cuts):
            covering = [hold for hold in holds if hold.interval.start <= start and end <= hold.interval.end]
            if covering:
                # of two classes for one moment, which no cloud has, always the same one is taken
                name = min(hold.interval.resource_class for hold in covering)
                yield _line(spending, covering, start, end), name, (end - start).total_seconds()


def _line(spending: Spending, holds: Sequence[Hold], start: datetime, end: datetime) -> Line:
    generations = {hold.generation for hold in holds if hold.works(start, end)}
    if not generations:
        return Line.SPARE if any(hold.away_from is None for hold in holds) else Line.IDLE
    during = [w for w in spending.works if w.generation in generations and w.start <= start and end <= w.end]
    if any(work.counted for work in during):
        return Line.TRAINING
    if during:
        return Line.FAILED
    kept = (w.line for w in spending.waits if w.generation in generations and w.start <= start and end <= w.end)
    return next(kept, Line.IDLE)


def _merged(spans: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Without overlaps."""
    found: list[tuple[datetime, datetime]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def _price(prices: Prices, line: Line, resource_class: str) -> float:
    if line is Line.STORAGE:
        return prices.gib_month
    if line is Line.SERVING:
        return prices.serving_second
    return prices.node_second.get(resource_class, 0.0)
