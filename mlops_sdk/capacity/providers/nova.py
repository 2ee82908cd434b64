"""Leases on servers of Nova: one server a machine, with a port of its own and, where wanted, volumes.

`nova_acquire` gets the servers (`nova_make` asks for them), `nova_release` gives them back, `nova_states` says what is
done next about each status, `nova_view` how what is seen belongs together, `nova_http` makes the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from mlops_sdk.capacity.device_profiles import named_profiles, profile_of
from mlops_sdk.capacity.evidence import NodeEvidence
from mlops_sdk.capacity.flavors import Expected, Flavor, Offer, check_flavor, read_offer
from mlops_sdk.capacity.lease import EndReason, LeaseRequest, belongs
from mlops_sdk.capacity.loss import Statement
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.owned import Held, Owned, PoolMachine, Seen, Standing
from mlops_sdk.capacity.provider import Entitled, Grant, Party, Provider, Returning, release_held
from mlops_sdk.capacity.providers.nova_acquire import ServerAcquisition
from mlops_sdk.capacity.providers.nova_api import ComputeApi
from mlops_sdk.capacity.providers.nova_check import examine
from mlops_sdk.capacity.providers.nova_cyborg import left_over
from mlops_sdk.capacity.providers.nova_door import Door, SshDoor
from mlops_sdk.capacity.providers.nova_fence import cut_off, power_of
from mlops_sdk.capacity.providers.nova_marker import to_line
from mlops_sdk.capacity.providers.nova_metal import by_novas_word
from mlops_sdk.capacity.providers.nova_metal_return import may_be_metal
from mlops_sdk.capacity.providers.nova_release import ServerReturn
from mlops_sdk.capacity.providers.nova_sights import sights_of
from mlops_sdk.capacity.providers.nova_states import ReturnStep, return_step
from mlops_sdk.capacity.providers.nova_supply import Room, room_for
from mlops_sdk.capacity.providers.nova_view import NAME, Server, in_force, is_of, judge, owned, records
from mlops_sdk.capacity.quote import Quote, Supply, priced
from mlops_sdk.capacity.watching import Sight
from mlops_sdk.config import NovaSettings
from mlops_sdk.errors import FlavorRefused, SettingsError
from mlops_sdk.steps import Steps

_HOLDS = {ReturnStep.DELETE, ReturnStep.UNKNOWN}  # not what is being deleted, or is in the recycle bin
_DOWN = {"ERROR", "UNKNOWN", "DELETED", "SOFT_DELETED"}


class NovaLeases(Provider):
    """`Provider` on Nova.

    Args:
        api: The cloud, through the login of the party.
        party: Who acts.
        door: Looks whether a server lets us in; default: over SSH.
    """

    def __init__(self, api: ComputeApi, party: Party, door: Door | None = None) -> None:
        if party.settings.nova is None:
            raise SettingsError("the settings have no [nova]", next_step="say which networks and image servers get")
        self._api = api
        self._party = party
        self._nova: NovaSettings = party.settings.nova
        self._settings = party.settings.lease
        self._door = door or SshDoor()

    @property
    def name(self) -> str:
        """See `Provider.name`."""
        return NAME

    def now(self) -> datetime:
        """Nova's clock."""
        return self._api.now()

    def quote(self, request: LeaseRequest) -> Quote:
        """See `Provider.quote`. The flavor is checked first.

        Raises:
            FlavorRefused: the flavor does not give what is asked.
        """
        flavor, offer = self._flavor(request)
        servers = [server for server in self._api.list_servers() if server.flavor == flavor.name]
        room = self._room(flavor, offer, held=len(servers))
        settings = self._party.settings
        supply = Supply(free=room.servers, busy=len(servers), out_of_service=0)
        return replace(
            priced(request, supply, prices=settings.node_seconds_price, currency=settings.currency, now=self.now()),
            notes=(f"{flavor.name}: {offer}", room.words, *offer.warnings),
        )

    def pool(self) -> Iterator[PoolMachine]:
        """Every server that this login sees, and for each flavor as many places as there is room for."""
        flavors = self._flavors()
        deployment = str(self._party.settings.deployment_id)
        servers = list(self._api.list_servers())
        record = records(self._api.list_ports())
        for server in servers:
            marker = in_force(server.name, server.marker, record)
            offer = self._read(flavors[server.flavor]) if server.flavor in flavors else None
            yield PoolMachine(
                provider=NAME,
                id=server.id,
                name=server.name,
                resource_class=server.flavor,
                state=f"{server.status}, {server.task}" if server.task else server.status,
                held_by=server.name,
                marker=marker if belongs(server.name, marker, deployment) else None,
                traits=offer.traits if offer else (),
                in_service=server.status not in _DOWN,
                since=server.created_at,
            )
        for name, flavor in flavors.items():
            offer = self._read(flavor)
            held = sum(server.flavor == name for server in servers)
            for number in range(self._room(flavor, offer, held=held).servers):
                yield PoolMachine(
                    provider=NAME,
                    id=f"{name}/{number}",
                    name=f"room for one {name}",
                    resource_class=name,
                    state="free",
                    traits=offer.traits,
                    free=True,
                )

    def address_of(self, node_id: str) -> str:
        """The server in Nova's API."""
        return self._api.address_of(node_id)

    def acquire(self, grant: Grant, *, deployed: Collection[str] = ()) -> Steps[tuple[Node, ...]]:
        """See `Provider.acquire`. Ready means that SSH answers with the host key of the lease.

        Raises:
            FlavorRefused: the flavor does not give what is asked; nothing was made.
        """
        return self._acquisition(grant).acquire(deployed)

    def begin(self, grant: Grant, *, deployed: Collection[str] = ()) -> Steps[None]:
        """See `Provider.begin`: every server has a host."""
        return self._acquisition(grant).begin(deployed)

    def inspect(self, held: Held) -> Seen:
        """See `Provider.inspect`. A port or volume that is left counts as held."""
        left = [str(server) for server in self._servers_of(held)]
        left += self._children_of(held)
        standing = Standing.HELD if left else Standing.ENDED
        if not left and (bound := self._bound_to(held)):
            standing, left = Standing.UNFINISHED, [bound]
        words = "; ".join(left) if left else "Nova, Neutron and Cinder know nothing of this name"
        if not held.node_id:
            return Seen(standing=standing, words=words)
        if self._api.get_server(held.node_id) is not None:
            return Seen(standing=standing, words=words)
        outcome, at, said = judge(self._api.actions(held.node_id), deployed=True)
        outcome, said = by_novas_word(outcome, said, may_be_metal=may_be_metal(self._nova))
        return Seen(standing=standing, words=words, outcome=outcome, machine_words=f"{said}{f', {at}' if at else ''}")

    def renew(self, grant: Grant) -> int:
        """See `Provider.renew`. The deadline stays what it is: somebody else may have extended it."""
        return self._move_times(grant)

    def extend(self, grant: Grant, *, renewed_until: datetime | None = None) -> int:
        """See `Provider.extend`."""
        return self._move_times(grant, deadline=grant.request.deadline, renewed_until=renewed_until)

    def returning(self, held: Held, *, reason: EndReason, entitled: Entitled, run_key: str) -> Returning:
        """See `Provider.returning`."""
        return ServerReturn(self._api, self._party, held, reason=reason, entitled=entitled, run_key=run_key)

    def release(
        self,
        grant: Grant,
        held: Iterable[Held],
        *,
        reason: EndReason,
        on_evidence: Callable[[NodeEvidence], None],
    ) -> Steps[tuple[NodeEvidence, ...]]:
        """See `Provider.release`."""
        return release_held(self, self._party, grant, held, reason=reason, on_evidence=on_evidence)

    def list_owned(self) -> Iterator[Owned]:
        """See `Provider.list_owned`: servers, and below them ports and volumes.

        Also a server that no list shows, because it is in the recycle bin: its port is still bound to it.
        """
        servers = {server.id: server for server in self._api.list_servers()}  # first: the next look has what is new
        ports = list(self._api.list_ports())
        for port in ports:
            if port.server and port.server not in servers and is_of(port.name, port.marker):
                found = self._api.get_server(port.server)
                servers |= {found.id: found} if found is not None else {}
        deployment = str(self._party.settings.deployment_id)
        return owned(deployment, servers.values(), ports, self._api.list_volumes())

    def power(self, held: Held) -> Statement:
        """See `Fencing.power`; a server's host, through Nova, stands for a BMC."""
        return power_of(self._api, held)

    def cut_off(self, held: Held, *, entitled: Entitled) -> Steps[None]:
        """See `Fencing.cut_off`: its host has to report that it ended the guest."""
        return cut_off(self._api, self._party, held, entitled=entitled)

    def take_out(self, node_id: str, words: str) -> bool:
        """See `Fencing.take_out`: a server is nobody's after us, and which host it had only operators see."""
        del node_id, words
        return False

    def examine(self) -> str:
        """For `mlops doctor`: what there is, in words; leaves nothing behind.

        Raises:
            MlopsError: what is missing: an image, a network, a role, room in the quota, an extra spec of a flavor.
        """
        return examine(self._api, self._party.settings, self._nova, self._flavors())

    def sights(self) -> dict[str, Sight]:
        """See `Watchable.sights`."""
        servers = list(self._api.list_servers())
        return sights_of(servers, self._api.list_ports())

    def _servers_of(self, held: Held) -> list[Server]:
        if held.allocation_id:
            one = self._api.get_server(held.allocation_id)
            return [one] if one is not None else []
        found = (server for server in self._api.list_servers(held.name) if server.name == held.name)
        return [server for server in found if is_of(server.name, server.marker)]

    def _children_of(self, held: Held) -> list[str]:
        things = [("port", port) for port in self._api.list_ports([held.name])]
        if self._party.by == "reaper" or self._has_volumes:
            things += [("volume", volume) for volume in self._api.list_volumes(held.name)]
        return [
            f"{kind} {thing.id}"
            for kind, thing in things
            if is_of(thing.name, thing.marker) and held.allocation_id in {"", thing.id}
        ]

    def _bound_to(self, held: Held) -> str:
        """What Cyborg has bound to a server that is gone, in words."""
        server_id = "" if held.kind in {"port", "volume"} else held.allocation_id or held.node_id
        return left_over(self._api.accelerator_requests(server_id) or ()) if server_id else ""

    @property
    def _has_volumes(self) -> bool:
        return bool(self._nova.root_volume_gib or self._nova.data_volume_gib)

    def _move_times(
        self, grant: Grant, *, deadline: datetime | None = None, renewed_until: datetime | None = None
    ) -> int:
        """Of the ports: they are the record. A piece counts whose server stays and whose record could be written."""
        servers = self._api.list_servers(grant.name(0).removesuffix("0"))
        ours = (server for server in servers if grant.owns(server.name, server.marker))
        there = {server.name for server in ours if return_step(server) in _HOLDS}
        until = renewed_until or self._api.now() + timedelta(seconds=self._settings.renew_for_s)
        renewed: set[str] = set()
        for port in self._api.list_ports(grant.names):
            marker = port.marker
            if marker is None or port.name not in grant.names or not grant.owns(port.name, marker):
                continue
            moved = replace(marker, renewed_until=until, deadline=deadline or marker.deadline)
            if self._api.set_line(port.id, to_line(moved, port.metal)):
                renewed.add(port.name)
            if port.name not in there and port.server and self._is_held(port.server):
                there.add(port.name)
        return len(renewed & there)

    def _is_held(self, server_id: str) -> bool:
        """Whether a server that no list shows is there all the same: its cell does not answer now."""
        found = self._api.get_server(server_id)
        return found is not None and return_step(found) in _HOLDS

    def _flavors(self) -> dict[str, Flavor]:
        """Those that may be asked for, by name, with what Cyborg says of the device profiles that they name."""
        wanted = self._nova.flavors
        found = [flavor for flavor in self._api.list_flavors() if not wanted or flavor.name in wanted]
        if not named_profiles(flavor.specs for flavor in found):
            return {flavor.name: flavor for flavor in found}
        known = self._api.device_profiles()
        return {flavor.name: replace(flavor, profile=profile_of(flavor.specs or {}, known)) for flavor in found}

    def _is_begun(self, grant: Grant) -> bool:
        """Whether part of a lease is there: then its flavor was checked, and an operator may have changed it since."""
        servers = self._api.list_servers(grant.name(0).removesuffix("0"))
        return any(grant.owns(server.name, server.marker) for server in servers)

    def _flavor(self, request: LeaseRequest, *, check: bool = True) -> tuple[Flavor, Offer]:
        name = request.resource_class
        if request.machines:
            raise FlavorRefused(
                "servers of Nova cannot be asked for by name",
                seen=f"machines: {', '.join(request.machines)}",
                next_step="ask for a flavor and traits; Nova picks the host",
            )
        if self._nova.flavors and name not in self._nova.flavors:
            raise FlavorRefused(
                f"flavor {name!r} is not one of those that may be asked for here",
                seen=f"nova.flavors of the settings: {', '.join(sorted(self._nova.flavors))}",
                next_step="ask for one of these, or add it to the settings",
            )
        flavor = self._flavors().get(name)
        if flavor is None:
            raise FlavorRefused(
                f"there is no flavor {name!r}",
                seen="Nova does not show this project one of this name",
                next_step="see `openstack flavor list`; ask the operator for access to it",
            )
        if not check:
            return flavor, self._read(flavor)
        return flavor, check_flavor(flavor, expected=self._expected(name), traits=request.traits)

    def _read(self, flavor: Flavor) -> Offer:
        return read_offer(flavor, self._expected(flavor.name))

    def _expected(self, name: str) -> Expected | None:
        return self._nova.flavors[name].expected if name in self._nova.flavors else None

    def _room(self, flavor: Flavor, offer: Offer, *, held: int) -> Room:
        return room_for(
            flavor,
            offer,
            limits=self._api.limits(),
            stock=self._api.stock(offer.needs, offer.traits),
            held=held,
            most=self._nova.most_servers,
        )

    def _acquisition(self, grant: Grant) -> ServerAcquisition:
        flavor, offer = self._flavor(grant.request, check=not self._is_begun(grant))

        def give_back(held: Iterable[Held]) -> Steps[Any]:
            return self.release(grant, held, reason=EndReason.NO_CAPACITY, on_evidence=lambda _: None)

        def free() -> str:
            held = sum(server.flavor == flavor.name for server in self._api.list_servers())
            return self._room(flavor, offer, held=held).words

        return ServerAcquisition(
            self._api,
            self._door,
            self._party,
            self._nova,
            grant,
            flavor=(flavor, offer),
            give_back=give_back,
            free=free,
        )
