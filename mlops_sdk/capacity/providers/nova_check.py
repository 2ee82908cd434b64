"""Whether servers can be leased here: what the settings name exists, flavors give what they should, roles suffice."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import timedelta

from mlops_sdk.capacity.flavors import Delivery, Flavor, Offer, check_flavor
from mlops_sdk.capacity.lease import Marker
from mlops_sdk.capacity.providers.nova_api import ComputeApi, Refused
from mlops_sdk.capacity.providers.nova_cyborg import left_over
from mlops_sdk.capacity.providers.nova_marker import to_line
from mlops_sdk.capacity.providers.nova_supply import room_for
from mlops_sdk.config import NovaSettings, Settings
from mlops_sdk.errors import FlavorRefused, NoCapacity, RemoteError
from mlops_sdk.names import resource_name

_FOR_S = 60


def examine(api: ComputeApi, settings: Settings, nova: NovaSettings, flavors: Mapping[str, Flavor]) -> str:
    """What there is, in words. Makes a port and takes it away again; it carries our marker, should we die in between.

    Args:
        api: The cloud, through the login that is examined.
        settings: The deployment.
        nova: How servers are made here.
        flavors: Those that may be asked for, by name.

    Raises:
        RemoteError, SettingsError: what is missing, all flavors at once.
        NoCapacity: the quota has no room for a port.
    """
    networks = [api.find_network(name) for name in nova.networks]
    api.find_image(nova.image)
    offers = _offers(nova, flavors)
    held = sum(1 for _ in api.list_servers())
    if nova.root_volume_gib or nova.data_volume_gib:
        sum(1 for _ in api.list_volumes())
    _make_a_port(api, settings, nova, networks[0])
    lines = [f"{held} servers there", *_strays(api, offers)]
    for flavor, offer in offers:
        room = room_for(
            flavor,
            offer,
            limits=api.limits(),
            stock=api.stock(offer.needs, offer.traits),
            held=sum(server.flavor == flavor.name for server in api.list_servers()),
            most=nova.most_servers,
        )
        lines.append(f"{flavor.name} ({offer}): {room.words}")
    return "; ".join(lines)


def _strays(api: ComputeApi, offers: Iterable[tuple[Flavor, Offer]]) -> list[str]:
    """Accelerator requests that no server goes with: a person has to see to them, unless the reaper does."""
    if not any(offer.delivery is Delivery.CYBORG for _, offer in offers):
        return []
    requests = api.accelerator_requests() or ()
    lines: list[str] = []
    idle = [each.id for each in requests if not each.server]
    if idle:
        told = f"{len(idle)} accelerator requests of this project belong to no server (they hold no card)"
        lines.append(f"{told}: `openstack accelerator arq delete {' '.join(idle)}`, unless a server is being built")
    gone = {ident for ident in {each.server for each in requests} - {""} if api.get_server(ident) is None}
    stuck = left_over(each for each in requests if each.server in gone)
    if stuck:
        lines.append(f"{stuck} still bound to a server that is gone: the reaper frees it if that was one of our leases")
    return lines


def _offers(nova: NovaSettings, flavors: Mapping[str, Flavor]) -> list[tuple[Flavor, Offer]]:
    """Of every flavor that may be asked for.

    Raises:
        FlavorRefused: naming each that is missing, or does not give what the settings expect.
    """
    faults: list[str] = []
    found: list[tuple[Flavor, Offer]] = []
    for name in nova.flavors or flavors:
        if name not in flavors:
            faults.append(f"{name}: Nova shows this project no flavor of this name")
            continue
        try:
            expected = nova.flavors[name].expected if name in nova.flavors else None
            found.append((flavors[name], check_flavor(flavors[name], expected=expected)))
        except FlavorRefused as refused:
            if nova.flavors:  # others are the cloud's business until somebody asks for one
                faults.append(f"{name}: {refused.seen} ({refused.next_step})")
    if faults:
        raise FlavorRefused(
            f"{len(faults)} of the flavors in the settings cannot be used",
            seen="; ".join(faults),
            next_step="correct [nova.flavors], or ask the operator to set the extra specs",
        )
    return found


def _make_a_port(api: ComputeApi, settings: Settings, nova: NovaSettings, network: str) -> None:
    run_id = uuid.uuid4()
    until = api.now() + timedelta(seconds=_FOR_S)
    marker = Marker(
        run_id=str(run_id),
        deployment_id=str(settings.deployment_id),
        generation=1,
        index=0,
        nodes=1,
        owner="doctor",
        deadline=until,
        renewed_until=until,
    )
    name = resource_name(run_id, 1, 0)
    try:
        port = api.create_port(name=name, network=network, line=to_line(marker), groups=nova.security_groups)
    except Refused as refusal:
        raise NoCapacity("Neutron makes no port", seen=refusal.words, next_step="ask for a larger quota") from refusal
    if not port.addresses:
        api.delete_port(port.id)
        raise RemoteError(
            f"a port on network {nova.networks[0]!r} gets no address",
            seen=f"port {port.id} without fixed_ips",
            next_step="the network needs a subnet with free addresses",
        )
    api.delete_port(port.id)
