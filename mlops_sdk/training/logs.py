"""The output of an attempt on its way to S3: one text object per rank, one per machine for its launcher."""

from __future__ import annotations

import math
import re
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from mlops_sdk.errors import RemoteError
from mlops_sdk.objects import ObjectStore

_RANK = re.compile(r"^\[rank (\d+)\] ?")
_TAIL = 20


class AttemptLogs:
    """Collects lines into files of its own and stores them; a failed upload is told, never raised.

    Objects: ``<prefix>/rank-<r>.log`` and ``<prefix>/node-<name>.log``.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self.prefix = prefix
        self._directory = tempfile.TemporaryDirectory(prefix="mlops-logs-")
        self._files: dict[str, TextIO] = {}
        self._tails: dict[str, deque[str]] = {}
        self._changed: set[str] = set()

    def add(self, node: str, line: str, node_of: Callable[[int], str]) -> str:
        """Keep one line of output that came from a machine; returns it as it is shown.

        Args:
            node: Whose connection it came over; mpirun sends all output over the first.
            line: The line.
            node_of: Where a rank runs.
        """
        match = _RANK.match(line)
        name = f"rank-{match[1]}.log" if match else f"node-{node}.log"
        text = line[match.end() :] if match else line
        if name not in self._files:
            self._files[name] = (Path(self._directory.name) / name).open("a")
        self._files[name].write(text + "\n")
        self._tails.setdefault(name, deque(maxlen=_TAIL)).append(text)
        self._changed.add(name)
        return f"[rank {match[1]} {node_of(int(match[1]))}] {text}" if match else f"[{node}] {text}"

    def tail(self, rank: int, node: str, lines: int = 5) -> str:
        """The last lines of a rank, or of a machine's launcher when the rank is negative or silent."""
        kept = self._tails.get(f"rank-{rank}.log") or self._tails.get(f"node-{node}.log") or deque[str]()
        told = [line.strip() for line in kept if line.strip(" ^~\t")]
        return " | ".join(told[-lines:])

    def uri(self, rank: int, node: str) -> str:
        """Where the log of a rank (or of a machine's launcher) is, or will be."""
        name = f"rank-{rank}.log" if f"rank-{rank}.log" in self._tails else f"node-{node}.log"
        name = name if name in self._tails else ""
        return f"s3://{self._store.bucket}/{self.prefix}/{name}"

    def flush(self) -> None:
        """Make what was added visible to `upload`. Not thread-safe against `add`, unlike `upload`."""
        for file in self._files.values():
            file.flush()

    def upload(self, *, up_to: float = math.inf) -> str:
        """Store what changed since the last time. What went wrong, or "".

        Args:
            up_to: Leave objects that are larger than this many bytes for later: they are stored whole each time.
        """
        for name in sorted(self._changed):
            path = Path(self._directory.name) / name
            if path.stat().st_size > up_to:
                continue
            self._changed.discard(name)
            try:
                self._store.upload(f"{self.prefix}/{name}", path)
            except RemoteError as error:
                self._changed.add(name)
                return f"logs of {self.prefix!r} could not be stored: {error.seen}"
        return ""

    def close(self) -> None:
        """Remove the local copies."""
        for file in self._files.values():
            file.close()
        self._directory.cleanup()
