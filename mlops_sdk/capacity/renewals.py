"""Renews many leases at once, for as long as somebody waits for their machines: what is due is read from each look.

There is no timer for each lease: what the shared poller sees tells until when it is renewed, the ones that lapse first
are renewed first, and one that could not be renewed is due again at the next look.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

from mlops_sdk.capacity.provider import Grant
from mlops_sdk.capacity.watching import Snapshot
from mlops_sdk.errors import MlopsError

_LOG = logging.getLogger(__name__)
_THREADS = 4
# Of the renewal time: a lease with less than this left is renewed. The rest is for what may go wrong meanwhile.
_DUE_SHARE = 0.5

Beat = Callable[[Grant], None]


class Renewals:
    """Of one cloud and provider. Give `look` to its poller.

    Args:
        beat: Renews a lease and writes it down; may raise `MlopsError`. Called in a few threads, never twice for one.
        now: The clock by which leases are judged.
        renew_for_s: The renewal time.

    Attributes:
        renewed: How many beats worked.
    """

    def __init__(self, beat: Beat, *, now: Callable[[], datetime], renew_for_s: float) -> None:
        self.renewed = 0
        self._beat = beat
        self._now = now
        self._left = timedelta(seconds=renew_for_s * _DUE_SHARE)
        self._kept: dict[str, Grant] = {}
        self._under_way: set[str] = set()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="mlops-renewals")

    @contextmanager
    def keeping(self, grant: Grant) -> Generator[None]:
        """Renew this lease within the block."""
        key = grant.names[0]
        with self._lock:
            self._kept[key] = grant
        try:
            yield
        finally:
            with self._lock:
                self._kept.pop(key, None)

    def look(self, snapshot: Snapshot) -> None:
        """Begin to renew what is due; does not wait for it."""
        with self._lock:
            todo = due(snapshot, self._kept, now=self._now(), left=self._left)
            todo = {key: grant for key, grant in todo.items() if key not in self._under_way}
            self._under_way |= todo.keys()
        for key, grant in todo.items():
            self._threads.submit(self._renew, key, grant)

    def _renew(self, key: str, grant: Grant) -> None:
        try:
            if key in self._kept:  # it may have waited for its turn
                self._beat(grant)
                self.renewed += 1
        except MlopsError as error:
            _LOG.warning("%s could not be renewed, trying again: %s", key, error)
        finally:
            with self._lock:
                self._under_way.discard(key)


def due(snapshot: Snapshot, kept: Mapping[str, Grant], *, now: datetime, left: timedelta) -> dict[str, Grant]:
    """Leases to renew, the one that lapses first first, each with the deadline that it carries. Pure.

    Args:
        snapshot: What there is. A lease of which nothing is there is not renewed; whoever waits for it is told.
        kept: Leases by the name of their first piece.
        now: By the clock that judges them.
        left: With less time than this they are due.
    """
    found: list[tuple[datetime, str, Grant]] = []
    for key, grant in kept.items():
        times = [
            (sight.renewed_until, sight.deadline)
            for sight in map(snapshot.of, grant.names)
            if sight.renewed_until is not None and sight.deadline is not None
        ]
        if times:
            until, deadline = min(times)
            if now <= deadline and until - now < left:
                found.append((until, key, replace(grant, request=replace(grant.request, deadline=deadline))))
    return {key: grant for _, key, grant in sorted(found, key=lambda item: item[:2])}
