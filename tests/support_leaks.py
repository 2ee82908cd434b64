"""10,000 drawn schedules of failures, played while the other tests wait for machines, by a process that gets a core
only when nobody else wants it. It starts when it is known that a test will ask for what came of it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IN_ALL = 10_000
FOLDER = "MLOPS_TEST_SCHEDULES"  # where the process writes; test processes inherit it
_REPOSITORY = Path(__file__).parent.parent


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start to play. It ends with whoever started it, however that ends."""
    with _output(folder).open("w", encoding="utf-8") as output:
        fcntl.flock(output, fcntl.LOCK_EX)  # the process inherits it, and so it lasts as long as the process
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "benchmarks", "leaks"),
                *("--schedules", str(IN_ALL), "--processes", "1"),
            ],
            cwd=_REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it, if it still plays."""
    process.send_signal(signal.SIGKILL)
    process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of all schedules: the figures, and what was printed. What failed has a line that replays it."""

    figures: dict[str, float]
    printed: str


def played(folder: Path) -> Played:
    """Wait until all were played."""
    with _output(folder).open(encoding="utf-8") as output:
        fcntl.flock(output, fcntl.LOCK_SH)
        printed = output.read()
    lines = printed.splitlines()
    report: dict[str, Any] = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {"figures": {}}
    return Played(figures=report["figures"], printed=printed)


def _output(folder: Path) -> Path:
    return folder / "output"
