"""Gets the servers of one lease from Nova: all or none, look-up-or-create throughout.

For each piece: its port (the record of the lease), its volumes, its server. No name is unique and a request may land
late, so every look goes through all servers of the lease's names: the chosen one is kept (`nova_states.chosen`), the
rest is given back. A round that does not get room for all gives back what it got, and asks again while time is left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from mlops_sdk.capacity.flavors import Delivery, Flavor, Offer
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.owned import Held
from mlops_sdk.capacity.provider import Grant, Party
from mlops_sdk.capacity.providers.nova_api import ComputeApi, Refused
from mlops_sdk.capacity.providers.nova_cyborg import advice
from mlops_sdk.capacity.providers.nova_door import Door
from mlops_sdk.capacity.providers.nova_make import Maker
from mlops_sdk.capacity.providers.nova_states import AcquireStep, Refusal, acquire_step, chosen
from mlops_sdk.capacity.providers.nova_view import NAME, Server, age
from mlops_sdk.capacity.watching import Phase, Watched
from mlops_sdk.config import NovaSettings
from mlops_sdk.errors import HostKeyMismatch, LeaseLost, NoCapacity, NodeFailed, ServiceUnavailable
from mlops_sdk.identity.ssh_keys import client_key, host_key
from mlops_sdk.remote.pool import gateway_of
from mlops_sdk.remote.ssh import Host
from mlops_sdk.steps import Steps, pauses

UNKNOWN_POLLS = 5
_REFUSED_POLLS = 60
_LOOKS_AFTER_SILENCE = 2  # a request without a reply may have been served: so often we look before another is sent


class ServerAcquisition:
    """The way to the servers of one lease. Made for each call; keeps nothing.

    Args:
        api: The cloud.
        door: Looks whether a server lets us in.
        party: Who acts.
        nova: How servers are made here.
        grant: For whom.
        flavor: Of the servers, and what it offers.
        give_back: Returns these pieces, as steps.
        free: Says in words how much room there is.
    """

    def __init__(
        self,
        api: ComputeApi,
        door: Door,
        party: Party,
        nova: NovaSettings,
        grant: Grant,
        *,
        flavor: tuple[Flavor, Offer],
        give_back: Callable[[Iterable[Held]], Steps[Any]],
        free: Callable[[], str],
    ) -> None:
        self._api = api
        self._door = door
        self._party = party
        self._settings = party.settings.lease
        self._nova = nova
        self._grant = grant
        self._flavor, self._offer = flavor
        self._give_back = give_back
        self._free = free
        self._metal = self._offer.delivery is Delivery.BARE_METAL
        self._maker = Maker(api, party, nova, grant, self._flavor, metal=self._metal)

    def acquire(self, deployed: Collection[str]) -> Steps[tuple[Node, ...]]:
        """See `Provider.acquire`."""
        end = self._party.clock.monotonic() + self._grant.request.wait_s
        while True:
            shortage = yield from self._placed(deployed)
            if not shortage:
                shortage, nodes = yield from self._ready(deployed)
                if not shortage:
                    return nodes
            yield from self._wait_for_room(shortage, end)

    def begin(self, deployed: Collection[str]) -> Steps[None]:
        """See `Provider.begin`: every server has a host."""
        end = self._party.clock.monotonic() + self._grant.request.wait_s
        while shortage := (yield from self._placed(deployed)):
            yield from self._wait_for_room(shortage, end)

    def _wait_for_room(self, shortage: str, end: float) -> Steps[None]:
        """Nothing is held while we wait: two leases that each have half cannot block each other."""
        yield from self._give_back(Held(name=name) for name in self._grant.names)
        left = end - self._party.clock.monotonic()
        if left <= 0:
            request = self._grant.request
            raise NoCapacity(
                f"could not get {request} within {request.wait_s:g} s; nothing is held",
                seen=f"{shortage}; {self._free()}",
                next_step="ask for fewer machines, wait longer (wait_s), or see who holds them: `mlops lease list`",
            )
        yield min(max(self._settings.poll_s, 0.01), left)

    def _placed(self, deployed: Collection[str]) -> Steps[str]:
        """Make what is missing, wait until Nova has found a host for each; what was seen when it has none, else ""."""
        watch, pause = Watch(), pauses(self._settings.poll_s)
        end = self._party.clock.monotonic() + self._settings.deploy_timeout_s
        self._check_still_there(self._look(), deployed)
        while True:
            seen = yield from self._without_surplus()
            waiting = 0
            for index, name in zip(self._grant.indices, self._grant.names, strict=True):
                server = chosen(seen.get(name, ()))
                if server is None:
                    shortage = self._make(index, watch)
                    waiting += 1
                else:
                    shortage = self._judge(server, watch)
                    waiting += not (server.placed or server.launched)
                if shortage:
                    return shortage
            if not waiting:
                return ""
            self._check_time(end, watch)
            yield next(pause)

    def _make(self, index: int, watch: Watch) -> str:
        """Ask for one piece, unless an earlier request may still land; why it cannot be had, else ""."""
        name = self._grant.name(index)
        if watch.is_silent(name):
            return ""
        try:
            self._maker.make(index)
            watch.silence(name, "asked for; Nova does not show it yet")
        except ServiceUnavailable as error:
            watch.silence(name, str(error))
        except Refused as refusal:
            if refusal.kind is Refusal.FULL:
                return refusal.words
            if watch.refused(name, refusal.words) >= _REFUSED_POLLS:
                raise NodeFailed(
                    f"the cloud does not make {name!r}",
                    seen=refusal.words,
                    next_step="see its log; a retry opens the next generation",
                ) from refusal
        return ""

    def _judge(self, server: Server, watch: Watch) -> str:
        """Why a server cannot be had for want of room, else "".

        Raises:
            NodeFailed: it failed, or shows a state that we do not know.
        """
        step = acquire_step(server)
        watch.note(server.name, str(server))
        if step is AcquireStep.NO_ROOM:
            return server.fault
        if step is AcquireStep.NEXT_GENERATION:
            raise NodeFailed(
                f"server {server.name!r} of {self._grant.request} failed",
                seen=str(server),
                next_step=advice(server.fault),
            )
        if step is AcquireStep.UNKNOWN and watch.strange(server.name) >= UNKNOWN_POLLS:
            raise NodeFailed(
                f"server {server.name!r} is in a state this version does not know, or its cell does not answer",
                seen=str(server),
                next_step="see Nova's documentation of its states, and its log",
            )
        return ""

    def _ready(self, deployed: Collection[str]) -> Steps[tuple[str, tuple[Node, ...]]]:
        """Wait until every server runs and lets us in; why there is no room for one after all, else "", and them."""
        watch, pause = Watch(), pauses(self._settings.poll_s)
        end = self._party.clock.monotonic() + self._settings.deploy_timeout_s
        ready: dict[int, Node] = {}
        noted: set[str] = set()
        while True:
            seen = yield from self._without_surplus()
            for index, name in zip(self._grant.indices, self._grant.names, strict=True):
                server = chosen(seen.get(name, ()))
                if server is None:
                    raise NodeFailed(
                        f"machine {index} of {self._grant.request} failed",
                        seen=f"Nova knows no server {name!r} of ours any more",
                        next_step="give the lease back; a retry opens the next generation",
                    )
                if shortage := self._judge(server, watch):
                    return shortage, ()
                if self._metal and server.placed and server.id not in noted and self._maker.note_machine(server):
                    noted.add(server.id)
                if index not in ready and acquire_step(server) is AcquireStep.READY:
                    node = self._let_in(index, server, watch, noted=name in deployed)
                    if node is not None:
                        ready[index] = node
            if len(ready) == len(self._grant.names):
                return "", tuple(ready[index] for index in self._grant.indices)
            self._check_time(end, watch)
            left = [
                server
                for index, name in zip(self._grant.indices, self._grant.names, strict=True)
                if index not in ready and (server := chosen(seen.get(name, ())))
            ]
            yield self._pause(next(pause), left, end)

    def _pause(self, seconds: float, left: Collection[Server], end: float) -> float:
        """Until one of these is built, if that is all that is missing; a closed door is tried again soon."""
        if any(acquire_step(server) is not AcquireStep.WAIT for server in left):
            return seconds
        at_most_s = max(0.0, end - self._party.clock.monotonic())
        keys = [server.name for server in left]
        return Watched(seconds, provider=NAME, keys=keys, at_most_s=at_most_s, quiet={Phase.COMING})

    def _let_in(self, index: int, server: Server, watch: Watch, *, noted: bool) -> Node | None:
        """The machine, if it lets us in; from the first try on it counts as in use."""
        node = self._node(index, server)
        if noted or watch.tried(server.id):
            words = self._try(node)
        else:
            with self._party.boundary("machine.deploy", server.name, node_id=server.id, node_name=server.name):
                words = self._try(node)
        if not words:
            return node
        watch.note(server.name, f"{server}; SSH at {node.address}: {words}")
        if watch.first_try(server.id, self._party.clock.monotonic()) > self._settings.ssh_timeout_s:
            raise NodeFailed(
                f"server {server.name!r} runs, but did not let us in within {self._settings.ssh_timeout_s:g} s",
                seen=watch.seen[server.name],
                next_step="see its console, its security group and whether cloud-init ran; a retry gets another one",
            )
        return None

    def _try(self, node: Node) -> str:
        key = self._grant.broker_key.get_secret_value()
        host = Host(
            name=node.name,
            address=node.address,
            host_public_key=node.host_public_key,
            client_private_key=client_key(key, self._grant.run_id, self._grant.generation).private,
            username=node.user,
            port=node.port,
            via=gateway_of(self._party.settings, node.gateway),
        )
        try:
            return self._door.refuses(host)
        except HostKeyMismatch as error:
            raise NodeFailed(error.what, seen=error.seen, next_step=error.next_step) from error

    def _look(self) -> dict[str, list[Server]]:
        """Servers of the lease, by name, the oldest first.

        Raises:
            LeaseLost: one of them is not ours.
        """
        found: dict[str, list[Server]] = {}
        for server in self._api.list_servers(self._grant.name(0).removesuffix("0")):
            if server.name not in self._grant.names:
                continue
            if not self._grant.owns(server.name, server.marker):
                raise LeaseLost(
                    f"the name {server.name!r} belongs to somebody else",
                    seen=f"server {server.id} of this name does not carry this run's marker",
                    next_step="open the next generation of the run",
                )
            found.setdefault(server.name, []).append(server)
        return {name: sorted(servers, key=age) for name, servers in found.items()}

    def _without_surplus(self) -> Steps[dict[str, list[Server]]]:
        """As `_look`, after everything but the chosen server of each name was given back."""
        seen = self._look()
        surplus: list[Held] = []
        for name, servers in seen.items():
            kept = chosen(servers)
            surplus.extend(
                Held(name=name, allocation_id=each.id, kind="server") for each in servers if each is not kept
            )
        if surplus:
            yield from self._give_back(surplus)
            seen = self._look()
        return seen

    def _check_still_there(self, seen: dict[str, list[Server]], deployed: Collection[str]) -> None:
        """A generation uses a machine once: what was taken back from it stays gone."""
        used = set(self._grant.names) & set(deployed)
        gone = sorted(used - set(seen))
        if gone:
            raise LeaseLost(
                f"generation {self._grant.generation} of this lease was given back meanwhile",
                seen=f"Nova knows no server {', '.join(gone)} of ours",
                next_step="open the next generation of the run",
            )
        missing = sorted(set(self._grant.names) - set(seen)) if used else []
        if missing:
            raise NodeFailed(
                f"part of generation {self._grant.generation} of this lease is gone",
                seen=f"no server {', '.join(missing)}, while others of it are in use",
                next_step="give the rest back and open the next generation",
            )

    def _check_time(self, end: float, watch: Watch) -> None:
        if self._party.clock.monotonic() >= end:
            limit_s = self._settings.deploy_timeout_s
            raise NodeFailed(
                f"not every machine of {self._grant.request} was ready within {limit_s:g} s",
                seen="; ".join(watch.seen.values()) or "Nova showed none of them",
                next_step="see the server's console and Nova's log; the next generation gets other servers",
            )

    def _node(self, index: int, server: Server) -> Node:
        key = self._grant.broker_key.get_secret_value()
        return Node(
            id=server.id,
            name=server.name,
            index=index,
            address=self._maker.address_of(server),
            host_public_key=host_key(key, self._grant.run_id, self._grant.generation, index).public,
            resource_class=self._flavor.name,
            traits=self._offer.traits,
            gpus=self._offer.accelerators,
            image=self._nova.image,
            user=self._nova.user,
            gateway=self._nova.gateway,
        )


class Watch:
    """What was seen of each server while waiting for it."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self._strange: dict[str, int] = {}
        self._refused: dict[str, int] = {}
        self._silent: dict[str, int] = {}
        self._tried: dict[str, float] = {}

    def note(self, name: str, words: str) -> None:
        """What it shows now."""
        self.seen[name] = words

    def strange(self, name: str) -> int:
        """How often it has shown something that we do not know."""
        self._strange[name] = self._strange.get(name, 0) + 1
        return self._strange[name]

    def refused(self, name: str, words: str) -> int:
        """How often the cloud has refused to make it."""
        self.seen[name] = words
        self._refused[name] = self._refused.get(name, 0) + 1
        return self._refused[name]

    def silence(self, name: str, words: str) -> None:
        """A request for it got no reply."""
        self.seen[name] = words
        self._silent[name] = _LOOKS_AFTER_SILENCE

    def is_silent(self, name: str) -> bool:
        """Whether a request without a reply may still be served; counts this look."""
        left = self._silent.get(name, 0)
        self._silent[name] = max(0, left - 1)
        return left > 0

    def tried(self, server_id: str) -> bool:
        """Whether its door was tried before."""
        return server_id in self._tried

    def first_try(self, server_id: str, now: float) -> float:
        """Seconds since its door was tried first."""
        return now - self._tried.setdefault(server_id, now)
