"""How often a machine whose cleaning failed is cleaned again before it leaves the pool. Pure.

The count is kept in the claim on the fence, which whoever cleans must hold anyway: one conditional PUT claims and
counts, survives every crash, needs no right to change the node, and ends with the claim when the machine is clean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from mlops_sdk.capacity.lease import from_iso, to_iso
from mlops_sdk.capacity.providers.ironic_states import OURS
from mlops_sdk.capacity.providers.ironic_view import Machine

REASON_LENGTH = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """How often it was tried, and when last."""

    made: int = 0
    last_at: datetime | None = None

    def another(self, now: datetime) -> Tries:
        """One more, which begins now."""
        return Tries(made=self.made + 1, last_at=now)

    def to_json(self) -> dict[str, Any]:
        """As a claim keeps it."""
        return {"recleans": self.made, "recleaned_at": to_iso(self.last_at) if self.last_at else ""}

    @classmethod
    def parse(cls, details: Mapping[str, Any]) -> Tries:
        """From a claim; one that says nothing of it, or nonsense, counts none."""
        try:
            moment = str(details.get("recleaned_at") or "")
            return cls(made=int(details.get("recleans") or 0), last_at=from_iso(moment) if moment else None)
        except (TypeError, ValueError):
            return cls()


def may_try(tries: Tries, *, now: datetime, limit: int, pause_s: float) -> bool:
    """Whether to clean once more now. The first time at once, then after a pause that doubles: BMCs restart, too.

    Example:
        >>> from datetime import UTC
        >>> may_try(Tries(made=3), now=datetime(2026, 1, 1, tzinfo=UTC), limit=3, pause_s=60)
        False
    """
    if tries.made >= limit:
        return False
    if tries.made == 0 or tries.last_at is None:
        return True
    return now >= tries.last_at + timedelta(seconds=pause_s * 2 ** (tries.made - 1))


def reason_to_put_out(machine: Machine, resource: str, made: int) -> str:
    """What a person reads in the machine's maintenance reason."""
    times = f", and {made} times again" if made else ""
    last = f": {machine.last_error}" if machine.last_error else ""
    text = f"{OURS}{machine.provision_state!r} after {resource}{times}{last}"
    return text[:REASON_LENGTH]
