"""The S3 server's clock: by it leases are judged where no cloud of OpenStack's has one for us."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.objects import ObjectStore

_AGAIN_S = 60.0
_FOREVER_AGO = datetime.min.replace(tzinfo=UTC)


class StoreClock:
    """Asks once a minute and goes on by our monotonic clock in between, and while S3 is away. Thread-safe.

    Never goes back. Resolution: one second, that of the ``Date`` header.

    Args:
        store: Of the deployment: everybody who shares it shares this clock.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._asked: tuple[datetime, float] | None = None
        self._told = _FOREVER_AGO

    def now(self) -> datetime:
        """The time.

        Raises:
            ServiceUnavailable: S3 has never answered yet.
        """
        with self._lock:
            if self._asked is None or time.monotonic() - self._asked[1] > _AGAIN_S:
                self._ask()
            moment, at = self._asked or (self._told, time.monotonic())
            self._told = max(self._told, moment + timedelta(seconds=time.monotonic() - at))
            return self._told

    def _ask(self) -> None:
        try:
            self._asked = (self._store.moment(), time.monotonic())
        except ServiceUnavailable:
            if self._asked is None:
                raise
