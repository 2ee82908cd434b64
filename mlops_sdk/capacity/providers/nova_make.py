"""Makes what one piece of a lease consists of: port, volumes, server. Each look-up-or-create, in this order.

The port comes first because its description is the record of the lease: what dies in between leaves something that
says whose it is and until when.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from mlops_sdk.capacity.config_drive import user_data
from mlops_sdk.capacity.flavors import Flavor
from mlops_sdk.capacity.lease import Marker
from mlops_sdk.capacity.provider import Grant, Party
from mlops_sdk.capacity.providers.ironic_view import Machine
from mlops_sdk.capacity.providers.nova_api import ComputeApi, Refused, ServerOrder, VolumeOrder
from mlops_sdk.capacity.providers.nova_marker import Metal, noted, to_line, to_metadata
from mlops_sdk.capacity.providers.nova_states import Refusal
from mlops_sdk.capacity.providers.nova_view import PORTS, VOLUMES, Port, Server, Volume, age
from mlops_sdk.config import NovaSettings
from mlops_sdk.errors import NodeFailed, ServiceUnavailable
from mlops_sdk.identity.ssh_keys import client_key, host_key, peer_key

_OF_USE = {"creating", "downloading", "available"}
"""States of a volume that can still be taken; one that is reserved is another server's, asked for before."""


class Maker:
    """Makes the pieces of one grant.

    Args:
        api: The cloud.
        party: Who acts.
        nova: How servers are made here.
        grant: For whom.
        flavor: Of the servers.
        metal: Whether they are whole machines of Ironic.
    """

    def __init__(
        self, api: ComputeApi, party: Party, nova: NovaSettings, grant: Grant, flavor: Flavor, *, metal: bool = False
    ) -> None:
        self._api = api
        self._party = party
        self._nova = nova
        self._grant = grant
        self._flavor = flavor
        self._metal = metal

    def make(self, index: int) -> None:
        """Ask for everything of one piece that is not there. Returns before a server is built.

        Raises:
            Refused: a quota is full, or not now: a volume is still being filled, say. Call it again.
            ServiceUnavailable: no answer; nobody knows whether there is a server now.
        """
        name = self._grant.name(index)
        networks = {
            self._api.find_network(name): self._nova.vnic_types.get(name, "normal") for name in self._nova.networks
        }
        image = self._api.find_image(self._nova.image)
        ports = self._ports(index, networks)
        volumes = self._volumes(index, image)
        self._check_filled(volumes)
        marker = self._marker(index)
        order = ServerOrder(
            name=name,
            flavor=self._flavor.id,
            image="" if self._nova.root_volume_gib else image,
            ports=tuple(port.id for port in ports),
            volumes=tuple(volume.id for volume in volumes),
            metadata={
                **to_metadata(marker),
                PORTS: " ".join(port.id for port in ports),
                VOLUMES: " ".join(volume.id for volume in volumes),
            },
            zone=self._nova.availability_zone,
            user_data=self._user_data(index),
        )
        with self._party.boundary("allocation.create", name, resource_class=self._flavor.name) as detail:
            server_id = self._api.create_server(order)
            detail.update(allocation_id=server_id, node_id=server_id, node_name=name)

    def note_machine(self, server: Server) -> bool:
        """Write into the record of a server which machine of Ironic it is on; False while that is not known.

        So the machine's end can be looked at though somebody else ends the server, or we die in between.
        """
        machine: Machine | None = None
        with suppress(ServiceUnavailable):  # it runs without the note, too
            machine = self._api.machine_under(server.id)
        if machine is None:
            return False
        for port in self._api.list_ports([server.name]):
            if port.id in server.children and port.marker is not None and self._owns(port):
                self._api.set_line(
                    port.id, to_line(port.marker, noted(port.metal, machine.id, server.id, self._api.now()))
                )
        return True

    def address_of(self, server: Server) -> str:
        """Where its SSH daemon is: the address of its port on the first network."""
        network = self._api.find_network(self._nova.networks[0])
        for port in self._api.list_ports([server.name]):
            if port.id in server.children and port.network == network and port.addresses:
                return port.addresses[0]
        raise NodeFailed(
            f"server {server.name!r} has no address on network {self._nova.networks[0]!r}",
            seen=f"addresses {', '.join(server.addresses) or 'none'}",
            next_step="see its ports; the network needs a subnet",
        )

    def _ports(self, index: int, networks: Mapping[str, str]) -> list[Port]:
        """One on each network: one of ours that nothing is bound to, or a new one."""
        name = self._grant.name(index)
        unused = sorted((p for p in self._api.list_ports([name]) if not p.server and self._owns(p)), key=age)
        found: list[Port] = []
        for network, vnic in networks.items():
            port = next((each for each in unused if each.network == network), None)
            found.append(port or self._make_port(index, network, vnic))
        return found

    def _make_port(self, index: int, network: str, vnic: str) -> Port:
        name = self._grant.name(index)
        with self._party.boundary("port.create", name, network=network) as detail:
            port = self._api.create_port(
                name=name,
                network=network,
                line=to_line(self._marker(index), Metal() if self._metal else None),
                groups=self._nova.security_groups,
                vnic=vnic,
            )
            detail.update(port_id=port.id)
        return port

    def _volumes(self, index: int, image: str) -> list[Volume]:
        """What it boots from, if that is a volume; then the empty one, if there is one."""
        sizes = {"root": self._nova.root_volume_gib, "data": self._nova.data_volume_gib}
        wanted = {role: gib for role, gib in sizes.items() if gib}
        if not wanted:
            return []
        name = self._grant.name(index)
        there = sorted((v for v in self._api.list_volumes(name) if not v.server and self._owns(v)), key=age)
        found: list[Volume] = []
        for role, gib in wanted.items():
            known = next((v for v in there if v.role == role and v.status in _OF_USE), None)
            found.append(known or self._make_volume(index, role, gib, image if role == "root" else ""))
        return found

    def _make_volume(self, index: int, role: str, gib: int, image: str) -> Volume:
        name = self._grant.name(index)
        order = VolumeOrder(
            name=name,
            role=role,
            gib=gib,
            line=to_line(self._marker(index)),
            image=image,
            kind=self._nova.volume_type,
        )
        with self._party.boundary("volume.create", name, gib=gib) as detail:
            volume = self._api.create_volume(order)
            detail.update(volume_id=volume.id)
        return volume

    def _check_filled(self, volumes: list[Volume]) -> None:
        for volume in volumes:
            if volume.status in {"creating", "downloading"}:
                raise Refused(Refusal.AGAIN, f"volume {volume.id} is {volume.status}")

    def _user_data(self, index: int) -> str:
        grant, key = self._grant, self._grant.broker_key.get_secret_value()
        return user_data(
            grant.name(index),
            host=host_key(key, grant.run_id, grant.generation, index),
            authorized=(
                client_key(key, grant.run_id, grant.generation).public,
                peer_key(key, grant.run_id, grant.generation).public,
            ),
            root=self._nova.user == "root",
        )

    def _owns(self, thing: Port | Volume) -> bool:
        return self._grant.owns(thing.name, thing.marker)

    def _marker(self, index: int) -> Marker:
        return self._grant.marker(index, now=self._api.now(), renew_for_s=self._party.settings.lease.renew_for_s)
