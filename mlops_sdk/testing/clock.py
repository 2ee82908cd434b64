"""A clock that a test moves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

_START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """Time that passes only when somebody sleeps or a test says so."""

    def __init__(self) -> None:
        self._elapsed = 0.0

    def monotonic(self) -> float:
        """Seconds since the start."""
        return self._elapsed

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._elapsed += seconds

    async def asleep(self, seconds: float) -> None:
        """Let time pass, and other tasks have their turn."""
        self.sleep(seconds)
        await asyncio.sleep(0)

    def now(self) -> datetime:
        """The service's clock."""
        return _START + timedelta(seconds=self._elapsed)
