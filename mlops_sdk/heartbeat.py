"""A thread that keeps saying "alive" while its process lives."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mlops_sdk.clock import Clock
from mlops_sdk.errors import MlopsError


class Heartbeat:
    """Calls `beat` every `period_s` until stopped. A beat that fails is tried again at the next one.

    Args:
        beat: Says "alive" outside; raises `MlopsError` when that failed.
        period_s: Between beats.
        clock: Durations.
    """

    def __init__(self, beat: Callable[[], None], *, period_s: float, clock: Clock) -> None:
        self._beat = beat
        self._period_s = period_s
        self._clock = clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._last = clock.monotonic()
        self.error: MlopsError | None = None

    def start(self) -> None:
        """Beat once in this thread (so that a failure is seen at once), then go on in another."""
        self._beat()
        self._last = self._clock.monotonic()
        self._thread = threading.Thread(target=self._run, name="mlops-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more beats; waits for one in progress. Idempotent."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    @property
    def silent_for_s(self) -> float:
        """Since the last beat that worked."""
        return self._clock.monotonic() - self._last

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            try:
                self._beat()
            except MlopsError as error:
                self.error = error
            else:
                self.error = None
                self._last = self._clock.monotonic()
