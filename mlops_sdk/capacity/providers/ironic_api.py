"""Ironic's calls that leases rest on: one narrow protocol, and the real thing over HTTP.

`mlops_sdk.testing.cloud` has a fake that passes the same contract tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from mlops_sdk.capacity.lease import MARKER, Marker, from_iso, to_iso
from mlops_sdk.capacity.providers.ironic_history import HistoryEntry
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine
from mlops_sdk.cloud import Cloud, words_of
from mlops_sdk.errors import RemoteError

# 1.60: allocation owner; 1.56: config drive as a JSON object; 1.52: allocations
_HEADERS = {"X-OpenStack-Ironic-API-Version": "1.60"}
_HISTORY_HEADERS = {"X-OpenStack-Ironic-API-Version": "1.78"}
_HISTORY = 50
_NOT_FOUND = 404
_NOT_ACCEPTABLE = 406
_CONFLICT = 409
_PAGE = 200
_BRIEF_PAGE = 1000  # what Ironic allows by default; it gives fewer where it is told to, and says that there is more
_OF_AN_ALLOCATION = "uuid,name,state,node_uuid,last_error,created_at,extra"
_WHAT_A_MACHINE_IS = "uuid,name,provision_state,instance_info"
_WHERE_A_MACHINE_STANDS = "uuid,name,provision_state,power_state,maintenance,fault,last_error"


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

    def create_allocation(
        self,
        *,
        name: str,
        resource_class: str,
        traits: Sequence[str],
        marker: Marker,
        candidates: Sequence[str] = (),
        owner: str = "",
    ) -> Allocation:
        """Ask for a machine: any of its kind that the owner may have, or one of the candidates. Raises `NameTaken`."""
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

    def list_machines(self, *, brief: bool = False) -> Iterator[Machine]:
        """All that the project sees; `brief`: only what tells where each stands, no properties and no allocation."""
        ...

    def list_unallocated(self) -> Iterator[Machine]:
        """Machines without an allocation: id, name, provision state and `Machine.instance` of each."""
        ...

    def set_instance(self, node_id: str, instance: Mapping[str, Any]) -> None:
        """Say what a machine is to be deployed with, in place of what was said before. Raises `NotYet`."""
        ...

    def deploy(self, node_id: str, config_drive: Mapping[str, Any]) -> None:
        """Start deployment. Raises `NotYet`."""
        ...

    def tear_down(self, node_id: str) -> None:
        """Start tear-down and cleaning. Raises `NotYet`."""
        ...

    def abort(self, node_id: str) -> None:
        """End what a machine waits for; it becomes a failure. Raises `NotYet`."""
        ...

    def manage(self, node_id: str) -> None:
        """Take a machine whose cleaning failed in hand. Raises `NotYet`."""
        ...

    def provide(self, node_id: str) -> None:
        """Lift the maintenance of a machine in hand and start its cleaning. Raises `NotYet`."""
        ...

    def put_out(self, node_id: str, reason: str) -> None:
        """Put a machine into maintenance: nobody gets it until a person lifts that. Raises `NotYet`."""
        ...

    def power_off(self, node_id: str) -> None:
        """Switch a machine off through its BMC, without asking its system. Raises `NotYet`."""
        ...

    def history(self, node_id: str) -> Sequence[HistoryEntry]:
        """The last events of a machine, newest first; empty where Ironic keeps none."""
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
        return (_allocation(raw) for raw in self._pages("allocations", {"fields": _OF_AN_ALLOCATION}, page=_BRIEF_PAGE))

    def create_allocation(
        self,
        *,
        name: str,
        resource_class: str,
        traits: Sequence[str],
        marker: Marker,
        candidates: Sequence[str] = (),
        owner: str = "",
    ) -> Allocation:
        """Ask for a machine. Without an owner, Ironic takes the project of the login."""
        body = {
            "name": name,
            "resource_class": resource_class,
            "traits": list(traits),
            "extra": {MARKER: marker.to_json()},
            **({"candidate_nodes": list(candidates)} if candidates else {}),
            **({"owner": owner} if owner else {}),
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
        # a 409 is no proof that it is gone: the next beat tries again
        reply = self._cloud.request("baremetal", "PATCH", path, body=patch, headers=_HEADERS, accept={_NOT_FOUND})
        return reply.status != _NOT_FOUND

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

    def list_machines(self, *, brief: bool = False) -> Iterator[Machine]:
        """All that the project sees."""
        if brief:
            return (
                _machine(raw) for raw in self._pages("nodes", {"fields": _WHERE_A_MACHINE_STANDS}, page=_BRIEF_PAGE)
            )
        # in full: Ironic fails when asked for the one field `allocation_uuid`
        return (_machine(raw) for raw in self._pages("nodes", {"detail": "True"}))

    def find_machine(self, instance_id: str) -> Machine | None:
        """That which an instance has: an allocation, or a server of Nova."""
        query = {"instance_uuid": instance_id, "detail": "True"}
        return next((_machine(raw) for raw in self._pages("nodes", query)), None)

    def list_unallocated(self) -> Iterator[Machine]:
        """Machines without an allocation."""
        query = {"associated": "False", "fields": _WHAT_A_MACHINE_IS}
        return (_machine(raw) for raw in self._pages("nodes", query, page=_BRIEF_PAGE))

    def set_instance(self, node_id: str, instance: Mapping[str, Any]) -> None:
        """Replace its `instance_info`."""
        patch = [{"op": "replace", "path": "/instance_info", "value": dict(instance)}]
        path = f"/v1/nodes/{node_id}"
        self._change("PATCH", path, patch)

    def deploy(self, node_id: str, config_drive: Mapping[str, Any]) -> None:
        """Start deployment."""
        self._provision(node_id, {"target": "active", "configdrive": dict(config_drive)})

    def tear_down(self, node_id: str) -> None:
        """Start tear-down and cleaning."""
        self._provision(node_id, {"target": "deleted"})

    def abort(self, node_id: str) -> None:
        """End what a machine waits for."""
        self._provision(node_id, {"target": "abort"})

    def manage(self, node_id: str) -> None:
        """Take a machine in hand."""
        self._provision(node_id, {"target": "manage"})

    def provide(self, node_id: str) -> None:
        """Lift the maintenance, then clean: where a cloud forbids to clean in maintenance, the other order fails.

        A machine in hand is given to nobody, in maintenance or not.
        """
        self._maintenance("DELETE", node_id)
        self._provision(node_id, {"target": "provide"})

    def put_out(self, node_id: str, reason: str) -> None:
        """Put a machine into maintenance."""
        self._maintenance("PUT", node_id, {"reason": reason})

    def power_off(self, node_id: str) -> None:
        """Switch a machine off. Ironic answers before its BMC has."""
        self._change("PUT", f"/v1/nodes/{node_id}/states/power", {"target": "power off"})

    def history(self, node_id: str) -> Sequence[HistoryEntry]:
        """The last events of a machine."""
        reply = self._cloud.request(
            "baremetal",
            "GET",
            f"/v1/nodes/{node_id}/history",
            params={"detail": "True", "sort_key": "created_at", "sort_dir": "desc", "limit": str(_HISTORY)},
            headers=_HISTORY_HEADERS,
            accept={_NOT_FOUND, _NOT_ACCEPTABLE},
        )
        if reply.status in {_NOT_FOUND, _NOT_ACCEPTABLE}:
            return ()
        return tuple(
            HistoryEntry(
                at=from_iso(str(raw["created_at"])),
                kind=str(raw.get("event_type") or ""),
                words=str(raw.get("event") or ""),
                error=str(raw.get("severity") or "").upper() == "ERROR",
            )
            for raw in reply.body.get("history", ())
        )

    def _maintenance(self, method: str, node_id: str, body: Mapping[str, Any] | None = None) -> None:
        self._change(method, f"/v1/nodes/{node_id}/maintenance", body)

    def _provision(self, node_id: str, body: Mapping[str, Any]) -> None:
        self._change("PUT", f"/v1/nodes/{node_id}/states/provision", dict(body))

    def _change(self, method: str, path: str, body: Any) -> None:
        # 400: "the requested action can not be performed while the node is in state ..."
        reply = self._cloud.request("baremetal", method, path, body=body, headers=_HEADERS, accept={_CONFLICT, 400})
        if reply.status in {_CONFLICT, 400}:
            raise NotYet(f"{reply.status} {words_of(reply.body)}")

    def address_of(self, node_id: str) -> str:
        """The machine in Ironic's API."""
        return f"{self._cloud.endpoint('baremetal')}/v1/nodes/{node_id}"

    def _get(self, path: str) -> dict[str, Any] | None:
        reply = self._cloud.request("baremetal", "GET", path, headers=_HEADERS, accept={_NOT_FOUND})
        return None if reply.status == _NOT_FOUND else reply.body

    def _pages(self, collection: str, params: Mapping[str, str], *, page: int = _PAGE) -> Iterator[dict[str, Any]]:
        marker = ""
        while True:
            query = {**params, "limit": str(page), **({"marker": marker} if marker else {})}
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
        target_power_state=str(raw.get("target_power_state") or ""),
        locked=bool(raw.get("reservation")) and not str(raw.get("reservation")).startswith("*"),  # "** Redacted ..."
        maintenance=bool(raw.get("maintenance")),
        maintenance_reason=str(raw.get("maintenance_reason") or ""),
        retired=bool(raw.get("retired")),
        fault=str(raw.get("fault") or ""),
        last_error=str(raw.get("last_error") or ""),
        allocation_id=str(raw.get("allocation_uuid") or ""),
        instance_id=str(raw.get("instance_uuid") or ""),
        owner=str(raw.get("owner") or ""),
        resource_class=str(raw.get("resource_class") or ""),
        traits=tuple(sorted(raw.get("traits") or ())),
        properties=raw.get("properties") or {},
        extra=raw.get("extra") or {},
        instance=raw.get("instance_info") or {},
        checked_at=_checked_at(raw),
    )


def _checked_at(raw: Mapping[str, Any]) -> datetime | None:
    """A machine becomes `available` when its cleaning ends well."""
    moments = [raw.get("inspection_finished_at")]
    if raw.get("provision_state") == "available":
        moments.append(raw.get("provision_updated_at"))
    return max((from_iso(str(moment)) for moment in moments if moment), default=None)
