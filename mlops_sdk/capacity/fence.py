"""Exactly one party gives a resource back: the winner of a conditional PUT on ``fence/<resource id>``.

A claim carries a token of its own, a time after which it counts no more (the claimant died), and what is being given
back, so that a later sweep can finish what a dead claimant began.

The window that remains: a claimant checks its claim, then sends its request. If it is stopped in between for longer
than the claim lasts, another claimant may act as well. Both re-read the owner first and Ironic locks the machine, so
the worst case is a second `deleted` for a machine that is already being torn down, which Ironic refuses.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from mlops_sdk.capacity.lease import from_iso, to_iso
from mlops_sdk.objects import ObjectStore, to_json

PREFIX = "fence/"
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim as stored: who, until when, and what is being given back."""

    resource_id: str
    token: str
    expires_at: datetime
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    etag: str = ""

    def live(self, now: datetime) -> bool:
        """Whether the claim still counts."""
        return now < self.expires_at


class Fence:
    """Claims of one party. Each instance is one claimant.

    Args:
        store: The deployment's bucket.
        now: The service's clock.
        ttl_s: How long a claim counts. At most the renewal time of leases: then a claimant that dies delays the reaper
            no longer than a run that dies.
    """

    def __init__(self, store: ObjectStore, *, now: Callable[[], datetime], ttl_s: float) -> None:
        self._store = store
        self._now = now
        self._ttl_s = ttl_s
        self._token = uuid.uuid4().hex

    def claim(self, resource_id: str, **details: Any) -> Claim | None:
        """Claim a resource, take over an expired claim, or extend our own. None: somebody else is at work on it.

        What an earlier claim says besides stays in it: how far its claimant came.
        """
        key = PREFIX + resource_id
        if self._store.put_if_absent(key, self._body(details)):
            return self.read(resource_id)
        found = self.read(resource_id)
        if found is None:  # released in between: the next round sees what became of the resource
            return None
        if found.token != self._token and found.live(self._now()):
            return None
        etag = self._store.put_if_match(key, self._body({**found.details, **details}), found.etag)
        return None if etag is None else self.read(resource_id)

    def holds(self, claim: Claim) -> bool:
        """Whether this claim is still ours and live, read from the store."""
        found = self.read(claim.resource_id)
        return found is not None and found.token == self._token and found.live(self._now())

    def read(self, resource_id: str) -> Claim | None:
        """The claim on a resource, whoever holds it."""
        found = self._store.get_with_etag(PREFIX + resource_id)
        return None if found is None else _parse(resource_id, *found)

    def drop(self, claim: Claim) -> None:
        """Remove our claim on a resource that is gone. Who claims it later reads the owner first and finds nothing."""
        self._store.delete(PREFIX + claim.resource_id)

    def yield_up(self, claim: Claim) -> None:
        """Give up our claim on a resource that still exists: it expires now, so the next claimant need not wait."""
        body = to_json({"token": claim.token, "expires_at": to_iso(_NEVER), "details": dict(claim.details)})
        self._store.put_if_match(PREFIX + claim.resource_id, body, claim.etag)

    def claims(self) -> Iterator[Claim]:
        """All claims of the deployment."""
        for info in self._store.list(PREFIX):
            claim = self.read(info.key.removeprefix(PREFIX))
            if claim is not None:
                yield claim

    def _body(self, details: Mapping[str, Any]) -> bytes:
        expires_at = self._now() + timedelta(seconds=self._ttl_s)
        return to_json({"token": self._token, "expires_at": to_iso(expires_at), "details": dict(details)})


def _parse(resource_id: str, body: bytes, etag: str) -> Claim:
    """A stored claim; one that cannot be read counts as expired, so that it blocks nobody for ever."""
    try:
        raw = json.loads(body)
        return Claim(
            resource_id=resource_id,
            token=str(raw["token"]),
            expires_at=from_iso(raw["expires_at"]),
            details=raw.get("details", {}),
            etag=etag,
        )
    except (ValueError, KeyError, TypeError):
        return Claim(resource_id=resource_id, token="", expires_at=_NEVER, etag=etag)
