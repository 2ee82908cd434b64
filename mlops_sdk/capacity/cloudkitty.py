"""CloudKitty, where a cloud has it: our prices as its rating rules.

CloudKitty multiplies what it collects by prices that its ``hashmap`` module is told. It collects `mlops_node_seconds`
(from `mlops metrics`) through Prometheus; this module keeps one rule for each class of machine: service
``mlops_node_seconds``, field ``resource_class``, one flat mapping a class. Everything is looked up before it is made.
Rules of other services and fields are never touched.

Reference: https://docs.openstack.org/cloudkitty/latest/api-reference/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mlops_sdk.cloud import Cloud
from mlops_sdk.errors import RemoteError

SERVICE: Final = "mlops_node_seconds"
FIELD: Final = "resource_class"
_RATING: Final = "rating"
_HASHMAP: Final = "/v1/rating/module_config/hashmap"
_MODULE: Final = "/v1/rating/modules/hashmap"
_FOUND, _GONE, _TAKEN = 302, 404, 409


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What publishing has changed, by resource class; all empty when CloudKitty had our prices already."""

    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.replaced or self.removed)


class CloudKitty:
    """The rating service of one cloud, through a login that may change rating rules (``rating:update_module``).

    Args:
        cloud: The login; its catalogue has a service of type ``rating``.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def publish(self, prices: Mapping[str, float]) -> Changed:
        """Make CloudKitty rate machines by these prices of a second, by resource class. Idempotent.

        A price that changed is a new rule from now on; what was rated before stays as it was.

        Raises:
            AccessDenied: the login may not change rating rules.
            RemoteError: the cloud has no rating service, or it refused.
        """
        self._enable()
        field_id = self._field(self._service())
        there = self._mappings(field_id)
        wanted = {name: price for name, price in prices.items() if price > 0}
        stale = {name for name, (_, price) in there.items() if wanted.get(name) != price}
        for name in sorted(stale):
            self._cloud.request(_RATING, "DELETE", f"{_HASHMAP}/mappings/{there[name][0]}", accept=(_GONE,))
        missing = {name for name in wanted if name not in there or name in stale}
        for name in sorted(missing):
            body = {"field_id": field_id, "value": name, "type": "flat", "cost": repr(wanted[name])}
            self._cloud.request(_RATING, "POST", f"{_HASHMAP}/mappings", body=body, accept=(_TAKEN,))
        return Changed(
            added=tuple(sorted(missing - stale)),
            replaced=tuple(sorted(missing & stale)),
            removed=tuple(sorted(stale - missing)),
        )

    def published(self) -> dict[str, float]:
        """The prices by which CloudKitty rates machines; empty when it was never told any."""
        service_id = self._find("services", SERVICE, "service_id")
        field_id = self._find("fields", FIELD, "field_id", service_id=service_id) if service_id else ""
        return {name: price for name, (_, price) in self._mappings(field_id).items()} if field_id else {}

    def _enable(self) -> None:
        module = self._cloud.request(_RATING, "GET", _MODULE).body
        if not module.get("enabled"):
            body = {"module_id": "hashmap", "enabled": True}
            self._cloud.request(_RATING, "PUT", _MODULE, body=body, accept=(_FOUND,))

    def _service(self) -> str:
        return self._ensure("services", SERVICE, "service_id")

    def _field(self, service_id: str) -> str:
        return self._ensure("fields", FIELD, "field_id", service_id=service_id)

    def _ensure(self, kind: str, name: str, id_key: str, **owner: str) -> str:
        """Its id; made if there is none. Of two who make it at once one is told that it is taken, and looks again."""
        if not self._find(kind, name, id_key, **owner):
            body = {"name": name, **owner}
            self._cloud.request(_RATING, "POST", f"{_HASHMAP}/{kind}", body=body, accept=(_TAKEN,))
        found = self._find(kind, name, id_key, **owner)
        if not found:
            raise RemoteError(
                f"CloudKitty did not keep {kind.removesuffix('s')} {name!r} of its hashmap module",
                next_step="see CloudKitty's log",
            )
        return found

    def _find(self, kind: str, name: str, id_key: str, **owner: str) -> str:
        items = self._list(kind, **owner)
        return next((str(item[id_key]) for item in items if item.get("name") == name), "")

    def _mappings(self, field_id: str) -> dict[str, tuple[str, float]]:
        """Id and price by value."""
        items = self._list("mappings", field_id=field_id)
        return {str(item["value"]): (str(item["mapping_id"]), float(item["cost"])) for item in items}

    def _list(self, kind: str, **owner: str) -> list[dict[str, Any]]:
        return list(self._cloud.request(_RATING, "GET", f"{_HASHMAP}/{kind}", params=owner).body.get(kind, []))
