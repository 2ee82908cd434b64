"""Figures for Prometheus: machine time and cost by class, owner and line, what is held and orphaned, budgets. Pure.

As text in the exposition format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/), for the textfile
collector of the node exporter. Cost is a gauge: a line of it can become smaller, when an attempt turns out to have
failed or a checkpoint goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from mlops_sdk.capacity.budget import Account
from mlops_sdk.capacity.cost_lines import UNIT
from mlops_sdk.capacity.cost_report import CostReport

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A metric: its name, what it means, its value by labels; `counts` when it only ever grows."""

    name: str
    help: str
    values: Mapping[Labels, float]
    counts: bool = False


def cost_families(report: CostReport) -> tuple[Family, ...]:
    """Machine time and cost of all runs, and how many runs are in which state."""
    seconds: dict[Labels, float] = {}
    cost: dict[Labels, float] = {}
    for run in report.runs:
        for item in run.portions:
            labels = (("line", item.line.value), ("owner", run.owner), ("resource_class", item.resource_class))
            cost[labels] = cost.get(labels, 0.0) + item.cost
            if UNIT[item.line] == "node-seconds":
                seconds[labels] = seconds.get(labels, 0.0) + item.quantity
    states = Counter(run.state for run in report.runs)
    return (
        Family(name="mlops_node_seconds", help="Machine time, from allocation to the end of cleaning", values=seconds),
        Family(
            name="mlops_cost",
            help="What was spent, by what it was spent on",
            values={(("currency", report.currency), *labels): value for labels, value in cost.items()},
        ),
        Family(
            name="mlops_runs",
            help="Runs, by the state of their latest lease",
            values={(("state", state),): float(number) for state, number in states.items()},
        ),
    )


def lease_families(owners: Iterable[str], overdue: Iterable[str], errors: int, *, at: datetime) -> tuple[Family, ...]:
    """What is held and what ought to have been given back.

    Args:
        owners: Of each allocation that is held.
        overdue: The kind of each thing that a reaper would take back now.
        errors: How many things could not be looked at.
        at: When it was looked at.
    """
    held, orphans = Counter(owners), Counter(overdue)
    return (
        Family(
            name="mlops_machines_held",
            help="Machines held, by owner",
            values={(("owner", owner),): float(number) for owner, number in held.items()},
        ),
        Family(
            name="mlops_orphans",
            help="Things held past their time, by kind; the sum must be 0 but between two passes of the reaper",
            values={(("kind", kind),): float(number) for kind, number in orphans.items()} or {(): 0.0},
        ),
        Family(name="mlops_unseen", help="Things that could not be looked at", values={(): float(errors)}),
        Family(
            name="mlops_looked_at_timestamp_seconds",
            help="When these figures were taken, by the cloud's clock",
            values={(): at.timestamp()},
        ),
    )


def budget_families(accounts: Iterable[Account]) -> tuple[Family, ...]:
    """What is left of the budgets of this month."""
    found = [account for account in accounts if account.limit is not None]
    return (
        Family(
            name="mlops_budget_left",
            help="What an owner may still promise this month",
            values={(("currency", a.currency), ("month", str(a.month)), ("owner", a.owner)): a.left for a in found},
        ),
    )


def render(families: Iterable[Family]) -> str:
    """As Prometheus reads it; labels and families in a stable order, so that equal figures are equal text.

    Example:
        >>> print(render([Family(name="x", help="An x", values={(("a", "b"),): 1.0})]), end="")
        # HELP x An x
        # TYPE x gauge
        x{a="b"} 1.0
    """
    lines: list[str] = []
    for family in families:
        described = family.help.replace("\\", r"\\").replace("\n", r"\n")
        lines += [
            f"# HELP {family.name} {described}",
            f"# TYPE {family.name} {'counter' if family.counts else 'gauge'}",
        ]
        for labels, value in sorted(family.values.items()):
            inside = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            lines.append(f"{family.name}{'{' + inside + '}' if inside else ''} {value!r}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
