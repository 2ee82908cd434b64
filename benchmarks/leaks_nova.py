"""Servers of Nova, with ports and volumes, in the place of machines of Ironic: same lives, failures and promises."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from benchmarks.leaks_life import BUCKET, CLASS, MACHINES, OTHER_DEPLOYMENT, SETTINGS, credential_of, marker_of
from benchmarks.leaks_nova_judge import ServerJudge
from benchmarks.leaks_nova_past import ServersPast
from benchmarks.leaks_run import Judging, bound_s
from benchmarks.leaks_schedules import Schedule, Shape
from mlops_sdk.capacity.lease import Marker
from mlops_sdk.capacity.provider import Party, Provider
from mlops_sdk.capacity.providers.nova import NAME, NovaLeases
from mlops_sdk.capacity.providers.nova_http import NovaHttp
from mlops_sdk.capacity.providers.nova_marker import to_line, to_metadata
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import KeystoneSettings, NovaSettings
from mlops_sdk.names import resource_name, run_id_for
from mlops_sdk.services import Services
from mlops_sdk.testing.http_cloud.ironic import START
from mlops_sdk.testing.http_cloud.keystone import PROJECT
from mlops_sdk.testing.http_cloud.messages import Call
from mlops_sdk.testing.http_cloud.nova import FakeServer, ServerPace
from mlops_sdk.testing.http_cloud.nova_wire import FakeFlavor
from mlops_sdk.testing.http_cloud.server_site import ServerSite, SiteDoor

if TYPE_CHECKING:
    from benchmarks.leaks_world import World

_PACE: Final = ServerPace()
_DELETE_S: Final = 3.0
_CELL_S: Final = 200.0
FLAVOR: Final = FakeFlavor(id="f1", name=CLASS, specs={"pci_passthrough:alias": "h200:8"})
IMAGE: Final = "0a1b2c3d-0000-4000-8000-000000000001"
_THEIRS: Final = "project-theirs"
_SPOILS: Final = (
    *("",) * 8,
    *("build", "hang", "end", "down", "recycle"),  # on a host
    "cell",
    *("create", "delete"),  # of a volume
    *("room", "quota", "ports"),  # what there is no more of
)
_CINDERS: Final = {"create", "delete"}
_CALLS: Final = MappingProxyType(
    {
        "release": 130,
        "generations": 230,
        "begin": 100,
        "attach": 150,
        "extend": 140,
        "replace": 200,
        "hold": 130,
        "park": 190,
        "preempt": 160,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The scene. See `leaks_run.Scene`.

    Attributes:
        root_gib: Servers boot from a volume of this size; 0 for a local disk.
    """

    root_gib: int = 0
    bound_s: float = bound_s(
        deploy_s=_PACE.place_s + _PACE.build_s,
        cleaning_s=_PACE.end_s + _DELETE_S + 3 * SETTINGS.lease.poll_s,  # servers, what was made for them, and a look
        messages_s=45.0,  # three things of each name, each with its claim
    )
    shape: Shape = field(default_factory=lambda: Shape(calls=_CALLS, more=70, spoils=_SPOILS))

    def set(self, world: World, schedule: Schedule) -> Judging:
        """See `Scene.set`."""
        site = ServerSite(world.cloud, pace=_PACE, room=MACHINES, quota=MACHINES + 12)
        site.nova.flavors[FLAVOR.id] = FLAVOR
        site.nova.images[IMAGE] = "ubuntu"
        world.clocks |= {"compute": site.nova, "network": site.nova, "block-storage": site.nova}
        world.past = ServersPast(world.past, world.cloud, site)
        world.equip = self._equipper(site)
        credentials = _settle(world, site)
        _spoil(world, site, schedule.spoiled)
        if schedule.tenants:
            _let_tenants_in(world, site)
        return ServerJudge(world, site, SETTINGS, credentials, BUCKET)

    def _equipper(self, site: ServerSite) -> Callable[[Services, Callable[[KeystoneSettings], Cloud]], Services]:
        nova = NovaSettings(networks=("net",), image="ubuntu", root_volume_gib=self.root_gib, data_volume_gib=10)
        settings = SETTINGS.model_copy(update={"nova": nova})

        def equip(services: Services, log_in: Callable[[KeystoneSettings], Cloud]) -> Services:
            own = log_in(settings.keystone)

            def open_nova(login: KeystoneSettings | None, party: Party) -> Provider:
                return NovaLeases(NovaHttp(own if login is None else log_in(login)), party, SiteDoor(site))

            return replace(services, settings=settings, others={NAME: open_nova})

        return equip


def _settle(world: World, site: ServerSite) -> frozenset[str]:
    """A person, another deployment, a run of ours that lives, another project; and names that are nearly ours.

    Returns:
        Ids of their credentials. Their servers have no host of ours, so they take no room.
    """
    ours = SETTINGS.deployment_id
    living, other, run = run_id_for(ours, "neighbour"), run_id_for(OTHER_DEPLOYMENT, "theirs"), run_id_for(ours, "run")
    theirs = marker_of(other, OTHER_DEPLOYMENT, lasts_s=-3600.0)
    plant = _Planter(site)
    plant.all("a-person", None)
    plant.all(resource_name(other, 1, 0), theirs)
    plant.all(resource_name(living, 1, 0), marker_of(living, ours, lasts_s=1e6))
    name = resource_name(run, 1, 0)
    plant.all(name, marker_of(run, ours, lasts_s=-3600.0), project=_THEIRS)  # ours to the last letter, but not here
    for near in (f"{name}1", f"x{name}"):
        plant.all(near, None)
    plant.all(f"{name}-copy", marker_of(run, ours, lasts_s=-3600.0))  # its marker does not agree with its name
    plant.port(name, theirs, "")
    plant.volume(name, None, "")
    long_past = credential_of(world, other, OTHER_DEPLOYMENT, lasts_s=-3600.0)
    return frozenset({long_past, credential_of(world, living, ours, lasts_s=1e6)})


@dataclass(slots=True)
class _Planter:
    """Puts what neighbours have in its place."""

    site: ServerSite
    number: int = 0

    def all(self, name: str, marker: Marker | None, *, project: str = PROJECT) -> None:
        """A server that runs, with a port and a volume."""
        self.number += 1
        nova = self.site.nova
        server = FakeServer(
            id=str(uuid.UUID(int=self.number)),
            name=name,
            project=project,
            flavor=FLAVOR,
            metadata=to_metadata(marker) if marker else {},
            ports=(),
            created=START - timedelta(days=1),
            status="ACTIVE",
            task="",
            hidden=False,
            host="",
        )
        nova.servers[server.id] = server
        self.port(name, marker, server.id, project=project)
        self.volume(name, marker, server.id, project=project)

    def port(self, name: str, marker: Marker | None, server: str, *, project: str = PROJECT) -> None:
        """A port that a server uses, or nobody."""
        wanted = {"name": name, "network_id": self.site.neutron.networks["net"], "description": _line(marker)}
        made = self._made(Call(service="network", method="POST", path="/v2.0/ports", body={"port": wanted}), project)
        self.site.neutron.ports[made["port"]["id"]].device = server

    def volume(self, name: str, marker: Marker | None, server: str, *, project: str = PROJECT) -> None:
        """A volume that a server uses, or nobody."""
        wanted = {"name": name, "size": 1, "description": _line(marker), "metadata": {"mlops.role": "data"}}
        path = f"/v3/{project}/volumes"
        made = self._made(Call(service="block-storage", method="POST", path=path, body={"volume": wanted}), project)
        volume = self.site.cinder.volumes[made["volume"]["id"]]
        volume.status, volume.server, volume.next = "in-use" if server else "available", server, (float("inf"), "")
        volume.made_at = -1e6

    def _made(self, call: Call, project: str) -> dict[str, Any]:
        service = self.site.neutron if call.service == "network" else self.site.cinder
        return service.handle(call, project).body


def _spoil(world: World, site: ServerSite, spoiled: str) -> None:
    """See `FakeNova.fails`; ``room``, ``quota``, ``ports``: so many more servers, or ports, and no more can be had.

    ``cell``: from some moment on, for so many minutes, Nova cannot tell of the servers that there are.
    """
    what, _, times = spoiled.partition(":")
    if what == "room":
        site.nova.room = int(times)
    elif what == "quota":
        site.nova.quota = sum(server.project == PROJECT for server in site.nova.servers.values()) + int(times)
    elif what == "ports":
        site.neutron.quota = sum(port.project == PROJECT for port in site.neutron.ports.values()) + int(times)
    elif what == "cell":
        begins = world.random.random() * _CELL_S
        world.at(begins, lambda: setattr(site.nova, "away_until", begins + 60.0 * int(times)))
    elif what:
        (site.cinder if what in _CINDERS else site.nova).fails[what] = int(times)


def _line(marker: Marker | None) -> str:
    return to_line(marker) if marker else "by hand"


def _let_tenants_in(world: World, site: ServerSite) -> None:
    """Whoever waits for room takes it the moment it is free, and works there for a while; once."""
    taken: list[str] = []

    def take() -> None:
        site.settle()
        if len(taken) < MACHINES - 2:
            name = f"tenant-{len(taken)}"
            taken.append(name)
            wanted = {"name": name, "flavorRef": FLAVOR.id, "imageRef": IMAGE}
            site.nova.handle(
                Call(service="compute", method="POST", path="/v2.1/servers", body={"server": wanted}), PROJECT
            )

    site.nova.on_room = lambda: world.at(world.now + world.random.random(), take)
