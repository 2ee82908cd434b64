"""How often in a row a machine did not come up, over all runs: ``health/<provider>/<machine>.json`` in the bucket.

Cleaning does not cure what keeps a machine from booting, and whoever gets it next fails, too. So each failure is
counted, by conditional PUT; the first time that it comes up ends the count; one that failed too often leaves the pool.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

from mlops_sdk.canonical import to_json
from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.objects import ObjectStore

_PREFIX: Final = "health"
_TRIES: Final = 5
_KEPT: Final = 10


class MachineHealth:
    """The counts of one provider's machines.

    Args:
        store: The deployment's bucket.
        provider: Name of the provider.
    """

    def __init__(self, store: ObjectStore, provider: str) -> None:
        self._store = store
        self._prefix = f"{_PREFIX}/{provider}/"

    def failed(self, node_id: str, resource: str, *, seen: str, at: datetime) -> int:
        """Count one more failure; how many there are in a row. Told again of the same piece, it counts once.

        Args:
            node_id: The machine.
            resource: Name of the piece of a lease that it was to be.
            seen: The provider's words.
            at: When.
        """
        key = f"{self._prefix}{node_id}.json"
        for _ in range(_TRIES):
            found = self._store.get_with_etag(key)
            failures = _failures(found[0]) if found is not None else []
            if resource in {item.get("resource") for item in failures}:
                return len(failures)
            failures = [*failures, {"resource": resource, "seen": seen, "at": to_iso(at)}][-_KEPT:]
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
