"""Says "this run lives": renews its lease, and writes it down, while its process lives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.capacity.providers.ironic import Grant, IronicLeases
from mlops_sdk.clock import Clock
from mlops_sdk.config import LeaseSettings
from mlops_sdk.errors import MlopsError, RemoteError
from mlops_sdk.objects import ObjectStore

_BEATS_PER_RENEWAL = 4


class RunHeartbeat:
    """A thread that beats four times per renewal time. A beat that fails is tried again at the next one.

    Args:
        store: The deployment's bucket.
        prefix: Where the run keeps its objects.
        settings: The renewal time.
        now: The service's clock.
        clock: Durations.

    Attributes:
        renewed: How many allocations the last beat renewed.
        error: What went wrong in the last beat, or None.
    """

    def __init__(
        self, store: ObjectStore, prefix: str, *, settings: LeaseSettings, now: Callable[[], datetime], clock: Clock
    ) -> None:
        self.renewed = 0
        self.error: MlopsError | None = None
        self._store = store
        self._key = f"{prefix}/heartbeat.json"
        self._settings = settings
        self._now = now
        self._clock = clock
        self._leases: IronicLeases | None = None
        self._grant: Grant | None = None
        self._last = clock.monotonic()
        self._beating = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def silent_for_s(self) -> float:
        """Since the last beat that worked."""
        return self._clock.monotonic() - self._last

    def start(self, grant: Grant) -> None:
        """Beat once in this thread, so that a failure is seen before anything is created; then go on in another."""
        self.stop()
        self._grant = grant
        self._leases = None
        self.beat()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name="mlops-heartbeat", daemon=True)
        self._thread.start()

    def renew_through(self, leases: IronicLeases) -> None:
        """From now on a beat renews the allocations too."""
        self._leases = leases

    def all_there(self) -> None:
        """Every machine was just seen: a beat that renewed while they were being asked for counts no more."""
        with self._beating:
            self.renewed = self._grant.request.nodes if self._grant else 0

    def stop(self) -> None:
        """No more beats; waits for one in progress. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def forget(self) -> None:
        """Remove the heartbeat object: the run holds nothing any more."""
        with suppress(RemoteError):
            self._store.delete(self._key)

    def beat(self) -> None:
        """Renew every allocation, then write it down. Once there is a lease, S3 being down does not cost it.

        Raises:
            MlopsError: the lease could not be renewed.
        """
        with self._beating:
            grant, leases = self._grant, self._leases
            now = self._now()
            if grant is None or now > grant.request.deadline:
                return
            if leases is not None:
                self.renewed = leases.renew(grant)
            body = {
                "run_id": str(grant.run_id),
                "generation": grant.generation,
                "deadline": to_iso(grant.request.deadline),
                "renewed_until": to_iso(now + timedelta(seconds=self._settings.renew_for_s)),
            }
            try:
                self._store.put_json(self._key, body)
            except RemoteError:
                if leases is None:
                    raise
            self._last = self._clock.monotonic()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self._settings.renew_for_s / _BEATS_PER_RENEWAL):
            try:
                self.beat()
            except MlopsError as error:
                self.error = error
            else:
                self.error = None
