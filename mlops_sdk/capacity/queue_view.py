"""What all of one process who wait in a queue read once: the tickets of everybody, and the plan that follows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mlops_sdk.capacity.queue import Turn
from mlops_sdk.clock import Clock
from mlops_sdk.objects import ObjectInfo


class QueueView:
    """Of one queue. Thread-safe: while one reads, the others wait for what it reads.

    Args:
        clock: Durations.

    Attributes:
        plans: How many were made.
    """

    def __init__(self, clock: Clock) -> None:
        self.plans = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._began: float | None = None
        self._turns: tuple[Turn, ...] = ()
        self._stored: dict[str, tuple[str, Any]] = {}

    def turns(self, since: float, make: Callable[[], tuple[Turn, ...]]) -> tuple[Turn, ...]:
        """The plan, made anew unless the last one was begun at this monotonic second or later."""
        with self._lock:
            if self._began is None or self._began < since:
                began = self._clock.monotonic()
                self._turns, self._began = make(), began
                self.plans += 1
            return self._turns

    def read(self, listed: Iterable[ObjectInfo], get: Callable[[str], Any]) -> Iterator[tuple[str, Any]]:
        """Key and content of what is listed; what has the same ETag as before is not fetched again."""
        before, self._stored = self._stored, {}
        for info in listed:
            known = before.get(info.key)
            raw = known[1] if known is not None and known[0] == info.etag else get(info.key)
            self._stored[info.key] = (info.etag, raw)
            yield info.key, raw
