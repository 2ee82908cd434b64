"""`ComputeApi` over HTTP: plain requests, no hidden polling, no hidden retries of a conflict."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from mlops_sdk.capacity.device_profiles import DeviceProfile
from mlops_sdk.capacity.evidence import Cleaning
from mlops_sdk.capacity.flavors import Flavor
from mlops_sdk.capacity.providers.ironic_view import Machine
from mlops_sdk.capacity.providers.nova_api import ComputeApi, Limits, Refused, ServerOrder, Stock, VolumeOrder
from mlops_sdk.capacity.providers.nova_cyborg import AcceleratorRequest
from mlops_sdk.capacity.providers.nova_cyborg_http import CyborgHttp
from mlops_sdk.capacity.providers.nova_metal_http import MetalHttp
from mlops_sdk.capacity.providers.nova_read import (
    flavor_of,
    left_of,
    port_of,
    server_of,
    stock_of,
    volume_of,
)
from mlops_sdk.capacity.providers.nova_states import Refusal, refusal_of
from mlops_sdk.capacity.providers.nova_view import ROLE, Action, Port, Server, Volume
from mlops_sdk.cloud import Cloud, Reply, words_of
from mlops_sdk.errors import AccessDenied, RemoteError, ServiceUnavailable, SettingsError

# 2.79 (Train): actions of servers that are gone (2.21), their events for owners (2.51), the flavor with its extra specs
# in a server (2.47) and in the list (2.61), servers of a cell that is away shown as UNKNOWN (2.69)
_NOVA: Final = {"OpenStack-API-Version": "compute 2.79"}
_PLACEMENT: Final = {"OpenStack-API-Version": "placement 1.36"}
_REFUSALS: Final = frozenset({400, 403, 409, 413, 429})
_NOT_FOUND: Final = 404
_DENIED: Final = 403
_TOO_MANY: Final = 429  # of what may be sent again: `Cloud` does, after a while
_NO_SUCH_CLASS: Final = 400  # Placement's answer for a class of which nobody has ever reported any
_PAGE: Final = 500
_LISTINGS: Final = 5
_NAMES: Final = 40  # in one query
_ID: Final = re.compile(r"^[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$")


class NovaHttp(ComputeApi):
    """The real services, through one login.

    Args:
        cloud: Through it.
        service: A login with the role of a service, for what Cyborg grants nobody else.
    """

    def __init__(self, cloud: Cloud, service: Cloud | None = None) -> None:
        self._cloud = cloud
        self._metal = MetalHttp(cloud)
        self._cyborg = CyborgHttp(cloud, service)
        self._found: dict[tuple[str, str], str] = {}
        self._blind = False  # Placement has refused this login once

    def now(self) -> datetime:
        """Nova's clock, from the `Date` of its last reply; asks for one if there was none."""
        moment = self._cloud.now("compute")
        if moment is None:
            self._get("compute", "/v2.1/limits")
            moment = self._cloud.now("compute")
        if moment is None:
            raise RemoteError(
                "Nova's replies have no Date header",
                seen="GET /v2.1/limits",
                next_step="check what stands between us and Nova; leases are judged by Nova's clock",
            )
        return moment

    def list_servers(self, prefix: str = "") -> Iterator[Server]:
        """See `ComputeApi.list_servers`."""
        query = {"name": f"^{prefix}"} if prefix else {}
        for raw in self._pages("compute", "/v2.1/servers/detail", "servers", query):
            server = server_of(raw)
            if server.name.startswith(prefix):
                yield server

    def get_server(self, server_id: str) -> Server | None:
        """See `ComputeApi.get_server`."""
        body = self._get("compute", f"/v2.1/servers/{server_id}")
        return None if body is None else server_of(body["server"])

    def create_server(self, order: ServerOrder) -> str:
        """See `ComputeApi.create_server`."""
        server: dict[str, Any] = {
            "name": order.name,
            "flavorRef": order.flavor,
            "networks": [{"port": port} for port in order.ports],
            "metadata": dict(order.metadata),
            "user_data": base64.b64encode(order.user_data.encode()).decode(),
            "config_drive": True,
        }
        if order.image:
            server["imageRef"] = order.image
        if order.zone:
            server["availability_zone"] = order.zone
        if order.volumes:
            server["block_device_mapping_v2"] = _mapping(order)
        body = self._change("compute", "POST", "/v2.1/servers", {"server": server}, once=True).body
        return str(body["server"]["id"])

    def delete_server(self, server_id: str, *, force: bool = False) -> bool:
        """See `ComputeApi.delete_server`."""
        path = f"/v2.1/servers/{server_id}"
        if force:
            return self._change("compute", "POST", f"{path}/action", {"forceDelete": None}).status != _NOT_FOUND
        return self._change("compute", "DELETE", path).status != _NOT_FOUND

    def actions(self, server_id: str) -> tuple[Action, ...] | None:
        """See `ComputeApi.actions`: the events of what made and what ended it."""
        path = f"/v2.1/servers/{server_id}/os-instance-actions"
        body = self._get("compute", path, hidden=True)
        if body is None:
            return None
        found: list[Action] = []
        for raw in body.get("instanceActions", []):
            name = str(raw["action"])
            if name not in {"create", "delete"}:
                continue
            shown = self._get("compute", f"{path}/{raw['request_id']}", hidden=True) or {}
            events = shown.get("instanceAction", {}).get("events")
            if events is None:  # without them nobody can tell whether a host ever had it
                return None
            found.append(Action(action=name, event="", result=""))
            found.extend(
                Action(
                    action=name,
                    event=str(event["event"]),
                    result=str(event.get("result") or ""),
                    finished_at=str(event.get("finish_time") or ""),
                )
                for event in events
            )
        return tuple(found)

    def list_ports(self, names: Collection[str] = ()) -> Iterator[Port]:
        """See `ComputeApi.list_ports`."""
        wanted = list(names)
        groups = [wanted[start : start + _NAMES] for start in range(0, len(wanted), _NAMES)] or [[]]
        for group in groups:
            for raw in self._pages("network", "/v2.0/ports", "ports", {"name": group} if group else {}):
                yield port_of(raw)

    def create_port(self, *, name: str, network: str, line: str, groups: Sequence[str], vnic: str = "normal") -> Port:
        """See `ComputeApi.create_port`."""
        port: dict[str, Any] = {"name": name, "network_id": network, "description": line}
        if vnic != "normal":
            port["binding:vnic_type"] = vnic
        if groups:
            port["security_groups"] = [self._find("network", "/v2.0/security-groups", name) for name in groups]
        return port_of(self._change("network", "POST", "/v2.0/ports", {"port": port}, once=True).body["port"])

    def set_line(self, port_id: str, line: str) -> bool:
        """See `ComputeApi.set_line`."""
        path = f"/v2.0/ports/{port_id}"
        try:
            return self._change("network", "PUT", path, {"port": {"description": line}}).status != _NOT_FOUND
        except Refused as refusal:
            raise ServiceUnavailable(
                f"Neutron did not take the record of a lease, PUT {path}", seen=refusal.words, next_step="try it again"
            ) from refusal

    def delete_port(self, port_id: str) -> bool:
        """See `ComputeApi.delete_port`."""
        path = f"/v2.0/ports/{port_id}"
        try:
            return self._change("network", "DELETE", path).status != _NOT_FOUND
        except AccessDenied as error:  # a member may delete no port that is bound: Nova should have let go of it
            self._change("network", "PUT", path, {"port": {"device_id": "", "device_owner": ""}})
            raise Refused(Refusal.AGAIN, error.seen) from error

    def list_volumes(self, name: str = "") -> Iterator[Volume]:
        """See `ComputeApi.list_volumes`."""
        if not self._cloud.has("block-storage"):
            return
        query = {"name": name} if name else {}
        for raw in self._pages("block-storage", f"{self._volumes}/detail", "volumes", query):
            volume = volume_of(raw)
            if not name or volume.name == name:
                yield volume

    def create_volume(self, order: VolumeOrder) -> Volume:
        """See `ComputeApi.create_volume`."""
        asked = {"imageRef": order.image, "volume_type": order.kind, "availability_zone": order.zone}
        volume: dict[str, Any] = {key: value for key, value in asked.items() if value}
        volume |= {"name": order.name, "size": order.gib, "description": order.line, "metadata": {ROLE: order.role}}
        reply = self._change("block-storage", "POST", self._volumes, {"volume": volume}, once=True)
        return volume_of(reply.body["volume"])

    def delete_volume(self, volume_id: str) -> bool:
        """See `ComputeApi.delete_volume`."""
        return self._change("block-storage", "DELETE", f"{self._volumes}/{volume_id}").status != _NOT_FOUND

    def list_flavors(self) -> list[Flavor]:
        """See `ComputeApi.list_flavors`."""
        return [flavor_of(raw) for raw in self._pages("compute", "/v2.1/flavors/detail", "flavors", {})]

    def limits(self) -> Limits:
        """See `ComputeApi.limits`."""
        body = self._get("compute", "/v2.1/limits") or {}
        absolute: Mapping[str, int] = body.get("limits", {}).get("absolute", {})
        return Limits(
            servers=left_of(absolute, "maxTotalInstances", "totalInstancesUsed"),
            cores=left_of(absolute, "maxTotalCores", "totalCoresUsed"),
            ram_mb=left_of(absolute, "maxTotalRAMSize", "totalRAMUsed"),
        )

    def stock(self, needs: Mapping[str, Mapping[str, int]], traits: Sequence[str]) -> list[Stock] | None:
        """See `ComputeApi.stock`."""
        query: dict[str, str] = {"group_policy": "none"} if len(needs) > 1 else {}
        for group, wanted in needs.items():
            query[f"resources{group}"] = ",".join(f"{name}:{amount}" for name, amount in wanted.items())
        query["root_required"] = "!COMPUTE_STATUS_DISABLED"
        body = self._placement("/allocation_candidates", query)
        return None if body is None else stock_of(body, traits)

    def is_allocated(self, server_id: str) -> bool | None:
        """See `ComputeApi.is_allocated`."""
        body = self._placement(f"/allocations/{server_id}", {})
        return None if body is None else bool(body.get("allocations"))

    def machine_under(self, server_id: str) -> Machine | None:
        """See `ComputeApi.machine_under`."""
        return self._metal.under(server_id)

    def machine(self, node_id: str) -> tuple[Machine, Cleaning | None] | None:
        """See `ComputeApi.machine`."""
        return self._metal.get(node_id)

    def device_profiles(self) -> Mapping[str, DeviceProfile] | str:
        """See `ComputeApi.device_profiles`."""
        return self._cyborg.profiles()

    def accelerator_requests(self, server_id: str = "") -> tuple[AcceleratorRequest, ...] | None:
        """See `ComputeApi.accelerator_requests`."""
        return self._cyborg.requests(server_id)

    def free_accelerators(self, server_id: str) -> None:
        """See `ComputeApi.free_accelerators`."""
        self._cyborg.free(server_id)

    def end_machine(self, node_id: str, server_id: str) -> str:
        """See `ComputeApi.end_machine`."""
        return self._metal.end(node_id, server_id)

    def find_network(self, name: str) -> str:
        """See `ComputeApi.find_network`."""
        return self._find("network", "/v2.0/networks", name)

    def find_image(self, name: str) -> str:
        """See `ComputeApi.find_image`."""
        return self._find("image", "/v2/images", name)

    def address_of(self, server_id: str) -> str:
        """The server in Nova's API."""
        return f"{self._cloud.endpoint('compute')}/v2.1/servers/{server_id}"

    @property
    def _volumes(self) -> str:
        return f"/v3/{self._cloud.project_id()}/volumes"

    def _find(self, service: Literal["network", "image"], path: str, name: str) -> str:
        known = self._found.get((path, name))
        if known:
            return known
        if _ID.match(name):
            return name
        kind = path.rpartition("/")[2].replace("-", "_")
        found = [str(raw["id"]) for raw in self._pages(service, path, kind, {"name": name})]
        if len(found) != 1:
            raise SettingsError(
                f"{len(found)} of the cloud's {kind} are named {name!r}",
                seen=", ".join(found) or f"GET {path} shows none of this name to this login",
                next_step="correct [nova] in the settings, or name it by its id",
            )
        self._found[path, name] = found[0]
        return found[0]

    def _placement(self, path: str, query: Mapping[str, str]) -> dict[str, Any] | None:
        """None where this login may not look."""
        if self._blind or not self._cloud.has("placement"):
            return None
        try:
            reply = self._cloud.request(
                "placement", "GET", path, params=query, headers=_PLACEMENT, accept={_NO_SUCH_CLASS}
            )
        except AccessDenied:
            self._blind = True
            return None
        return reply.body

    def _get(
        self, service: str, path: str, query: Mapping[str, str] | None = None, *, hidden: bool = False
    ) -> dict[str, Any] | None:
        """None for what is not there, and (`hidden`) for what this login may not see."""
        accept = {_NOT_FOUND, _DENIED} if hidden else {_NOT_FOUND}
        reply = self._cloud.request(service, "GET", path, params=query, headers=_headers(service), accept=accept)
        return None if reply.status in accept else reply.body

    def _change(self, service: str, method: str, path: str, body: Any = None, *, once: bool = False) -> Reply:
        reply = self._cloud.request(
            service,
            method,
            path,
            body=body,
            headers=_headers(service),
            accept=_REFUSALS if once else (_REFUSALS - {_TOO_MANY}) | {_NOT_FOUND},
            attempts=1 if once else 0,
        )
        if reply.status not in _REFUSALS:
            return reply
        words = words_of(reply.body)
        kind = refusal_of(reply.status, words)
        if kind is Refusal.WRONG:
            error = AccessDenied if reply.status == _DENIED else RemoteError
            raise error(
                f"{service} {method} {path} was refused",
                seen=f"{reply.status} {words}",
                next_step="see the service's words; a role, an access rule, the flavor or the settings are wrong",
            )
        raise Refused(kind, f"{reply.status} {words}")

    def _pages(
        self, service: str, path: str, key: str, query: Mapping[str, str | Sequence[str]]
    ) -> Iterator[dict[str, Any]]:
        marker = ""
        while True:
            page = {**query, "limit": str(_PAGE), **({"marker": marker} if marker else {})}
            body = self._page(service, path, page)
            items: list[dict[str, Any]] = body.get(key, [])
            yield from items
            if len(items) < _PAGE and f"{key}_links" not in body and "next" not in body:
                return
            if not items:
                return
            marker = str(items[-1]["id"])

    def _page(self, service: str, path: str, page: Mapping[str, str | Sequence[str]]) -> dict[str, Any]:
        """One page, read again where Neutron answers 404: one of the list went while it was read."""
        words = ""
        for _ in range(_LISTINGS):
            reply = self._cloud.request(
                service, "GET", path, params=page, headers=_headers(service), accept={_NOT_FOUND}
            )
            if reply.status != _NOT_FOUND:
                return reply.body
            words = words_of(reply.body)
        raise ServiceUnavailable(
            f"{service} GET {path} failed {_LISTINGS} times", seen=f"404 {words}", next_step="see the service's log"
        )


def _headers(service: str) -> dict[str, str]:
    return _NOVA if service == "compute" else {}


def _mapping(order: ServerOrder) -> list[dict[str, Any]]:
    """Its disks: the flavor's own with the image on it, then our volumes; without an image the first of these boots."""
    local = {
        "source_type": "image",
        "destination_type": "local",
        "uuid": order.image,
        "boot_index": 0,
        "delete_on_termination": True,
    }
    volumes: list[dict[str, Any]] = [
        {
            "source_type": "volume",
            "destination_type": "volume",
            "uuid": volume,
            "boot_index": 0 if not order.image and number == 0 else -1,
            "delete_on_termination": True,
        }
        for number, volume in enumerate(order.volumes)
    ]
    return [local, *volumes] if order.image else volumes
