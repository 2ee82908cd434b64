"""What `benchmarks.loop` makes of moments: spans that are subtracted, what is left, figures and tables. Pure.

All moments are seconds since the epoch by the one clock of this machine.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

_MOVED: Final = re.compile(
    r"^(?P<when>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) .* Node (?P<node>[0-9a-f-]{36}) "
    r'moved to provision state "(?P<to>[a-z ]+)" from state "(?P<from>[a-z ]+)"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that lasted: `what` it was, from `began` to `ended`."""

    what: str
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long."""
        return self.ended - self.began


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One of the two that are measured, in one chain: from `began` to `ended`, less the parts that lie in it."""

    began: float
    ended: float
    parts: tuple[Span, ...] = ()

    @property
    def wall_s(self) -> float:
        """All of it."""
        return self.ended - self.began

    @property
    def seconds(self) -> float:
        """What is left when every moment that lies in a part is left out; none is left out twice."""
        return self.wall_s - sum(span.seconds for span in union(self.inside()))

    def inside(self) -> tuple[Span, ...]:
        """The parts, cut to the interval."""
        cut = (Span(what=p.what, began=max(p.began, self.began), ended=min(p.ended, self.ended)) for p in self.parts)
        return tuple(span for span in cut if span.seconds > 0)

    def of(self, what: str) -> float:
        """Seconds of the parts of one kind."""
        return sum(span.seconds for span in union(span for span in self.inside() if span.what == what))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task of a run as Airflow's REST API tells it; moments are 0.0 where it says nothing."""

    name: str
    queued: float
    began: float
    ended: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One chain, once: started by a push, and then by a drift."""

    chain: str
    push: Interval
    drift: Interval
    tasks: Mapping[str, Sequence[Task]] = field(default_factory=dict[str, Sequence[Task]])

    @property
    def seconds(self) -> float:
        """Both intervals together."""
        return self.push.seconds + self.drift.seconds


def union(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same moments as spans that do not overlap.

    Example:
        >>> [s.seconds for s in union([Span(what="a", began=0, ended=2), Span(what="b", began=1, ended=4)])]
        [4]
    """
    joined: list[Span] = []
    for span in sorted(spans, key=lambda span: span.began):
        if joined and span.began <= joined[-1].ended:
            last = joined.pop()
            span = Span(what=last.what, began=last.began, ended=max(last.ended, span.ended))  # noqa: PLW2901 - grown
        joined.append(span)
    return tuple(joined)


def deployments(log: str) -> tuple[Span, ...]:
    """Ironic's own record of each deployment: its log's "moved to provision state", from `deploying` to `active`.

    The log has local time.
    """
    began: dict[str, float] = {}
    found: list[Span] = []
    for line in log.splitlines():
        match = _MOVED.match(line)
        if match is None:
            continue
        when = datetime.fromisoformat(match["when"]).timestamp()
        if match["to"] == "deploying":
            began[match["node"]] = when
        elif match["to"] == "active" and match["node"] in began:
            found.append(Span(what="ironic", began=began.pop(match["node"]), ended=when))
    return tuple(found)


def tasks_of(instances: Iterable[Mapping[str, Any]]) -> tuple[Task, ...]:
    """Airflow's task instances in the order in which they began; a deferred task's start is its first one."""
    found = [
        Task(
            name=str(one["task_id"]),
            queued=_moment(one.get("queued_when") or one.get("queued_at")),
            began=_moment(one.get("start_date")),
            ended=_moment(one.get("end_date")),
        )
        for one in instances
    ]
    return tuple(sorted(found, key=lambda task: (task.began, task.name)))


def figures_of(rounds: Sequence[Round]) -> dict[str, float]:
    """The figures: medians over the rounds of each chain, and how the chains compare."""
    of = {chain: [r for r in rounds if r.chain == chain] for chain in dict.fromkeys(r.chain for r in rounds)}
    names = {"ours": "", "floor": "floor_", "stock": "stock_"}
    figures: dict[str, float] = {}
    for chain, mine in of.items():
        prefix = names[chain]
        figures[f"{prefix}push_s"] = _median(r.push.seconds for r in mine)
        figures[f"{prefix}drift_s"] = _median(r.drift.seconds for r in mine)
        figures["floor_s" if chain == "floor" else f"{prefix}total_s"] = _median(r.seconds for r in mine)
    if "floor" in of and "ours" in of:
        figures["excess_over_floor"] = round((figures["total_s"] - figures["floor_s"]) / figures["floor_s"], 3)
    if "stock" in of and "ours" in of:
        figures["total_over_stock"] = round(figures["total_s"] / figures["stock_total_s"], 3)
    return figures


def table(rounds: Sequence[Round]) -> str:
    """Every interval that was measured, with what was subtracted from it."""
    head = (
        f"{'chain':<6} {'interval':<9} {'wall s':>8} {'Ironic s':>9} {'training s':>11} {'loading s':>10} {'left s':>8}"
    )
    lines = [head]
    for one in rounds:
        for name, interval in (("push", one.push), ("drift", one.drift)):
            parts = [interval.of(what) for what in ("ironic", "training", "loading")]
            lines.append(
                f"{one.chain:<6} {name:<9} {interval.wall_s:8.2f} {parts[0]:9.2f} {parts[1]:11.2f} "
                f"{parts[2]:10.2f} {interval.seconds:8.2f}"
            )
    return "\n".join(lines)


def breakdown(tasks: Sequence[Task], zero: float) -> str:
    """When each task was queued, began and ended, in seconds after `zero`."""
    lines = [f"{'task':<16} {'queued':>8} {'began':>8} {'ended':>8} {'lasted':>8}"]
    for task in tasks:
        cells = [f"{moment - zero:8.2f}" if moment else " " * 8 for moment in (task.queued, task.began, task.ended)]
        lasted = f"{task.ended - task.began:8.2f}" if task.began and task.ended else " " * 8
        lines.append(" ".join([f"{task.name:<16}", *cells, lasted]))
    return "\n".join(lines)


def _moment(text: Any) -> float:
    return datetime.fromisoformat(str(text)).timestamp() if text else 0.0


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 2)
