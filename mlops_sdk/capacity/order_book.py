"""The orders about a lease as an object in S3, ``orders/<run>-g<generation>.json``, changed by conditional PUT."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from mlops_sdk.canonical import to_json
from mlops_sdk.capacity.orders import Orders
from mlops_sdk.errors import DamagedObject, RemoteError, ServiceUnavailable
from mlops_sdk.objects import ObjectStore

_TRIES: Final = 20


class OrderBook:
    """The orders about one generation of a run.

    Args:
        store: The deployment's bucket.
        run_key: Whose.
        generation: Of its lease.
    """

    def __init__(self, store: ObjectStore, run_key: str, generation: int) -> None:
        self._store = store
        self._key = f"orders/{run_key}-g{generation}.json"

    def read(self) -> Orders:
        """What was decided; empty while nothing was.

        Raises:
            DamagedObject: the object is not what it should be.
        """
        found = self._store.get(self._key)
        return Orders() if found is None else self._parse(found)

    def change(self, decide: Callable[[Orders], Orders]) -> Orders:
        """Decide on what is there, and write that down; looks and decides again when somebody else was faster.

        What `decide` raises comes out of here, and nothing is changed.

        Raises:
            DamagedObject: the object is not what it should be.
            ServiceUnavailable: somebody else was faster each time.
        """
        for _ in range(_TRIES):
            found = self._store.get_with_etag(self._key)
            before = Orders() if found is None else self._parse(found[0])
            after = decide(before)
            if after == before:
                return after
            body = to_json(after.to_json())
            if found is None:
                if self._store.put_if_absent(self._key, body):
                    return after
            elif self._store.put_if_match(self._key, body, found[1]) is not None:
                return after
        raise ServiceUnavailable(
            f"object {self._key!r} could not be changed",
            seen=f"{_TRIES} times in a row somebody else changed it at the same moment",
            next_step="try again",
        )

    def forget(self) -> None:
        """Remove them: the lease is over. One that cannot be removed is of no use to anybody, and does no harm."""
        with suppress(RemoteError):
            self._store.delete(self._key)

    def _parse(self, body: bytes) -> Orders:
        try:
            return Orders.parse(json.loads(body))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedObject(
                f"object {self._key!r} does not hold the orders about a lease",
                seen=f"{type(error).__name__}: {error}",
                next_step="remove it: the lease then goes on as it was asked for",
            ) from error
