"""A clock for several who wait side by side."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from mlops_sdk.testing.clock import FakeClock

_SPEED = 50


class FastClock(FakeClock):
    """Real time, fifty times as fast: pauses in threads and in an event loop take their share of it."""

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()

    def monotonic(self) -> float:
        return (time.monotonic() - self._began) * _SPEED

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / _SPEED)

    async def asleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / _SPEED)

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.monotonic())
