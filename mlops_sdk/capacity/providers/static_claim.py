"""The claim on a host of the fixed pool: what its one object in S3 says, and what follows from it. Pure."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import MARKER, Marker, from_iso, to_iso


class ClaimState(enum.Enum):
    """Whose a host is."""

    FREE = "free"
    HELD = "held"
    OUT = "out"  # it could not be cleaned: nobody gets it until somebody looks (`mlops lease clean`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What a host was like before a lease touched it: what cleaning brings it back to.

    Attributes:
        authorized_keys: The account's file.
        processes: Of the account, as ``pid:start time``.
        files: Of the account, in the places where anybody may leave some.
        image: What the host runs.
    """

    authorized_keys: str = ""
    processes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    image: str = ""

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {
            "authorized_keys": self.authorized_keys,
            "processes": list(self.processes),
            "files": list(self.files),
            "image": self.image,
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Before:
        """From a stored claim."""
        return cls(
            authorized_keys=str(raw["authorized_keys"]),
            processes=tuple(str(item) for item in raw["processes"]),
            files=tuple(str(item) for item in raw.get("files", ())),
            image=str(raw["image"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostClaim:
    """Who has a host, since when, and what has to be undone.

    Attributes:
        host: Its name.
        state: Whose it is.
        id: Of this claim; another lease on the same host has another.
        name: Under which it is leased.
        marker: Of the lease; None while nobody has the host.
        created_at: When it was claimed.
        used: Something of the lease may be on the host: it has to be cleaned before the next one.
        ready: The lease's keys are on it.
        before: What it was like before; None when nobody could look.
        cleaned_at: When the host was last seen clean after a lease.
        words: Why it is out of the pool, or what the last cleaning found.
    """

    host: str
    state: ClaimState = ClaimState.FREE
    id: str = ""
    name: str = ""
    marker: Marker | None = None
    created_at: str = ""
    used: bool = False
    ready: bool = False
    before: Before | None = field(default=None, repr=False)
    cleaned_at: datetime | None = None
    words: str = ""

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {
            "host": self.host,
            "state": self.state.value,
            "id": self.id,
            "name": self.name,
            MARKER: self.marker.to_json() if self.marker else None,
            "created_at": self.created_at,
            "used": self.used,
            "ready": self.ready,
            "before": self.before.to_json() if self.before else None,
            "cleaned_at": to_iso(self.cleaned_at) if self.cleaned_at else "",
            "words": self.words,
        }

    @classmethod
    def parse(cls, host: str, raw: Any) -> HostClaim:
        """From a stored object; one that cannot be read is out of the pool, never free."""
        try:
            return cls(
                host=host,
                state=ClaimState(raw["state"]),
                id=str(raw["id"]),
                name=str(raw["name"]),
                marker=Marker.parse(raw),
                created_at=str(raw["created_at"]),
                used=bool(raw["used"]),
                ready=bool(raw["ready"]),
                before=Before.parse(raw["before"]) if raw["before"] else None,
                cleaned_at=from_iso(raw["cleaned_at"]) if raw["cleaned_at"] else None,
                words=str(raw["words"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            return cls(host=host, state=ClaimState.OUT, used=True, words=f"its claim cannot be read: {error!r}")

    def freed(self, *, cleaned_at: datetime | None, words: str = "") -> HostClaim:
        """The host without a lease."""
        return HostClaim(host=self.host, cleaned_at=cleaned_at or self.cleaned_at, words=words)


def age(claim: HostClaim) -> tuple[str, str]:
    """Of several claims of one name the oldest counts: two processes that look at the same time agree on one."""
    return (claim.created_at, claim.id)


def in_turn(hosts: Iterable[str], name: str) -> list[str]:
    """Hosts in an order that is the same for everybody who claims one under this name, and another for other names.

    So two processes of one run go for the same host, where one of them wins; two runs rarely do.
    """
    return sorted(hosts, key=lambda host: hashlib.sha256(f"{name} {host}".encode()).digest())


def judge(claim: HostClaim | None, *, deployed: bool, since: datetime | None, skew_s: float) -> Outcome:
    """How a lease ended that is not on its host any more, from what the host's object shows now."""
    if not deployed:
        return Outcome.NEVER_DEPLOYED
    if claim is None:
        return Outcome.UNPROVEN
    if claim.state is ClaimState.OUT:
        return Outcome.NOT_CLEAN
    if claim.cleaned_at is None:
        return Outcome.UNPROVEN
    if since is not None and claim.cleaned_at < since - timedelta(seconds=skew_s):
        return Outcome.UNPROVEN
    return Outcome.CLEANED
