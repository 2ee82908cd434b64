"""The embedded stack: seconds until every service is ready, and the memory it holds, from nothing and again.

*Cold* starts in a new state directory (schemas, keys, the OSD are made), *warm* in one that was used before. Memory is
the largest sum of PSS over the stack's processes, sampled once a second until some seconds after ready.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.pss import Sampler
from benchmarks.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.report import Options

_WITHIN_S = 180
_IDLE_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    kind: str
    ready_s: float
    peak_mib: float
    idle_mib: float
    stop_s: float


def run(options: Options) -> Report:
    """Start and stop the stack: once from nothing and once more, or three times each."""
    rounds = 1 if options.quick else 3
    print(f"stack: {rounds} start(s) in a new state directory, then as many in a used one", flush=True)
    print(f"{'start':<6} {'ready s':>8} {'peak MiB':>9} {'idle MiB':>9} {'stop s':>7}")
    starts = [start for _ in range(rounds) for start in _cold_then_warm()]
    figures = {}
    for kind in ("cold", "warm"):
        of_kind = [start for start in starts if start.kind == kind]
        figures[f"{kind}_ready_s"] = _median(start.ready_s for start in of_kind)
        figures[f"{kind}_peak_mib"] = _median(start.peak_mib for start in of_kind)
        figures[f"{kind}_idle_mib"] = _median(start.idle_mib for start in of_kind)
        figures[f"{kind}_stop_s"] = _median(start.stop_s for start in of_kind)
    return Report(figures=figures)


def _cold_then_warm() -> list[_Start]:
    state_dir = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    try:
        return [_start("cold", state_dir), _start("warm", state_dir)]
    finally:
        shutil.rmtree(state_dir)


def _start(kind: str, state_dir: Path) -> _Start:
    command = [sys.executable, "-m", "mlops_sdk.local.up", "--state-dir", str(state_dir), "--until-stdin-closes"]
    began = time.monotonic()
    with (state_dir / "bench.log").open("ab") as log:
        stack = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
    with Sampler(pid=stack.pid) as memory:
        try:
            _wait_until_ready(stack, state_dir)
            ready_s = time.monotonic() - began
            before = len(memory.samples_mib)
            time.sleep(_IDLE_S)
        finally:
            began = time.monotonic()
            stack.communicate()  # closes its standard input, which ends it
    idle = statistics.median(memory.samples_mib[before:])
    start = _Start(kind=kind, ready_s=ready_s, peak_mib=memory.peak_mib, idle_mib=idle, stop_s=time.monotonic() - began)
    print(f"{kind:<6} {ready_s:8.1f} {start.peak_mib:9.0f} {idle:9.0f} {start.stop_s:7.1f}", flush=True)
    return start


def _wait_until_ready(stack: subprocess.Popen[bytes], state_dir: Path) -> None:
    # Imported here, so that `--list` needs no installed library.
    from mlops_sdk.local.control import status  # noqa: PLC0415
    from mlops_sdk.local.layout import Layout  # noqa: PLC0415

    layout = Layout.at(state_dir)
    give_up = time.monotonic() + _WITHIN_S
    while not status(layout).ready:
        if stack.poll() is not None or time.monotonic() > give_up:
            raise SystemExit((state_dir / "bench.log").read_text(encoding="utf-8", errors="replace")[-4000:])
        time.sleep(0.1)


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 2)
