"""Says "this run lives": renews its lease, and writes it down, while its process lives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.capacity.provider import Grant, Provider
from mlops_sdk.clock import Clock
from mlops_sdk.config import LeaseSettings
from mlops_sdk.errors import MlopsError, RemoteError
from mlops_sdk.keeper import Keeper, Stop
from mlops_sdk.objects import ObjectStore

HEARTBEAT = "heartbeat.json"  # below the prefix of its run
_BEATS_PER_RENEWAL = 4


class RunHeartbeat:
    """Beats four times per renewal time. A beat that fails is tried again at the next one.

    Args:
        store: The deployment's bucket.
        prefix: Where the run keeps its objects.
        settings: The renewal time.
        now: The service's clock.
        clock: Durations.
        keeper: Who calls it.

    Attributes:
        renewed: How many allocations the last beat renewed.
        error: What went wrong in the last beat, or None.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        *,
        settings: LeaseSettings,
        now: Callable[[], datetime],
        clock: Clock,
        keeper: Keeper,
    ) -> None:
        self.renewed = 0
        self.error: MlopsError | None = None
        self._store = store
        self._key = f"{prefix}/{HEARTBEAT}"
        self._settings = settings
        self._now = now
        self._clock = clock
        self._keeper = keeper
        self._provider: Provider | None = None
        self._grant: Grant | None = None
        self._follow: Callable[[Grant], Grant] = lambda grant: grant
        self._last = clock.monotonic()
        self._beating = threading.Lock()
        self._stop: Stop | None = None
        self._rests = False
        self._left = False

    @property
    def silent_for_s(self) -> float:
        """Since the last beat that worked."""
        return self._clock.monotonic() - self._last

    @property
    def grant(self) -> Grant | None:
        """What it renews, with the deadline as it is now."""
        return self._grant

    def start(self, grant: Grant, *, follow: Callable[[Grant], Grant] = lambda grant: grant) -> None:
        """Beat once here, so that a failure is seen before anything is created; then let the keeper go on.

        Args:
            grant: What is renewed.
            follow: Called in each beat: what was decided meanwhile, by whomever, becomes true; the grant after that.
        """
        self.stop()
        self._grant = grant
        self._follow = follow
        self._provider = None
        self._rests = self._left = False
        self.beat()
        self._stop = self._keeper.keep(self._again, self._settings.renew_for_s / _BEATS_PER_RENEWAL)

    def renew_through(self, provider: Provider) -> None:
        """From now on a beat renews the allocations too."""
        self._provider = provider

    def all_there(self) -> None:
        """Every machine was just seen: a beat that renewed while they were being asked for counts no more."""
        with self._beating:
            self.renewed = len(self._grant.names) if self._grant else 0

    def hold(self, grant: Grant) -> None:
        """From now on these pieces are renewed: one was replaced."""
        with self._beating:
            self._grant = grant

    def leave(self) -> None:
        """Renew nothing any more, for good; called in a beat: somebody else has decided how long the lease is kept."""
        self._left = True

    def stop(self) -> None:
        """No more beats; waits for one in progress. Idempotent."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
        with self._beating:
            return  # one in progress has ended

    def rest(self, *, resting: bool) -> None:
        """Leave out beats while resting; the end of a rest is a beat. Never raises."""
        ended = self._rests and not resting
        self._rests = resting
        if ended:
            self._again()

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
            self._beat()

    def _again(self) -> None:
        with self._beating:
            if self._stop is None or self._rests:
                return
            try:
                self._beat()
            except MlopsError as error:
                self.error = error
            else:
                self.error = None

    def _beat(self) -> None:
        """Renew before anything else is asked of anybody: a slow S3 must not cost the lease."""
        if self._grant is None:
            return
        failed, trouble = self._renew(), None
        try:
            grant = self._follow(self._grant)
            if grant != self._grant:
                self._grant = grant
                failed = self._renew()
        except MlopsError as error:
            trouble = error
        if failed is not None:
            raise failed
        if not self._left and self._now() <= self._grant.request.deadline:
            self._write(self._grant)
        if trouble is not None:
            raise trouble

    def _renew(self) -> MlopsError | None:
        """Renew every allocation before the deadline; what went wrong, if something did."""
        grant, provider = self._grant, self._provider
        if grant is None or provider is None or self._left or self._now() > grant.request.deadline:
            return None
        try:
            self.renewed = provider.renew(grant)
        except MlopsError as error:
            return error
        return None

    def _write(self, grant: Grant) -> None:
        body = heartbeat_of(grant, renewed_until=self._now() + timedelta(seconds=self._settings.renew_for_s))
        try:
            self._store.put_json(self._key, body)
        except RemoteError:
            if self._provider is None:
                raise
        self._last = self._clock.monotonic()


def heartbeat_of(grant: Grant, *, renewed_until: datetime) -> dict[str, object]:
    """What a run writes down with each renewal: the reaper leaves its credential alone until then."""
    return {
        "run_id": str(grant.run_id),
        "generation": grant.generation,
        "deadline": to_iso(grant.request.deadline),
        "renewed_until": to_iso(renewed_until),
    }
