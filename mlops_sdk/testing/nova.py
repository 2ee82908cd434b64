"""Nova, Neutron and Cinder in memory: servers that take time to build and to go, a quota, hosts with so much room."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from mlops_sdk.capacity.device_profiles import SPEC as PROFILE_SPEC
from mlops_sdk.capacity.device_profiles import DeviceProfile
from mlops_sdk.capacity.evidence import Cleaning
from mlops_sdk.capacity.flavors import Flavor, read_offer
from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.capacity.providers.ironic_history import last_cleaning
from mlops_sdk.capacity.providers.ironic_view import Machine
from mlops_sdk.capacity.providers.nova_api import ComputeApi, Limits, Refused, ServerOrder, Stock, VolumeOrder
from mlops_sdk.capacity.providers.nova_cyborg import AcceleratorRequest
from mlops_sdk.capacity.providers.nova_door import Door
from mlops_sdk.capacity.providers.nova_states import Refusal
from mlops_sdk.capacity.providers.nova_view import Action, Port, Server, Volume
from mlops_sdk.errors import SettingsError
from mlops_sdk.remote.ssh import Host
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.faults import FaultScript
from mlops_sdk.testing.nova_cyborg import FakeCyborg
from mlops_sdk.testing.nova_metal import FakeMetal

PLACING_S = 0.4
BUILDING_S = 2.0
ENDING_S = 1.0
NO_HOST = "No valid host was found. There are not enough hosts available."


@dataclass(slots=True, kw_only=True)
class FakeServer:
    """A server, and when what happens to it."""

    order: ServerOrder
    shown: Server
    made_at: float
    deleted_at: float | None = None
    has_room: bool = True


@dataclass(slots=True, kw_only=True)
class FakeNova:
    """The cloud: its state, and how it behaves.

    Attributes:
        clock: Of all its services.
        room: How many servers its hosts hold.
        quota: How many servers the project may have.
        operator: Whether Placement shows its figures to this login.
        host_up: While it is down, servers are forgotten without anybody ending them.
        silent: Whether servers run, but answer no SSH.
        metal: The machines of Ironic behind flavors of whole ones.
        cyborg: What ties cards to servers of flavors with a device profile.
    """

    clock: FakeClock
    room: int = 3
    quota: int | None = 4
    operator: bool = True
    host_up: bool = True
    silent: bool = False
    metal: FakeMetal = field(default_factory=FakeMetal)
    faults: FaultScript = field(default_factory=FaultScript)
    cyborg: FakeCyborg = field(default_factory=FakeCyborg)
    flavors: list[Flavor] = field(default_factory=list[Flavor])
    servers: dict[str, FakeServer] = field(default_factory=dict[str, FakeServer])
    ports: dict[str, Port] = field(default_factory=dict[str, Port])
    volumes: dict[str, Volume] = field(default_factory=dict[str, Volume])
    history: dict[str, list[Action]] = field(default_factory=dict[str, list[Action]])
    overruled: dict[str, Callable[[Server], Server]] = field(default_factory=dict[str, Callable[[Server], Server]])

    def now(self) -> datetime:
        """The clock of its services."""
        return self.clock.now()

    def moved(self) -> None:
        """Bring everything to what it is at this moment."""
        now = self.clock.monotonic()
        self.metal.moved(self.clock)
        for server_id, found in list(self.servers.items()):
            if found.deleted_at is not None and now >= found.deleted_at + ENDING_S:
                self._end(server_id, found)
                continue
            age = now - found.made_at
            if found.shown.status == "BUILD" and age >= PLACING_S and not found.shown.placed:
                if not found.has_room:
                    found.shown = replace(found.shown, status="ERROR", fault=NO_HOST)
                    continue
                found.shown = replace(found.shown, placed=True)
                if found.shown.bare_metal:
                    self.metal.deploy(server_id)
                if found.shown.device_profile:
                    self.cyborg.bind(server_id, found.shown.device_profile)
                self.history[server_id].append(self._event("create", "compute__do_build_and_run_instance"))
            if found.shown.status == "BUILD" and age >= BUILDING_S:
                addresses = tuple(a for port in found.order.ports for a in self.ports[port].addresses)
                found.shown = replace(found.shown, status="ACTIVE", launched=True, addresses=addresses)

    def _end(self, server_id: str, found: FakeServer) -> None:
        if found.shown.placed and self.host_up:
            self.history[server_id].append(self._event("delete", "compute_terminate_instance"))
            self.metal.tear_down(server_id, self.clock)
        del self.servers[server_id]
        self.cyborg.forget(server_id)
        for port in found.order.ports:
            if port in self.ports:
                self.ports[port] = replace(self.ports[port], server="")
        for volume in found.order.volumes:
            self.volumes.pop(volume, None)

    def _event(self, action: str, event: str) -> Action:
        return Action(action=action, event=event, result="Success", finished_at=to_iso(self.clock.now()))


class FakeCompute(ComputeApi):
    """`ComputeApi` on a `FakeNova`; each call is named as in the protocol for its faults.

    Args:
        cloud: Whose.
    """

    def __init__(self, cloud: FakeNova) -> None:
        self._cloud = cloud

    def now(self) -> datetime:
        """See `ComputeApi.now`."""
        return self._cloud.now()

    def list_servers(self, prefix: str = "") -> Iterator[Server]:
        """See `ComputeApi.list_servers`."""
        with self._cloud.faults.call("list_servers"):
            self._cloud.moved()
            shown = [self._show(found) for found in self._cloud.servers.values()]
        return iter([server for server in shown if server.name.startswith(prefix)])

    def get_server(self, server_id: str) -> Server | None:
        """See `ComputeApi.get_server`."""
        with self._cloud.faults.call("get_server"):
            self._cloud.moved()
            found = self._cloud.servers.get(server_id)
            return None if found is None else self._show(found)

    def create_server(self, order: ServerOrder) -> str:
        """See `ComputeApi.create_server`."""
        with self._cloud.faults.call("create_server"):
            cloud = self._cloud
            cloud.moved()
            if cloud.quota is not None and len(cloud.servers) >= cloud.quota:
                raise Refused(Refusal.FULL, f"403 Quota exceeded for instances: already used {len(cloud.servers)}")
            for port in order.ports:
                if port not in cloud.ports or cloud.ports[port].server:
                    raise Refused(Refusal.AGAIN, f"409 Port {port} is in use")
            server_id = str(uuid.uuid4())
            for port in order.ports:
                cloud.ports[port] = replace(cloud.ports[port], server=server_id)
            for volume in order.volumes:
                cloud.volumes[volume] = replace(cloud.volumes[volume], status="in-use", server=server_id)
            flavor = next(flavor for flavor in cloud.flavors if flavor.id == order.flavor)
            shown = Server(
                id=server_id,
                name=order.name,
                status="BUILD",
                created_at=to_iso(cloud.clock.now()),
                metadata=dict(order.metadata),
                flavor=flavor.name,
                bare_metal=bool(read_offer(flavor).machine_class),
                device_profile=(flavor.specs or {}).get(PROFILE_SPEC, ""),
            )
            used = sum(found.has_room for found in cloud.servers.values())
            cloud.servers[server_id] = FakeServer(
                order=order, shown=shown, made_at=cloud.clock.monotonic(), has_room=used < cloud.room
            )
            cloud.history[server_id] = [Action(action="create", event="", result="")]
            return server_id

    def delete_server(self, server_id: str, *, force: bool = False) -> bool:
        """See `ComputeApi.delete_server`."""
        del force
        with self._cloud.faults.call("delete_server"):
            self._cloud.moved()
            found = self._cloud.servers.get(server_id)
            if found is None:
                return False
            if found.deleted_at is None:
                found.deleted_at = self._cloud.clock.monotonic()
            return True

    def actions(self, server_id: str) -> tuple[Action, ...] | None:
        """See `ComputeApi.actions`."""
        with self._cloud.faults.call("actions"):
            known = self._cloud.history.get(server_id)
            return None if known is None else tuple(known)

    def list_ports(self, names: Collection[str] = ()) -> Iterator[Port]:
        """See `ComputeApi.list_ports`."""
        with self._cloud.faults.call("list_ports"):
            self._cloud.moved()
            return iter([port for port in self._cloud.ports.values() if not names or port.name in names])

    def create_port(self, *, name: str, network: str, line: str, groups: Sequence[str], vnic: str = "normal") -> Port:
        """See `ComputeApi.create_port`."""
        del groups, vnic
        with self._cloud.faults.call("create_port"):
            port = Port(
                id=str(uuid.uuid4()),
                name=name,
                line=line,
                network=network,
                addresses=(f"192.0.2.{len(self._cloud.ports) + 1}",),
                created_at=to_iso(self._cloud.clock.now()),
            )
            self._cloud.ports[port.id] = port
            return port

    def set_line(self, port_id: str, line: str) -> bool:
        """See `ComputeApi.set_line`."""
        with self._cloud.faults.call("set_line"):
            if port_id not in self._cloud.ports:
                return False
            self._cloud.ports[port_id] = replace(self._cloud.ports[port_id], line=line)
            return True

    def delete_port(self, port_id: str) -> bool:
        """See `ComputeApi.delete_port`."""
        with self._cloud.faults.call("delete_port"):
            return self._cloud.ports.pop(port_id, None) is not None

    def list_volumes(self, name: str = "") -> Iterator[Volume]:
        """See `ComputeApi.list_volumes`."""
        with self._cloud.faults.call("list_volumes"):
            self._cloud.moved()
            return iter([volume for volume in self._cloud.volumes.values() if not name or volume.name == name])

    def create_volume(self, order: VolumeOrder) -> Volume:
        """See `ComputeApi.create_volume`."""
        with self._cloud.faults.call("create_volume"):
            volume = Volume(
                id=str(uuid.uuid4()),
                name=order.name,
                role=order.role,
                status="available",
                line=order.line,
                created_at=to_iso(self._cloud.clock.now()),
            )
            self._cloud.volumes[volume.id] = volume
            return volume

    def delete_volume(self, volume_id: str) -> bool:
        """See `ComputeApi.delete_volume`."""
        with self._cloud.faults.call("delete_volume"):
            return self._cloud.volumes.pop(volume_id, None) is not None

    def list_flavors(self) -> list[Flavor]:
        """See `ComputeApi.list_flavors`."""
        return list(self._cloud.flavors)

    def limits(self) -> Limits:
        """See `ComputeApi.limits`."""
        quota = self._cloud.quota
        return Limits(servers=None if quota is None else max(0, quota - len(self._cloud.servers)))

    def stock(self, needs: Mapping[str, Mapping[str, int]], traits: Sequence[str]) -> list[Stock] | None:
        """See `ComputeApi.stock`: one host."""
        del traits
        if not self._cloud.operator:
            return None
        self._cloud.moved()
        used = sum(found.has_room for found in self._cloud.servers.values())
        each = {name: amount for wanted in needs.values() for name, amount in wanted.items()}
        capacity = {name: amount * self._cloud.room for name, amount in each.items()}
        return [Stock(root="host", capacity=capacity, used={name: amount * used for name, amount in each.items()})]

    def is_allocated(self, server_id: str) -> bool | None:
        """See `ComputeApi.is_allocated`."""
        return server_id in self._cloud.servers if self._cloud.operator else None

    def machine_under(self, server_id: str) -> Machine | None:
        """See `ComputeApi.machine_under`."""
        with self._cloud.faults.call("machine_under"):
            self._cloud.moved()
            shown = (self._cloud.metal.shown(node) for node in self._cloud.metal.nodes)
            return next((node for node in shown if node is not None and node.instance_id == server_id), None)

    def machine(self, node_id: str) -> tuple[Machine, Cleaning | None] | None:
        """See `ComputeApi.machine`."""
        with self._cloud.faults.call("machine"):
            self._cloud.moved()
            node = self._cloud.metal.shown(node_id)
            return None if node is None else (node, last_cleaning(node, ()))

    def device_profiles(self) -> Mapping[str, DeviceProfile] | str:
        """See `ComputeApi.device_profiles`."""
        with self._cloud.faults.call("device_profiles"):
            return self._cloud.cyborg.shown()

    def accelerator_requests(self, server_id: str = "") -> tuple[AcceleratorRequest, ...] | None:
        """See `ComputeApi.accelerator_requests`."""
        with self._cloud.faults.call("accelerator_requests"):
            self._cloud.moved()
            return self._cloud.cyborg.of(server_id)

    def free_accelerators(self, server_id: str) -> None:
        """See `ComputeApi.free_accelerators`."""
        with self._cloud.faults.call("free_accelerators"):
            self._cloud.cyborg.free(server_id)

    def end_machine(self, node_id: str, server_id: str) -> str:
        """See `ComputeApi.end_machine`."""
        with self._cloud.faults.call("end_machine"):
            if self._cloud.metal.foreign:
                return "403 an owner's member only"
            if node_id in self._cloud.metal.nodes:
                self._cloud.metal.tear_down(server_id, self._cloud.clock)
            return ""

    def find_network(self, name: str) -> str:
        """See `ComputeApi.find_network`."""
        if name == "nowhere":
            raise SettingsError("0 of the cloud's networks are named 'nowhere'", next_step="correct [nova]")
        return f"id of {name}"

    def find_image(self, name: str) -> str:
        """See `ComputeApi.find_image`."""
        return f"id of {name}"

    def address_of(self, server_id: str) -> str:
        """See `ComputeApi.address_of`."""
        return f"http://nova.invalid/v2.1/servers/{server_id}"

    def _show(self, found: FakeServer) -> Server:
        shown = replace(found.shown, task="deleting") if found.deleted_at is not None else found.shown
        overrule = self._cloud.overruled.get(shown.name)
        return overrule(shown) if overrule else shown


class FakeDoor(Door):
    """Every server that runs lets its lease in, unless the cloud is `silent`."""

    def __init__(self, cloud: FakeNova) -> None:
        self._cloud = cloud

    def refuses(self, host: Host) -> str:
        """See `Door.refuses`."""
        del host
        return "no answer in time" if self._cloud.silent else ""
