"""The calls of Nova, Neutron, Cinder, Glance, Placement, Ironic and Cyborg that leases rest on: one narrow protocol.

`nova_http` is the real thing; `mlops_sdk.testing.nova` has a fake that passes the same contract of providers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from mlops_sdk.capacity.device_profiles import DeviceProfile
from mlops_sdk.capacity.evidence import Cleaning
from mlops_sdk.capacity.flavors import Flavor
from mlops_sdk.capacity.providers.ironic_view import Machine
from mlops_sdk.capacity.providers.nova_cyborg import AcceleratorRequest
from mlops_sdk.capacity.providers.nova_states import Refusal
from mlops_sdk.capacity.providers.nova_view import Action, Port, Server, Volume


class Refused(Exception):
    """A typed signal to the flow: the service did not take the request, in its own words."""

    def __init__(self, kind: Refusal, words: str) -> None:
        super().__init__(kind, words)
        self.kind = kind
        self.words = words


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOrder:
    """A server that is asked for. `user_data` holds the server's private host key: it is in no repr.

    Attributes:
        name: Ours.
        flavor: Id.
        image: Id; "" where it boots from its first volume.
        ports: Ids, the first is where we log in.
        volumes: Ids, to be attached; the first is what it boots from if there is no image.
        metadata: Its marker among others.
        zone: Availability zone; "" for any.
        user_data: What cloud-init is told.
    """

    name: str
    flavor: str
    image: str
    ports: tuple[str, ...]
    metadata: Mapping[str, str]
    volumes: tuple[str, ...] = ()
    zone: str = ""
    user_data: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeOrder:
    """A volume that is asked for. `image`: id of what is written onto it, "" for an empty one; `role`: see `Volume`."""

    name: str
    role: str
    gib: int
    line: str
    image: str = ""
    kind: str = ""
    zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is left of a project's quota; None: no limit."""

    servers: int | None = None
    cores: int | None = None
    ram_mb: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What one resource provider of Placement has: in all, and how much of it is taken. `root`: id of its host."""

    root: str
    capacity: Mapping[str, int]
    used: Mapping[str, int]


class ComputeApi(Protocol):
    """The calls that leave the process. "Gone" is None or False, never an exception; a refusal is `Refused`.

    All but `create_server`, `create_port` and `create_volume` may be sent twice. These are sent once: on
    `ServiceUnavailable` nobody knows whether there is one now, and the flow looks.
    """

    def now(self) -> datetime:
        """Nova's clock."""
        ...

    def list_servers(self, prefix: str = "") -> Iterator[Server]:
        """All that the project sees whose name begins so."""
        ...

    def get_server(self, server_id: str) -> Server | None:
        """By id."""
        ...

    def create_server(self, order: ServerOrder) -> str:
        """Ask for a server; its id."""
        ...

    def delete_server(self, server_id: str, *, force: bool = False) -> bool:
        """Delete, also out of the recycle bin if `force`; False when it was gone."""
        ...

    def actions(self, server_id: str) -> tuple[Action, ...] | None:
        """What Nova did to a server, also to one that is gone; None when it keeps nothing or does not show it."""
        ...

    def list_ports(self, names: Collection[str] = ()) -> Iterator[Port]:
        """All that the project sees, or those of these names."""
        ...

    def create_port(self, *, name: str, network: str, line: str, groups: Sequence[str], vnic: str = "normal") -> Port:
        """Make a port of a type on a network (id) with these security groups; none: the network's own."""
        ...

    def set_line(self, port_id: str, line: str) -> bool:
        """Write the record of a lease; False when the port is gone."""
        ...

    def delete_port(self, port_id: str) -> bool:
        """Delete; False when it was gone."""
        ...

    def list_volumes(self, name: str = "") -> Iterator[Volume]:
        """All that the project sees, or those of this name; none where the cloud has no Cinder."""
        ...

    def create_volume(self, order: VolumeOrder) -> Volume:
        """Make a volume."""
        ...

    def delete_volume(self, volume_id: str) -> bool:
        """Delete; False when it was gone."""
        ...

    def list_flavors(self) -> list[Flavor]:
        """All that the project may use."""
        ...

    def limits(self) -> Limits:
        """What is left of the project's quota."""
        ...

    def stock(self, needs: Mapping[str, Mapping[str, int]], traits: Sequence[str]) -> list[Stock] | None:
        """Placement's providers that could serve these needs; None when it does not show this login."""
        ...

    def is_allocated(self, server_id: str) -> bool | None:
        """Whether Placement counts something for a server; None when it does not show this login."""
        ...

    def machine_under(self, server_id: str) -> Machine | None:
        """The machine of Ironic that a server is on; None where Ironic shows this login none."""
        ...

    def machine(self, node_id: str) -> tuple[Machine, Cleaning | None] | None:
        """A machine of Ironic with its last cleaning that ended well; None where Ironic does not show it."""
        ...

    def device_profiles(self) -> Mapping[str, DeviceProfile] | str:
        """Cyborg's by name; or why this login sees none, in words."""
        ...

    def accelerator_requests(self, server_id: str = "") -> tuple[AcceleratorRequest, ...] | None:
        """Of a server, or of the project; none where there is no Cyborg, None where it does not show this login."""
        ...

    def free_accelerators(self, server_id: str) -> None:
        """Delete what Cyborg has bound to a server. Raises `AccessDenied` where only a service may."""
        ...

    def end_machine(self, node_id: str, server_id: str) -> str:
        """Let Ironic tear down a machine, if this server is on it; why it does not, in words, else ""."""
        ...

    def find_network(self, name: str) -> str:
        """Id of the network of this name or id. Raises `SettingsError` for none, or several."""
        ...

    def find_image(self, name: str) -> str:
        """Id of the image of this name or id. Raises `SettingsError` for none, or several."""
        ...

    def address_of(self, server_id: str) -> str:
        """Where a person who may see it finds this server."""
        ...
