"""What a benchmark hands back, and the one JSON line it ends with."""

from __future__ import annotations

import json
import operator
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Op = Literal["<=", ">=", "<", ">", "=="]
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a benchmark is asked to run: `quick` means within 60 s on 2 cores, at reduced size.

    Attributes:
        schedules: Of `leaks`: how many; 0 for its usual number.
        replay: Of `leaks`: the one to run again, with every call printed.
        provider: Of `leaks`: whose machines are leased; "" for its usual one.
        processes: Of `leaks`: how many work at once; 0 for one on each core.
    """

    quick: bool = False
    seed: int = 0
    schedules: int = 0
    replay: str = ""
    provider: str = ""
    processes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a figure should reach."""

    op: Op
    goal: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Figures by stable key; goals for some of them. What was not measured is not in it."""

    figures: dict[str, float]
    goals: dict[str, Goal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.goals) - set(self.figures)):
            msg = f"goals without a figure: {unknown}"
            raise ValueError(msg)


def last_line(name: str, report: Report) -> str:
    """`{"name", "machine", "figures", "goals"}` on one line."""
    goals = {
        key: {"op": goal.op, "goal": goal.goal, "met": _COMPARE[goal.op](report.figures[key], goal.goal)}
        for key, goal in report.goals.items()
    }
    return json.dumps({"name": name, "machine": machine(), "figures": report.figures, "goals": goals})


def machine() -> str:
    """Where the figures were taken: cores, memory, processor, kernel, Python."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB, {_processor()}, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
