"""Gets hosts of the fixed pool for one lease: claim all or none, then let the lease's keys in. Look-up-or-create."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from mlops_sdk.capacity.lease import LeaseRequest, to_iso
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.provider import Grant, Party
from mlops_sdk.capacity.providers.static_claim import ClaimState, HostClaim, age, in_turn
from mlops_sdk.capacity.providers.static_pool import HostPool, Stored
from mlops_sdk.capacity.providers.static_release import out
from mlops_sdk.capacity.providers.static_shell import HostShell
from mlops_sdk.config import StaticHost
from mlops_sdk.errors import HostKeyMismatch, LeaseLost, MlopsError, NoCapacity, NodeFailed
from mlops_sdk.identity.ssh_keys import client_key, peer_key
from mlops_sdk.steps import Steps


class HostAcquisition:
    """The way to the hosts of one lease. Made for each call; keeps nothing.

    Args:
        pool: The claims.
        shell: What is done on a host.
        hosts: The hosts of the settings, by name.
        party: Who acts.
        grant: For whom.
        now: The service's clock.
        give_back: Returns what is held under a name, or exactly one claim of it, as steps.
    """

    def __init__(
        self,
        pool: HostPool,
        shell: HostShell,
        hosts: Mapping[str, StaticHost],
        party: Party,
        *,
        grant: Grant,
        now: Callable[[], datetime],
        give_back: Callable[[Collection[HostClaim]], Steps[Any]],
    ) -> None:
        self._pool = pool
        self._shell = shell
        self._hosts = hosts
        self._settings = party.settings.lease
        self._clock = party.clock
        self._boundary = party.boundary
        self._grant = grant
        self._now = now
        self._give_back = give_back

    def acquire(self, deployed: Collection[str]) -> Steps[tuple[Node, ...]]:
        """See `Provider.acquire`."""
        yield from self.begin(deployed)
        return (yield from self._let_in_all())

    def begin(self, deployed: Collection[str]) -> Steps[None]:
        """See `Provider.begin`: claimed."""
        gone = sorted({name for name in self._grant.names if name in deployed} - set(self._mine(self._pool.read_all())))
        if gone:
            raise LeaseLost(
                f"generation {self._grant.generation} of this lease was given back meanwhile",
                seen=f"no host is claimed as {', '.join(gone)}",
                next_step="open the next generation of the run",
            )
        request = self._grant.request
        end = self._clock.monotonic() + request.wait_s
        while True:
            seen = yield from self._claim_all()
            if not seen:
                return
            left = end - self._clock.monotonic()
            if left <= 0:
                raise NoCapacity(
                    f"could not get {request} within {request.wait_s:g} s; nothing is held",
                    seen=seen,
                    next_step="ask for fewer machines, wait longer (wait_s), or see who holds them: `mlops lease list`",
                )
            yield min(max(self._settings.poll_s, 0.01), left)

    def _claim_all(self) -> Steps[str]:
        """Claim every host that is missing; what was seen when there are too few, and then nothing is held. Else ""."""
        slots = self._pool.read_all()
        mine = self._mine(slots)
        twice = [claim for claims in mine.values() for claim in claims[1:]]
        if twice:  # two processes of this run claimed at once: both keep the oldest
            yield from self._give_back(twice)
        missing = [index for index, name in enumerate(self._grant.names) if name not in mine]
        if missing and any(claims[0].used for claims in mine.values()):
            raise NodeFailed(
                f"part of generation {self._grant.generation} of this lease is gone",
                seen=f"no host is claimed as {', '.join(self._grant.name(index) for index in missing)}",
                next_step="give the rest back and open the next generation",
            )
        free = [host for host in suitable(self._hosts, self._grant.request) if _is_free(slots[host])]
        if len(free) < len(missing):
            yield from self._give_back([claims[0] for claims in mine.values()])
            return shortage(self._hosts, slots, self._grant.request)
        for index in missing:
            if not self._claim_one(index, {host: slots[host] for host in free}):
                held = [claims[0] for claims in self._mine(self._pool.read_all()).values()]
                yield from self._give_back(held)
                return "others were faster"
        return ""

    def _claim_one(self, index: int, free: Mapping[str, Stored]) -> bool:
        """One host, whichever of those that were free still is."""
        name = self._grant.name(index)
        with self._boundary("allocation.create", name, resource_class=self._grant.request.resource_class) as detail:
            for host in in_turn(free, name):
                now = self._now()
                claim = HostClaim(
                    host=host,
                    state=ClaimState.HELD,
                    id=str(uuid.uuid4()),
                    name=name,
                    marker=self._grant.marker(index, now=now, renew_for_s=self._settings.renew_for_s),
                    created_at=to_iso(now),
                    cleaned_at=free[host].claim.cleaned_at,
                )
                if self._pool.put(free[host], claim) is not None:
                    detail.update(allocation_id=claim.id, node_id=host, node_name=host)
                    return True
        return False

    def _mine(self, slots: Mapping[str, Stored]) -> dict[str, list[HostClaim]]:
        """The claims under our names, by name, the oldest first.

        Raises:
            LeaseLost: one of them is not ours.
        """
        mine: dict[str, list[HostClaim]] = {}
        for stored in slots.values():
            claim = stored.claim
            if claim.state is not ClaimState.HELD or claim.name not in self._grant.names:
                continue
            if not self._grant.owns(claim.name, claim.marker):
                raise LeaseLost(
                    f"the name {claim.name!r} belongs to somebody else",
                    seen=f"host {claim.host!r} is claimed under this name without this run's marker",
                    next_step="open the next generation of the run",
                )
            mine.setdefault(claim.name, []).append(claim)
        return {name: sorted(claims, key=age) for name, claims in mine.items()}

    def _let_in_all(self) -> Steps[tuple[Node, ...]]:
        """Let the lease's keys in everywhere; tries hosts that do not answer again until the time is up."""
        end = self._clock.monotonic() + self._settings.ssh_timeout_s
        ready: dict[int, Node] = {}
        while True:
            errors: dict[str, MlopsError] = {}
            mine = self._mine(self._pool.read_all())
            for index, name in enumerate(self._grant.names):
                if index in ready:
                    continue
                if name not in mine:
                    raise NodeFailed(
                        f"machine {index} of {self._grant.request} failed",
                        seen=f"no host is claimed as {name} any more",
                        next_step="give the lease back; a retry opens the next generation",
                    )
                claim = mine[name][0]
                try:
                    ready[index] = self._let_in(index, claim)
                except MlopsError as error:
                    errors[claim.host] = error
                    if isinstance(error, HostKeyMismatch) or self._clock.monotonic() >= end:
                        self._take_out(claim, error)
                        raise _failed(claim.host, error) from error
            if not errors:
                return tuple(ready[index] for index in sorted(ready))
            yield self._settings.poll_s

    def _let_in(self, index: int, claim: HostClaim) -> Node:
        host = self._hosts.get(claim.host)
        if host is None:
            raise NodeFailed(f"host {claim.host!r} is leased, but not in the settings any more")
        if claim.ready:
            return self._node(index, host, claim)
        grant, before = self._grant, claim.before or self._shell.look(host)
        key = grant.broker_key.get_secret_value()
        keys = [make(key, grant.run_id, grant.generation).public for make in (client_key, peer_key)]
        with self._boundary("machine.deploy", claim.name, node_id=host.name, node_name=host.name):
            begun = self._change(claim, lambda seen: replace(seen, used=True, before=seen.before or before))
            self._shell.let_in(host, begun.before or before, keys, claim.id)
        return self._node(index, host, self._change(claim, lambda seen: replace(seen, ready=True)))

    def _change(self, claim: HostClaim, change: Callable[[HostClaim], HostClaim]) -> HostClaim:
        stored = self._pool.change(claim.host, claim.id, change)
        if stored is None:
            raise LeaseLost(
                f"host {claim.host!r} was given back while it was being made ready",
                seen=f"it is not claimed as {claim.name} any more",
                next_step="open the next generation of the run",
            )
        return stored.claim

    def _take_out(self, claim: HostClaim, error: MlopsError) -> None:
        """A host that lets nobody in is not given to the next one: it goes out, unless it has to be cleaned first."""
        words = error.seen or error.what
        self._pool.change(claim.host, claim.id, lambda seen: seen if seen.used else out(seen, words))

    def _node(self, index: int, host: StaticHost, claim: HostClaim) -> Node:
        return Node(
            id=host.name,
            name=host.name,
            index=index,
            address=host.address,
            host_public_key=host.host_public_key,
            resource_class=host.resource_class,
            traits=tuple(sorted(host.traits)),
            gpus=host.gpus,
            image=claim.before.image if claim.before else "",
            port=host.port,
            user=host.user,
            gateway=host.gateway,
        )


def suitable(hosts: Mapping[str, StaticHost], request: LeaseRequest) -> list[str]:
    """Names of the hosts that suit a request, whoever has them."""
    return [
        name
        for name, host in hosts.items()
        if host.resource_class == request.resource_class
        and set(request.traits) <= set(host.traits)
        and (not request.machines or name in request.machines)
    ]


def shortage(hosts: Mapping[str, StaticHost], slots: Mapping[str, Stored], request: LeaseRequest) -> str:
    """Why there are too few: how many there are, who holds them, which are out and why."""
    found = {name: slots[name].claim for name in suitable(hosts, request)}
    free = [name for name, claim in found.items() if claim.state is ClaimState.FREE]
    held = [f"{name} is held as {claim.name}" for name, claim in found.items() if claim.state is ClaimState.HELD]
    lost = [f"{name} is out: {claim.words}" for name, claim in found.items() if claim.state is ClaimState.OUT]
    return "; ".join([f"{len(free)} of {len(found)} hosts of class {request.resource_class!r} are free", *held, *lost])


def _is_free(stored: Stored) -> bool:
    return stored.claim.state is ClaimState.FREE


def _failed(host: str, error: MlopsError) -> NodeFailed:
    return NodeFailed(
        f"host {host!r} did not let the lease in",
        seen=error.seen or error.what,
        next_step="see the host; when it answers again: `mlops lease clean`",
    )
