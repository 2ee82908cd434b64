"""How often in a row a machine did not come up, over all runs: ``health/<provider>/<machine>.json`` in the bucket.

Cleaning does not cure what keeps a machine from booting, and whoever gets it next fails, too. So each failure is
counted, by conditional PUT; the first time that it comes up ends the count; one that failed too often leaves the pool.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from mlops_sdk.canonical import to_json
from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.capacity.provider import Fencing, Provider
from mlops_sdk.errors import RemoteError
from mlops_sdk.objects import ObjectStore

_PREFIX: Final = "health"
_TRIES: Final = 5
_KEPT: Final = 10


class MachineHealth:
    """The counts of one provider's machines.

    Args:
        store: The deployment's bucket.
        provider: Name of the provider.
        now: The service's clock.
    """

    def __init__(self, store: ObjectStore, provider: str, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now
        self._prefix = f"{_PREFIX}/{provider}/"

    def note(self, failed: Mapping[str, tuple[str, str]], provider: Provider, *, limit: int) -> None:
        """Count what did not come up, and take out of the pool what did not for the last time. Never raises for S3.

        Args:
            failed: Machine and what was seen of it, by the piece of a lease that it was to be.
            provider: Through a login that may take machines out.
            limit: Failures in a row.
        """
        for resource, (node_id, seen) in failed.items():
            with suppress(RemoteError):  # the next one who gets it counts, too
                count = self.failed(node_id, resource, seen=seen)
                if count >= limit and isinstance(provider, Fencing):
                    provider.take_out(node_id, f"did not come up {count} times in a row: {seen}")

    def failed(self, node_id: str, resource: str, *, seen: str) -> int:
        """Count one more failure; how many there are in a row. Told again of the same piece, it counts once.

        Args:
            node_id: The machine.
            resource: Name of the piece of a lease that it was to be.
            seen: The provider's words.
        """
        key = f"{self._prefix}{node_id}.json"
        for _ in range(_TRIES):
            found = self._store.get_with_etag(key)
            failures = _failures(found[0]) if found is not None else []
            if resource in {item.get("resource") for item in failures}:
                return len(failures)
            failures = [*failures, {"resource": resource, "seen": seen, "at": to_iso(self._now())}][-_KEPT:]
            body = to_json({"version": 1, "failures": failures})
            if found is None:
                done = self._store.put_if_absent(key, body)
            else:
                done = self._store.put_if_match(key, body, found[1]) is not None
            if done:
                return len(failures)
        return 0  # others count the same machine at this moment: they see to it

    def came_up(self, node_ids: Collection[str]) -> None:
        """These work: what was counted of them counts no more."""
        for info in list(self._store.list(self._prefix)):
            if info.key.removeprefix(self._prefix).removesuffix(".json") in node_ids:
                self._store.delete(info.key)


def _failures(body: bytes) -> list[dict[str, Any]]:
    """What is stored; nonsense counts nothing."""
    try:
        return list(json.loads(body)["failures"])
    except (ValueError, KeyError, TypeError):
        return []
