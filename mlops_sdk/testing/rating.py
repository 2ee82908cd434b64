"""CloudKitty's hashmap API in memory, and the contract that it and the real one fulfil."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlops_sdk.capacity.cloudkitty import CloudKitty
from mlops_sdk.cloud import Cloud, Reply
from mlops_sdk.config import KeystoneSettings
from mlops_sdk.errors import RemoteError
from mlops_sdk.testing.contracts import ContractBroken

_HASHMAP = "/v1/rating/module_config/hashmap/"
_IDS = {"services": "service_id", "fields": "field_id", "mappings": "mapping_id"}


class FakeRating(Cloud):
    """A cloud with a rating service, as far as `CloudKitty` uses it. What was asked is in `calls`."""

    def __init__(self) -> None:
        super().__init__(KeystoneSettings(auth_url="http://keystone.invalid/v3"))
        self.enabled = False
        self.items: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _IDS}
        self.calls: list[tuple[str, str]] = []

    def request(
        self,
        service: str,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str | Sequence[str]] | None = None,
        headers: Mapping[str, str] | None = None,
        accept: Collection[int] = (),
        attempts: int = 0,
    ) -> Reply:
        """As CloudKitty answers."""
        del headers, attempts
        self.calls.append((method, path))
        if service != "rating":
            raise RemoteError(f"the cloud's catalogue has no public endpoint of service type {service!r}")
        reply = self._answer(method, path, body or {}, params or {})
        if reply.status >= 400 and reply.status not in accept:  # noqa: PLR2004 - HTTP: errors
            raise RemoteError(f"rating {method} {path} failed", seen=f"{reply.status}")
        return reply

    def _answer(
        self, method: str, path: str, body: Mapping[str, Any], params: Mapping[str, str | Sequence[str]]
    ) -> Reply:
        if path == "/v1/rating/modules/hashmap":
            if method == "PUT" and "module_id" not in body:
                return Reply(status=400)
            self.enabled = bool(body.get("enabled", self.enabled))
            return Reply(status=302 if method == "PUT" else 200, body={"module_id": "hashmap", "enabled": self.enabled})
        kind, _, ident = path.removeprefix(_HASHMAP).partition("/")
        if method == "POST":
            return self._create(kind, body)
        if method == "DELETE":
            kept = [item for item in self.items[kind] if item[_IDS[kind]] != ident]
            status = 204 if len(kept) < len(self.items[kind]) else 404
            self.items[kind] = kept
            return Reply(status=status)
        found = [i for i in self.items[kind] if all(i.get(name) == value for name, value in params.items())]
        return Reply(status=200, body={kind: found})

    def _create(self, kind: str, body: Mapping[str, Any]) -> Reply:
        same = ("field_id", "value") if kind == "mappings" else ("service_id", "name")
        if any(all(item.get(key) == body.get(key) for key in same if key in body) for item in self.items[kind]):
            return Reply(status=409)
        item = {**body, _IDS[kind]: str(uuid.uuid4())}
        if "cost" in item:
            item["cost"] = f"{float(item['cost']):.28f}"  # it keeps decimals, through a float
        self.items[kind].append(item)
        return Reply(status=201, body=item)


def check_rating(cloud: Cloud) -> None:
    """What `CloudKitty` must do on a cloud that has none of our rules: afterwards it has none again.

    Raises:
        ContractBroken: it does something else.
    """
    rating = CloudKitty(cloud)
    _same(rating.published(), {}, "nothing was published")
    try:
        first = rating.publish({"gpu.a": 0.0083, "gpu.b": 0.5, "free": 0.0})
        _same(first.added, ("gpu.a", "gpu.b"), "what has a price is added")
        _same(rating.published(), {"gpu.a": 0.0083, "gpu.b": 0.5}, "and is there, to the last digit")
        _same(bool(rating.publish({"gpu.a": 0.0083, "gpu.b": 0.5})), False, "publishing again changes nothing")
        second = rating.publish({"gpu.a": 0.01, "gpu.b": 0.5, "gpu.c": 1.0})
        _same(
            (second.added, second.replaced, second.removed), (("gpu.c",), ("gpu.a",), ()), "only what differs changes"
        )
        third = rating.publish({"gpu.a": 0.01})
        _same(third.removed, ("gpu.b", "gpu.c"), "what has no price any more is removed")
        _same(rating.published(), {"gpu.a": 0.01}, "and is gone")
    finally:
        rating.publish({})
    _same(rating.published(), {}, "nothing is left")


def _same(seen: object, expected: object, what: str) -> None:
    if seen != expected:
        raise ContractBroken(f"{what}: expected {expected!r}, saw {seen!r}")
