"""What machines cost: node-seconds times price. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One machine held from `start` to `end`."""

    node_id: str
    resource_class: str
    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        """Length; an interval that ends before it starts (clocks) costs nothing."""
        return max(0.0, (self.end - self.start).total_seconds())


def node_seconds(intervals: Iterable[Interval]) -> float:
    """Seconds of all machines together.

    Intervals of one machine that overlap (two processes wrote down the same lease) count once.
    """
    by_node: dict[str, list[Interval]] = {}
    for interval in intervals:
        by_node.setdefault(interval.node_id, []).append(interval)
    return sum(_union_seconds(group) for group in by_node.values())


def price_of(intervals: Iterable[Interval], prices: Mapping[str, float]) -> float:
    """What the intervals cost at a price per node-second by resource class; a class without a price is free."""
    by_class: dict[str, list[Interval]] = {}
    for interval in intervals:
        by_class.setdefault(interval.resource_class, []).append(interval)
    return sum(node_seconds(group) * prices.get(name, 0.0) for name, group in by_class.items())


def _union_seconds(intervals: Iterable[Interval]) -> float:
    total = 0.0
    until: datetime | None = None
    for interval in sorted(intervals, key=lambda i: i.start):
        start = interval.start if until is None else max(interval.start, until)
        total += max(0.0, (interval.end - start).total_seconds())
        until = interval.end if until is None else max(until, interval.end)
    return total
