"""Ironic's calls that leases rest on: one narrow protocol, and the real thing over HTTP.

`mlops_sdk.testing.cloud` has a fake that passes the same contract tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from mlops_sdk.capacity.lease import MARKER, Allocation, Machine, Marker, to_iso
from mlops_sdk.cloud import Cloud, words_of
from mlops_sdk.errors import RemoteError

# 1.60: allocation owner; 1.56: config drive as a JSON object; 1.52: allocations
_HEADERS = {"X-OpenStack-Ironic-API-Version": "1.60"}
_NOT_FOUND = 404
_CONFLICT = 409
_PAGE = 200


class NameTaken(Exception):
    """A typed signal to the flow: the allocation name exists already, look again."""


class NotYet(Exception):
    """A typed signal to the flow: Ironic cannot do it now (machine locked, or its state forbids it), look again."""


class BaremetalApi(Protocol):
    """The calls that leave the process. All may be sent twice. "Gone" is None or False, never an exception."""

    def now(self) -> datetime:
        """Ironic's clock."""
        ...

    def get_allocation(self, ident: str) -> Allocation | None:
        """By name or id."""
        ...

    def list_allocations(self) -> Iterator[Allocation]:
        """All that the project sees."""
        ...

    def create_allocation(self, *, name: str, resource_class: str, traits: Sequence[str], marker: Marker) -> Allocation:
        """Ask for a machine. Raises `NameTaken`."""
        ...

    def set_times(self, name: str, *, renewed_until: datetime, deadline: datetime | None = None) -> bool:
        """Move the times in an allocation's marker (the deadline only if given); False when the allocation is gone.

        Raises `RemoteError` for an allocation that carries no marker.
        """
        ...

    def delete_allocation(self, name: str) -> bool:
        """Delete; False when it was gone. Raises `NotYet` while its machine is in use."""
        ...

    def get_machine(self, node_id: str) -> Machine | None:
        """By id."""
        ...

    def list_machines(self) -> Iterator[Machine]:
        """All that the project sees."""
        ...

    def deploy(self, node_id: str, config_drive: Mapping[str, Any]) -> None:
        """Start deployment. Raises `NotYet`."""
        ...

    def tear_down(self, node_id: str) -> None:
        """Start tear-down and cleaning. Raises `NotYet`."""
        ...

    def address_of(self, node_id: str) -> str:
        """Where a person who may see it finds this machine."""
        ...


class IronicApi(BaremetalApi):
    """`BaremetalApi` over HTTP: plain requests, no hidden polling, no hidden retries of 409."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def now(self) -> datetime:
        """Ironic's clock, from the `Date` of its last reply; asks for one if there was none."""
        moment = self._cloud.now()
        if moment is None:
            self._cloud.request("baremetal", "GET", "/v1/nodes", params={"limit": "1"}, headers=_HEADERS)
            moment = self._cloud.now()
        if moment is None:
            raise RemoteError(
                "Ironic's replies have no Date header",
                seen="GET /v1/nodes",
                next_step="check what stands between us and Ironic; leases are judged by Ironic's clock",
            )
        return moment

    def get_allocation(self, ident: str) -> Allocation | None:
        """By name or id."""
        body = self._get(f"/v1/allocations/{ident}")
        return None if body is None else _allocation(body)

    def list_allocations(self) -> Iterator[Allocation]:
        """All that the project sees."""
        return (_allocation(raw) for raw in self._pages("allocations", {}))

    def create_allocation(self, *, name: str, resource_class: str, traits: Sequence[str], marker: Marker) -> Allocation:
        """Ask for a machine."""
        body = {
            "name": name,
            "resource_class": resource_class,
            "traits": list(traits),
            "extra": {MARKER: marker.to_json()},
        }
        reply = self._cloud.request(
            "baremetal", "POST", "/v1/allocations", body=body, headers=_HEADERS, accept={_CONFLICT}
        )
        if reply.status == _CONFLICT:
            raise NameTaken(words_of(reply.body))
        return _allocation(reply.body)

    def set_times(self, name: str, *, renewed_until: datetime, deadline: datetime | None = None) -> bool:
        """Move the times; "replace" fails on what is not there (RFC 6902): only a marker is ever changed."""
        times = {"renewed_until": renewed_until, **({"deadline": deadline} if deadline else {})}
        patch = [
            {"op": "replace", "path": f"/extra/{MARKER}/{key}", "value": to_iso(moment)}
            for key, moment in times.items()
        ]
        path = f"/v1/allocations/{name}"
        reply = self._cloud.request(
            "baremetal", "PATCH", path, body=patch, headers=_HEADERS, accept={_NOT_FOUND, _CONFLICT}
        )
        return reply.status not in {_NOT_FOUND, _CONFLICT}

    def delete_allocation(self, name: str) -> bool:
        """Delete; False when it was gone."""
        path = f"/v1/allocations/{name}"
        reply = self._cloud.request("baremetal", "DELETE", path, headers=_HEADERS, accept={_NOT_FOUND, _CONFLICT, 400})
        if reply.status in {_CONFLICT, 400}:
            raise NotYet(words_of(reply.body))
        return reply.status != _NOT_FOUND

    def get_machine(self, node_id: str) -> Machine | None:
        """By id."""
        body = self._get(f"/v1/nodes/{node_id}")
        return None if body is None else _machine(body)

    def list_machines(self) -> Iterator[Machine]:
        """All that the project sees."""
        # in full: Ironic fails when asked for the one field `allocation_uuid`
        return (_machine(raw) for raw in self._pages("nodes", {"detail": "True"}))

    def deploy(self, node_id: str, config_drive: Mapping[str, Any]) -> None:
        """Start deployment."""
        self._provision(node_id, {"target": "active", "configdrive": dict(config_drive)})

    def tear_down(self, node_id: str) -> None:
        """Start tear-down and cleaning."""
        self._provision(node_id, {"target": "deleted"})

    def _provision(self, node_id: str, body: Mapping[str, Any]) -> None:
        path = f"/v1/nodes/{node_id}/states/provision"
        # 400: "the requested action can not be performed while the node is in state ..."
        reply = self._cloud.request(
            "baremetal", "PUT", path, body=dict(body), headers=_HEADERS, accept={_CONFLICT, 400}
        )
        if reply.status in {_CONFLICT, 400}:
            raise NotYet(f"{reply.status} {words_of(reply.body)}")

    def address_of(self, node_id: str) -> str:
        """The machine in Ironic's API."""
        return f"{self._cloud.endpoint('baremetal')}/v1/nodes/{node_id}"

    def _get(self, path: str) -> dict[str, Any] | None:
        reply = self._cloud.request("baremetal", "GET", path, headers=_HEADERS, accept={_NOT_FOUND})
        return None if reply.status == _NOT_FOUND else reply.body

    def _pages(self, collection: str, params: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        marker = ""
        while True:
            query = {**params, "limit": str(_PAGE), **({"marker": marker} if marker else {})}
            body = self._cloud.request("baremetal", "GET", f"/v1/{collection}", params=query, headers=_HEADERS).body
            items = body.get(collection, [])
            yield from items
            if not items or "next" not in body:
                return
            marker = items[-1]["uuid"]


def _allocation(raw: Mapping[str, Any]) -> Allocation:
    return Allocation(
        id=str(raw["uuid"]),
        name=str(raw.get("name") or ""),
        state=str(raw.get("state") or ""),
        node_id=str(raw.get("node_uuid") or ""),
        last_error=str(raw.get("last_error") or ""),
        created_at=str(raw.get("created_at") or ""),
        extra=raw.get("extra") or {},
    )


def _machine(raw: Mapping[str, Any]) -> Machine:
    return Machine(
        id=str(raw["uuid"]),
        name=str(raw.get("name") or ""),
        provision_state=str(raw.get("provision_state") or "available"),  # the API shows "available" as null before 1.2
        power_state=str(raw.get("power_state") or ""),
        maintenance=bool(raw.get("maintenance")),
        fault=str(raw.get("fault") or ""),
        last_error=str(raw.get("last_error") or ""),
        allocation_id=str(raw.get("allocation_uuid") or ""),
        owner=str(raw.get("owner") or ""),
        resource_class=str(raw.get("resource_class") or ""),
        traits=tuple(sorted(raw.get("traits") or ())),
        properties=raw.get("properties") or {},
        extra=raw.get("extra") or {},
    )
