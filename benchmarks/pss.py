"""How much memory a command and everything it starts really use: the sum of their PSS, once a second.

PSS (proportional set size) divides a page among the processes that share it, so the sum counts every page once; RSS
would count a shared page once for each of them. Kernel memory, and files in tmpfs that nobody maps, are not in it.

    python -m benchmarks.pss make demo      runs the command, then prints seconds and memory, and exits as it did
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_PROC = Path("/proc")
_PR_SET_CHILD_SUBREAPER = 36
_MIB = 1024  # kB


@dataclass(slots=True)
class Sampler:
    """Samples a process tree in a thread while the `with` block runs.

    Example:
        >>> with Sampler(pid=process.pid) as memory:
        ...     process.wait()
        >>> memory.peak_mib
        512.0
    """

    pid: int
    every_s: float = 1.0
    samples_mib: list[float] = field(default_factory=list)
    peak_by_name_mib: dict[str, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="pss", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    @property
    def peak_mib(self) -> float:
        """The largest sample; 0 when the tree was gone before the first."""
        return max(self.samples_mib, default=0.0)

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            self._sample()
            due += self.every_s
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return

    def _sample(self) -> None:
        by_name: dict[str, float] = {}
        for pid in tree(self.pid):
            if pss := pss_kib(pid):
                name = command_name(pid)
                by_name[name] = by_name.get(name, 0.0) + pss / _MIB
        if not by_name:
            return
        total = sum(by_name.values())
        if total > self.peak_mib:
            self.peak_by_name_mib = by_name
        self.samples_mib.append(total)


def tree(pid: int) -> list[int]:
    """The process and all its descendants that are alive now."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        current = queue.pop()
        found.append(current)
        queue += children.get(current, [])
    return found


def pss_kib(pid: int) -> int:
    """PSS of one process; 0 when it is gone or a zombie."""
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def command_name(pid: int) -> str:
    """What the process calls itself, for the breakdown."""
    try:
        return (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "gone"


def adopt_orphans() -> None:
    """Make this process the parent of every descendant that loses its own, so that none leaves the tree."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _parent(entry: Path) -> int | None:
    try:
        stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])  # the name before it may hold spaces and parentheses


def main(argv: list[str]) -> int:
    """Run a command and print what it took."""
    if not argv:
        print(__doc__)
        return 2
    adopt_orphans()
    started = time.monotonic()
    process = subprocess.Popen(argv)
    signal.signal(signal.SIGTERM, lambda _number, _frame: process.terminate())  # who ends this means the command
    with Sampler(pid=process.pid) as memory:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            status = process.wait()
    seconds = time.monotonic() - started
    largest = sorted(memory.peak_by_name_mib.items(), key=lambda item: -item[1])[:8]
    print(f"[pss] {seconds:.0f} s; at most {memory.peak_mib:.0f} MiB (sum of PSS, {len(memory.samples_mib)} samples)")
    print("[pss] at the peak: " + ", ".join(f"{name} {mib:.0f}" for name, mib in largest))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
