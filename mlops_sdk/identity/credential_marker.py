"""Whose an application credential is, and when the reaper may revoke it: its run is dead, or its time over. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from mlops_sdk.capacity.lease import EndReason, from_iso, overdue, to_iso


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialMarker:
    """Whose credential it is: kept in its description, because Keystone has no other room."""

    run_id: str
    deployment_id: str
    generation: int
    created_at: datetime
    deadline: datetime

    def __str__(self) -> str:
        raw = {
            "run_id": self.run_id,
            "deployment_id": self.deployment_id,
            "generation": self.generation,
            "created_at": to_iso(self.created_at),
            "deadline": to_iso(self.deadline),
        }
        return json.dumps({"mlops": raw}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def parse(cls, description: str) -> CredentialMarker | None:
        """The marker, or None for a description that is not ours."""
        try:
            raw = json.loads(description)["mlops"]
            return cls(
                run_id=str(raw["run_id"]),
                deployment_id=str(raw["deployment_id"]),
                generation=int(raw["generation"]),
                created_at=from_iso(raw["created_at"]),
                deadline=from_iso(raw["deadline"]),
            )
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """What a run's heartbeat object says: which generation lives, until when."""

    generation: int
    renewed_until: datetime

    @classmethod
    def parse(cls, heartbeat: Any | None) -> Alive | None:
        """From the object; None for a missing or unreadable one."""
        if not isinstance(heartbeat, Mapping):
            return None
        try:
            return cls(generation=int(heartbeat["generation"]), renewed_until=from_iso(heartbeat["renewed_until"]))
        except (KeyError, ValueError, TypeError):
            return None


def why_dead(
    marker: CredentialMarker, alive: Alive | None, *, now: datetime, skew_s: float, window_s: float
) -> EndReason | None:
    """Why a run's credential may be revoked by the reaper, or None while its run lives.

    A run without any heartbeat gets `window_s` from the credential's creation to write its first one. A credential of
    an older generation than the one that lives was left by a crash.
    """
    if alive is not None and alive.generation > marker.generation:
        return EndReason.NODE_FAILED
    first = marker.created_at + timedelta(seconds=window_s)
    renewed_until = alive.renewed_until if alive is not None else first
    return overdue(deadline=marker.deadline, renewed_until=renewed_until, now=now, skew_s=skew_s)
