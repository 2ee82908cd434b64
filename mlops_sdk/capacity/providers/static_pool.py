"""The claims of the fixed pool in S3: one object a host, changed by conditional PUT only."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mlops_sdk.capacity.providers.static_claim import HostClaim
from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.objects import ObjectStore, to_json

PREFIX = "pool/static/"
_READERS = 8
_ATTEMPTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A claim as it is stored; without `etag` nothing is stored yet."""

    claim: HostClaim
    etag: str = ""


class HostPool:
    """The claims on all hosts that anybody ever leased.

    Args:
        store: The deployment's bucket.
        hosts: Names of the hosts of the settings; others are known by what is stored of them.
    """

    def __init__(self, store: ObjectStore, hosts: tuple[str, ...]) -> None:
        self._store = store
        self._hosts = hosts
        self._shown: dict[str, Stored] = {}

    def read(self, host: str) -> Stored:
        """The claim on one host."""
        found = self._store.get_with_etag(_key(host))
        if found is None:
            return Stored(claim=HostClaim(host=host))
        return Stored(claim=HostClaim.parse(host, _json(found[0])), etag=found[1])

    def read_all(self) -> dict[str, Stored]:
        """The claims on all hosts, by host."""
        stored = {info.key.removeprefix(PREFIX).removesuffix(".json") for info in self._store.list(PREFIX)}
        here = sorted(stored)
        with ThreadPoolExecutor(_READERS) as readers:
            found = dict(zip(here, readers.map(self.read, here), strict=True))
        return {host: found.get(host) or Stored(claim=HostClaim(host=host)) for host in sorted({*self._hosts, *stored})}

    def shown(self) -> list[HostClaim]:
        """The claims as one list shows them: only those that have changed since the last call are read.

        For who waits. Whoever acts on a claim reads it.
        """
        listed = {info.key.removeprefix(PREFIX).removesuffix(".json"): info.etag for info in self._store.list(PREFIX)}
        known = {host: stored for host, stored in self._shown.items() if listed.get(host) == stored.etag}
        self._shown = {**known, **{host: self.read(host) for host in listed if host not in known}}
        return [stored.claim for stored in self._shown.values()]

    def put(self, seen: Stored, claim: HostClaim) -> Stored | None:
        """Put a claim in the place of the one that was seen; None when somebody was faster.

        A retry after a lost reply meets its own object: that is a success.
        """
        key = _key(claim.host)
        body = to_json({**claim.to_json(), "change": uuid.uuid4().hex})  # no two states have equal bytes
        if seen.etag:
            etag = self._store.put_if_match(key, body, seen.etag)
            if etag is not None:
                return Stored(claim=claim, etag=etag)
        else:
            self._store.put_if_absent(key, body)
        found = self._store.get_with_etag(key)
        return Stored(claim=claim, etag=found[1]) if found is not None and found[0] == body else None

    def change(self, host: str, claim_id: str, change: Callable[[HostClaim], HostClaim]) -> Stored | None:
        """Change a claim whoever else changes it meanwhile (its heartbeat); None when it is not this claim any more.

        Raises:
            ServiceUnavailable: others were faster every time.
        """
        for _ in range(_ATTEMPTS):
            seen = self.read(host)
            if seen.claim.id != claim_id:
                return None
            stored = self.put(seen, change(seen.claim))
            if stored is not None:
                return stored
        raise ServiceUnavailable(
            f"the claim on host {host!r} could not be changed",
            seen=f"somebody else was faster {_ATTEMPTS} times",
            next_step="try again",
        )


def _key(host: str) -> str:
    return f"{PREFIX}{host}.json"


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
