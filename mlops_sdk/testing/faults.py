"""Scripted failures: the k-th call of a name fails, before it is done or after (its reply is lost)."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal


class Crash(BaseException):
    """The process dies here: nothing may catch it, no clean-up runs."""


class FaultScript:
    """Counts calls and fails those it was told to. After a `Crash` every call fails until `clear`: the process is dead.

    Example:
        >>> faults = FaultScript()
        >>> faults.fail_at("deploy", 2, error=ConnectionError("cut"), when="after")
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._plan: dict[tuple[str, int, str], BaseException] = {}
        self._counts: dict[str, int] = {}
        self._dead: Crash | None = None
        self._lock = threading.Lock()

    def fail_at(self, call: str, k: int, *, error: BaseException, when: Literal["before", "after"] = "before") -> None:
        """Let the k-th call (from 1) of this name fail; "*" counts calls of every name together."""
        self._plan[(call, k, when)] = error

    def clear(self) -> None:
        """Forget plan and counts."""
        with self._lock:
            self._plan.clear()
            self._counts.clear()
            self.calls.clear()
            self._dead = None

    @contextmanager
    def call(self, name: str) -> Generator[None]:
        """Around one call."""
        with self._lock:
            if self._dead is not None:
                raise self._dead
            self.calls.append(name)
            numbers: dict[str, int] = {}
            for key in (name, "*"):
                self._counts[key] = self._counts.get(key, 0) + 1
                numbers[key] = self._counts[key]
        self._raise(numbers, "before")
        yield
        self._raise(numbers, "after")

    def _raise(self, numbers: dict[str, int], when: str) -> None:
        for key, number in numbers.items():
            error = self._plan.get((key, number, when))
            if error is not None:
                if isinstance(error, Crash):
                    self._dead = error
                raise error
