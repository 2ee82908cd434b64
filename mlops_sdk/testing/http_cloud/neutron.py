"""Neutron in memory: the ports of projects on shared networks, with the answers of the real one.

What was seen of Neutron 29 and is obeyed here: names are not unique; a description has at most 255 characters; the call
that creates sets no tags; a port that a server uses cannot be deleted by its project (403), but let go of by it; a port
that was made before its server is left, unbound, when that goes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from mlops_sdk.testing.http_cloud.ironic import START
from mlops_sdk.testing.http_cloud.listing import ident, page
from mlops_sdk.testing.http_cloud.messages import Answer, Call

_LONGEST: Final = 255
_KIND: Final = 0x4E45
_HOST: Final = "neutron.invalid"
_COMPUTE: Final = "compute:nova"


@dataclass(slots=True, kw_only=True)
class FakePort:
    """A port as Neutron keeps it. `device`: id of the server that uses it, "" for none; `by_nova`: made with it."""

    id: str
    name: str
    project: str
    network: str
    description: str
    address: str
    created_at: str
    device: str = ""
    by_nova: bool = False


class FakeNeutron:
    """One Neutron.

    Args:
        monotonic: The world's clock, in seconds.
        networks: Names, in the order of their ids.
        quota: How many ports a project may have.

    Attributes:
        ports: By id.
        networks: Ids by name.
    """

    def __init__(self, monotonic: Callable[[], float], *, networks: Iterable[str] = ("net",), quota: int = 500) -> None:
        self.ports: dict[str, FakePort] = {}
        self.networks = {name: ident(_KIND + 1, number) for number, name in enumerate(networks, 1)}
        self.quota = quota
        self._monotonic = monotonic
        self._numbers = 0

    def bind(self, port_ids: Iterable[str], server: str) -> str:
        """Let a server that is built use these; why it cannot, else ""."""
        for port_id in port_ids:
            port = self.ports.get(port_id)
            if port is None:
                return f"Port {port_id} could not be found."
            if port.device not in {"", server}:
                return f"Port {port_id} is still in use."
            port.device = server
        return ""

    def make_for(self, server: str, networks: Iterable[str], project: str) -> None:
        """Ports that go with the server."""
        for network in networks:
            made = self._make({"network_id": network}, project)
            made.device, made.by_nova = server, True

    def let_go(self, server: str, asked_for: Collection[str] = ()) -> None:
        """A server is gone, or was not built: the ports that were made before it stay.

        Args:
            server: Its id.
            asked_for: Where it was not built: ids of the ports that it was to have. Nova lets go of these whoever uses
                them, so of one that another server has.
        """
        for port in [port for port in self.ports.values() if port.device == server or port.id in asked_for]:
            port.device = ""
            if port.by_nova:
                del self.ports[port.id]

    def handle(self, call: Call, project: str) -> Answer:
        """Carry out one request of somebody who is logged in to a project."""
        kind, _, port_id = call.path.removeprefix("/v2.0/").partition("/")
        if kind == "networks":
            named = call.query.get("name")
            shown = [{"id": i, "name": name} for name, i in self.networks.items() if named in {None, name}]
            return page(kind, shown, call, host=_HOST)
        if kind != "ports":
            return _fault(404, "HTTPNotFound", "The resource could not be found.")
        return self._on_ports(call, project, port_id)

    def _on_ports(self, call: Call, project: str, port_id: str) -> Answer:
        if call.method == "POST":
            return self._create(call.body["port"], project)
        if not port_id:
            return page("ports", [_shown(port) for port in self._asked_for(call.query, project)], call, host=_HOST)
        port = self.ports.get(port_id)
        if port is None or port.project != project:
            return _fault(404, "PortNotFound", f"Port {port_id} could not be found.")
        return self._on_port(port, call)

    def _asked_for(self, query: Mapping[str, str], project: str) -> list[FakePort]:
        names, device = query.get("name"), query.get("device_id")
        wanted = set(names.split(",")) if names is not None else None
        return [
            port
            for port in self.ports.values()
            if port.project == project
            and (wanted is None or port.name in wanted)
            and (device is None or port.device == device)
        ]

    def _create(self, wanted: Mapping[str, Any], project: str) -> Answer:
        if refusal := _too_long(wanted):
            return refusal
        if wanted["network_id"] not in self.networks.values():
            return _fault(404, "NetworkNotFound", f"Network {wanted['network_id']} could not be found.")
        if sum(port.project == project for port in self.ports.values()) >= self.quota:
            return _fault(409, "OverQuota", "Quota exceeded for resources: ['port'].")
        return Answer(status=201, body={"port": _shown(self._make(wanted, project))})

    def _make(self, wanted: Mapping[str, Any], project: str) -> FakePort:
        self._numbers += 1
        made = FakePort(
            id=ident(_KIND, self._numbers),
            name=str(wanted.get("name") or ""),
            project=project,
            network=str(wanted["network_id"]),
            description=str(wanted.get("description") or ""),
            address=f"10.1.{self._numbers // 250}.{self._numbers % 250 + 1}",
            created_at=f"{START + timedelta(seconds=int(self._monotonic())):%Y-%m-%dT%H:%M:%SZ}",
        )
        self.ports[made.id] = made
        return made

    def _on_port(self, port: FakePort, call: Call) -> Answer:
        if call.method == "DELETE":
            if port.device:
                return _fault(403, "PolicyNotAuthorized", "rule:delete_port is disallowed by policy")
            del self.ports[port.id]
            return Answer(status=204)
        if call.method == "PUT":
            wanted = call.body["port"]
            if refusal := _too_long(wanted):
                return refusal
            port.description = str(wanted.get("description", port.description))
            port.device = str(wanted.get("device_id", port.device))
        return Answer(status=200, body={"port": _shown(port)})


def _too_long(wanted: Mapping[str, Any]) -> Answer | None:
    given = str(wanted.get("description") or "")
    if len(given) <= _LONGEST:
        return None
    words = f"Invalid input for description. Reason: '{given}' exceeds maximum length of {_LONGEST}."
    return _fault(400, "HTTPBadRequest", words)


def _fault(status: int, kind: str, words: str) -> Answer:
    return Answer(status=status, body={"NeutronError": {"type": kind, "message": words, "detail": ""}})


def _shown(port: FakePort) -> dict[str, Any]:
    return {
        "id": port.id,
        "name": port.name,
        "project_id": port.project,
        "network_id": port.network,
        "description": port.description,
        "device_id": port.device,
        "device_owner": _COMPUTE if port.device else "",
        "fixed_ips": [{"subnet_id": port.network, "ip_address": port.address}],
        "status": "ACTIVE" if port.device else "DOWN",
        "tags": [],
        "created_at": port.created_at,
    }
