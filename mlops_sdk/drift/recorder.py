"""Counts prompts over a reference's bins and keeps the count in one small file. Runs inside the serving process.

The standard library only. Prompts are never kept or logged: what stays in memory is the counts and, to leave out
repetitions, hashes under Python's per-process salt.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mlops_sdk.drift.features import NAMES, features
from mlops_sdk.drift.profile import Counts, Profile, Reference
from mlops_sdk.errors import DriftError

PROFILE_DIR = "MLOPS_PROFILE_DIR"
PROFILE_REFERENCE = "MLOPS_PROFILE_REFERENCE"
MODEL_VERSION = "MLOPS_MODEL_VERSION"

_LOG = logging.getLogger("mlops.drift")
_BESIDE = Path(__file__).resolve().parents[2]  # a relative path of the reference is beside the package
_FLUSH_S = 1.0
_REMEMBERED = 8192


class Recorder:
    """The counter of one serving process. All methods but `write` belong to its event loop.

    Args:
        folder: Where the file is kept; made if it is not there.
        reference: Whose bins are counted.
        model_version: Of the model that answers.
    """

    def __init__(self, folder: Path, reference: Reference, model_version: str) -> None:
        self._started = datetime.now(UTC)
        instance = f"{os.getpid()}-{int(self._started.timestamp() * 1000):x}"
        self.path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '-', model_version)}-{instance}.json"
        self._instance, self._model_version = instance, model_version
        self._reference = reference.sha256
        self._rows = [(name, reference.edges[name], [0] * (len(reference.edges[name]) + 1)) for name in NAMES]
        self._recent: dict[int, None] = {}
        self._prompts = self._repeats = self._number = self._written = 0
        self._skipped: dict[str, int] = {}
        self._first: datetime | None = None
        self._last: datetime | None = None
        self._due: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Recorder | None:
        """As the variables say; None, with one line in the log, when they do not allow it: serving goes on without."""
        missing = [name for name in (PROFILE_DIR, PROFILE_REFERENCE, MODEL_VERSION) if not environ.get(name)]
        if missing:
            _LOG.warning("prompts are not profiled: %s not set", ", ".join(missing))
            return None
        try:
            reference = Reference.parse((_BESIDE / environ[PROFILE_REFERENCE]).read_bytes())
            recorder = cls(Path(environ[PROFILE_DIR]), reference, environ[MODEL_VERSION])
            recorder.flush()
        except (OSError, DriftError) as error:
            _LOG.warning("prompts are not profiled: %s", error)
            return None
        return recorder

    def add(self, prompts: Sequence[str]) -> None:
        """Count prompts; one that equals a recent one counts as a repetition."""
        for text in prompts:
            key = hash(text)
            if key in self._recent:
                self._repeats += 1
                continue
            self._recent[key] = None
            if len(self._recent) > _REMEMBERED:
                del self._recent[next(iter(self._recent))]
            for (_, edges, row), value in zip(self._rows, features(text), strict=True):
                row[bisect_left(edges, value)] += 1
            self._prompts += 1
            self._last = datetime.now(UTC)
            self._first = self._first or self._last
        self._flush_soon()

    def skip(self, reason: str) -> None:
        """Count a request that had no prompt to count."""
        self._skipped[reason] = self._skipped.get(reason, 0) + 1
        self._flush_soon()

    def profile(self) -> Profile:
        """What was counted so far."""
        return Profile(
            model_version=self._model_version,
            instance=self._instance,
            reference=self._reference,
            counts=Counts(prompts=self._prompts, bins={name: tuple(row) for name, _, row in self._rows}),
            repeats=self._repeats,
            skipped=dict(self._skipped),
            started_at=self._started,
            first_at=self._first,
            last_at=self._last,
        )

    def flush(self) -> None:
        """Write the file now.

        Raises:
            OSError: it could not be written.
        """
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self._number += 1
        self.write(self._number, self.profile().to_bytes() + b"\n")

    def write(self, number: int, body: bytes) -> None:
        """Replace the file, all or nothing, unless a later content is there already. Any thread."""
        with self._lock:
            if number <= self._written:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self.path.with_name(f".{self.path.name}.new")
            scratch.write_bytes(body)
            scratch.replace(self.path)
            self._written = number

    def _flush_soon(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(_FLUSH_S, self._flush_later)

    def _flush_later(self) -> None:
        """In a thread: a slow disk must not hold up answers."""
        self._due = None
        self._number += 1
        body = self.profile().to_bytes() + b"\n"
        asyncio.get_running_loop().run_in_executor(None, self._try_to_write, self._number, body)

    def _try_to_write(self, number: int, body: bytes) -> None:
        try:
            self.write(number, body)
        except OSError as error:  # the next flush writes everything again
            _LOG.warning("the profile of prompts was not written: %s", error)
