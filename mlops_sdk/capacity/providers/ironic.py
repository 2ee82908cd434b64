"""Leases on Ironic: allocate all or none, deploy, adopt, renew, give back. Look-up-or-create throughout.

Ironic allocates one machine at a time. So a round asks for all of them at once; if one cannot be had, the round gives
back what it got and tries again until the waiting time is up: two runs that each hold half of what the other needs
cannot block each other.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import SecretStr

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.config_drive import config_drive
from mlops_sdk.capacity.evidence import NodeEvidence
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.lease import Allocation, EndReason, LeaseRequest, Machine, Marker, Step, acquire_step
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi, NameTaken, NotYet
from mlops_sdk.capacity.providers.ironic_release import UNKNOWN_POLLS, Held, Release, release_all
from mlops_sdk.capacity.quote import is_free
from mlops_sdk.clock import Clock
from mlops_sdk.config import LeaseSettings
from mlops_sdk.errors import LeaseLost, NoCapacity, NodeFailed
from mlops_sdk.identity.ssh_keys import client_key, host_key, peer_key
from mlops_sdk.names import resource_name, run_key
from mlops_sdk.steps import Steps, pauses

_REFUSED_POLLS = 60
_NAME_POLLS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """For whom machines are leased: run, generation, request, and the key from which SSH keys follow."""

    run_id: uuid.UUID
    deployment_id: uuid.UUID
    generation: int
    owner: str
    request: LeaseRequest
    broker_key: SecretStr

    def name(self, index: int) -> str:
        """Name of the allocation of one machine."""
        return resource_name(self.run_id, self.generation, index)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all allocations."""
        return tuple(self.name(index) for index in range(self.request.nodes))


class IronicLeases:
    """The leases of one run, through the run's own credential.

    Args:
        api: Ironic.
        fence: This party's claims.
        settings: Periods and limits.
        clock: Durations. Pauses are yielded: see `mlops_sdk.steps`.
        boundary: Told before and after each call that changes something.
    """

    def __init__(
        self,
        api: BaremetalApi,
        fence: Fence,
        settings: LeaseSettings,
        clock: Clock,
        *,
        boundary: Boundary = no_boundary,
    ) -> None:
        self._api = api
        self._fence = fence
        self._settings = settings
        self._clock = clock
        self._boundary = boundary

    def acquire(self, grant: Grant, *, deployed: Collection[str] = ()) -> Steps[tuple[Node, ...]]:
        """All machines of a lease, deployed; what this generation has already is adopted. Idempotent.

        On `NoCapacity` nothing is held any more. On any other error the caller gives back (`release`).

        Args:
            grant: For whom.
            deployed: Allocations under which the journal knows a deployment: if one is gone, it is not made again.

        Raises:
            NoCapacity: fewer than asked for were to be had within the waiting time.
            NodeFailed: a machine failed, was never active in time, or shows a state we do not know.
            LeaseLost: a name belongs to somebody else.
        """
        self._check_still_there(grant, deployed)
        yield from self._allocate(grant)
        return (yield from self._deploy(grant))

    def begin(self, grant: Grant, *, deployed: Collection[str] = ()) -> Steps[None]:
        """The first half of `acquire`, which does not wait for the machines: allocated, and told to deploy.

        Raises what `acquire` raises.
        """
        self._check_still_there(grant, deployed)
        yield from self._allocate(grant)
        watch = _Watch()
        for index in range(grant.request.nodes):
            self._deploy_step(grant, index, watch)

    def renew(self, grant: Grant) -> int:
        """Extend the hold of every machine there is; how many there were. Idempotent."""
        return sum(
            self._api.set_marker(grant.name(index), self.marker(grant, index)) for index in range(grant.request.nodes)
        )

    def release(
        self,
        grant: Grant,
        held: Iterable[Held],
        *,
        reason: EndReason,
        on_evidence: Callable[[NodeEvidence], None],
    ) -> Steps[tuple[NodeEvidence, ...]]:
        """Give machines back and wait for their cleaning. Idempotent: what is gone is proven by what `held` knows."""

        def entitled(allocation: Allocation) -> bool:
            marker = allocation.marker
            return (
                marker is not None
                and marker.run_id == str(grant.run_id)
                and marker.deployment_id == str(grant.deployment_id)
                and marker.generation == grant.generation
            )

        releases = [
            Release(
                self._api,
                self._fence,
                item,
                reason=reason,
                entitled=entitled,
                run_key=run_key(grant.run_id),
                by="run",
                skew_s=self._settings.clock_skew_s,
                boundary=self._boundary,
            )
            for item in held
        ]
        return release_all(releases, settings=self._settings, clock=self._clock, on_evidence=on_evidence)

    def marker(self, grant: Grant, index: int) -> Marker:
        """What an allocation carries from now on."""
        return Marker(
            run_id=str(grant.run_id),
            deployment_id=str(grant.deployment_id),
            generation=grant.generation,
            index=index,
            nodes=grant.request.nodes,
            owner=grant.owner,
            deadline=grant.request.deadline,
            renewed_until=self._api.now() + timedelta(seconds=self._settings.renew_for_s),
        )

    def _check_still_there(self, grant: Grant, deployed: Collection[str]) -> None:
        """A generation deploys a machine once: what was taken back from it stays gone."""
        gone = [name for name in grant.names if name in deployed and self._api.get_allocation(name) is None]
        if gone:
            raise LeaseLost(
                f"generation {grant.generation} of this lease was given back meanwhile",
                seen=f"no allocation {', '.join(gone)}",
                next_step="open the next generation of the run",
            )

    def _allocate(self, grant: Grant) -> Steps[None]:
        end = self._clock.monotonic() + grant.request.wait_s
        while True:
            seen = yield from self._allocate_round(grant)
            if not seen:
                return
            yield from self.release(
                grant,
                [Held(name=name) for name in grant.names],
                reason=EndReason.NO_CAPACITY,
                on_evidence=lambda _: None,
            )
            left = end - self._clock.monotonic()
            if left <= 0:
                raise NoCapacity(
                    f"could not get {grant.request} within {grant.request.wait_s:g} s; nothing is held",
                    seen=f"{seen}; {self._free(grant.request)}",
                    next_step="ask for fewer machines, wait longer (wait_s), or see who holds them: `mlops lease list`",
                )
            yield min(max(self._settings.poll_s, 0.01), left)

    def _allocate_round(self, grant: Grant) -> Steps[str]:
        """Ask for every machine once and wait for Ironic's answers. Ironic's words when one cannot be had, else ""."""
        names = grant.names
        found = {name: self._api.get_allocation(name) for name in names}
        self._check_owner(grant, found)
        for name, allocation in found.items():  # left by an earlier attempt: it holds nothing
            if allocation is not None and allocation.state == "error":
                self._api.delete_allocation(name)
                found[name] = None
        missing = [name for name in names if found[name] is None]
        if missing and any(a is not None and self._is_deployed(a) for a in found.values()):
            raise NodeFailed(
                f"part of generation {grant.generation} of this lease is gone",
                seen=f"no allocation {', '.join(missing)}, while others of it are deployed",
                next_step="give the rest back and open the next generation",
            )
        for index, name in enumerate(names):
            if found[name] is None:
                found[name] = yield from self._create(grant, index)
        return (yield from self._wait_allocated(grant, found))

    def _wait_allocated(self, grant: Grant, found: dict[str, Allocation | None]) -> Steps[str]:
        unknown, pause = 0, pauses(self._settings.poll_s)
        end = self._clock.monotonic() + self._settings.deploy_timeout_s
        while True:
            for allocation in found.values():
                if allocation is not None and allocation.state == "error":
                    return allocation.last_error or "allocation in state error"
            waiting = [n for n, a in found.items() if a is None or a.state != "active"]
            if not waiting:
                return ""
            states = {n: a.state if (a := found[n]) else "gone" for n in waiting}
            unknown += any(state != "allocating" for state in states.values())
            if unknown >= UNKNOWN_POLLS or self._clock.monotonic() >= end:
                raise NodeFailed(
                    f"Ironic did not answer the request for {grant.request}",
                    seen=", ".join(f"{name}: {state!r}" for name, state in states.items()),
                    next_step="see Ironic's log",
                )
            yield next(pause)
            found.update({name: self._api.get_allocation(name) for name in waiting})

    def _create(self, grant: Grant, index: int) -> Steps[Allocation]:
        name = grant.name(index)
        with self._boundary("allocation.create", name, resource_class=grant.request.resource_class) as detail:
            for _ in range(_NAME_POLLS):
                try:
                    allocation = self._api.create_allocation(
                        name=name,
                        resource_class=grant.request.resource_class,
                        traits=grant.request.traits,
                        marker=self.marker(grant, index),
                    )
                except NameTaken:
                    allocation = self._api.get_allocation(name)
                if allocation is not None:
                    self._check_owner(grant, {name: allocation})
                    detail.update(allocation_id=allocation.id)
                    return allocation
                yield self._settings.poll_s
        raise _name_taken(name, "Ironic says the name is taken but shows no such allocation to us")

    def _check_owner(self, grant: Grant, found: Mapping[str, Allocation | None]) -> None:
        for name, allocation in found.items():
            if allocation is None:
                continue
            marker = allocation.marker
            if marker is None or marker.run_id != str(grant.run_id) or marker.generation != grant.generation:
                raise _name_taken(name, "an allocation of this name exists without this run's marker")

    def _is_deployed(self, allocation: Allocation) -> bool:
        machine = self._api.get_machine(allocation.node_id) if allocation.node_id else None
        return machine is not None and machine.provision_state != "available"

    def _deploy(self, grant: Grant) -> Steps[tuple[Node, ...]]:
        end = self._clock.monotonic() + self._settings.deploy_timeout_s
        ready: dict[int, Node] = {}
        watch, pause = _Watch(), pauses(self._settings.poll_s)
        while True:
            for index in range(grant.request.nodes):
                if index not in ready:
                    node = self._deploy_step(grant, index, watch)
                    if node is not None:
                        ready[index] = node
            if len(ready) == grant.request.nodes:
                return tuple(ready[index] for index in range(grant.request.nodes))
            if self._clock.monotonic() >= end:
                raise NodeFailed(
                    f"not every machine of {grant.request} was active within {self._settings.deploy_timeout_s:g} s",
                    seen="; ".join(watch.seen[i] for i in range(grant.request.nodes) if i not in ready),
                    next_step="see the machine's console and Ironic's log; the next generation gets other machines",
                )
            yield next(pause)

    def _deploy_step(self, grant: Grant, index: int, watch: _Watch) -> Node | None:
        allocation = self._api.get_allocation(grant.name(index))
        machine = self._api.get_machine(allocation.node_id) if allocation and allocation.node_id else None
        step = acquire_step(allocation, machine)
        seen = watch.note(index, allocation, machine)
        if allocation is None or machine is None or step in {Step.NEXT_GENERATION, Step.CREATE, Step.ASK_AGAIN}:
            raise NodeFailed(
                f"machine {index} of {grant.request} failed",
                seen=seen,
                next_step="give the lease back; a retry opens the next generation",
            )
        if step is Step.ADOPT:
            return self._node(grant, index, machine)
        if step is Step.DEPLOY:
            self._start_deploy(grant, index, allocation, machine, watch)
        if step is Step.UNKNOWN and watch.strange(index) >= UNKNOWN_POLLS:
            raise NodeFailed(
                f"machine {index} of {grant.request} is in a state this version does not know",
                seen=seen,
                next_step="see Ironic's documentation of its states, and the machine's history",
            )
        return None

    def _start_deploy(self, grant: Grant, index: int, allocation: Allocation, machine: Machine, watch: _Watch) -> None:
        marker = self.marker(grant, index)
        key = grant.broker_key.get_secret_value()
        drive = config_drive(
            machine,
            allocation=allocation.name,
            run_key=run_key(grant.run_id),
            marker=marker,
            host=host_key(key, grant.run_id, grant.generation, index),
            authorized=(
                client_key(key, grant.run_id, grant.generation).public,
                peer_key(key, grant.run_id, grant.generation).public,
            ),
        )
        with self._boundary("machine.deploy", allocation.name, node_id=machine.id, node_name=machine.name) as detail:
            try:
                self._api.deploy(machine.id, drive)
            except NotYet as signal:
                detail.update(refused=str(signal))
                if watch.refused(index) >= _REFUSED_POLLS:
                    raise NodeFailed(
                        f"Ironic does not deploy machine {machine.name!r}",
                        seen=str(signal),
                        next_step="see Ironic's log; a retry opens the next generation",
                    ) from signal

    def _node(self, grant: Grant, index: int, machine: Machine) -> Node:
        topology: Mapping[str, Any] = machine.extra.get("topology") or {}
        key = grant.broker_key.get_secret_value()
        return Node(
            id=machine.id,
            name=machine.name,
            index=index,
            address=str(machine.extra.get("address", "")),
            host_public_key=host_key(key, grant.run_id, grant.generation, index).public,
            leaf=str(topology.get("leaf", "")),
            position=int(topology.get("position", 0)),
            resource_class=machine.resource_class,
            traits=machine.traits,
            gpus=int(machine.extra.get("gpus") or machine.properties.get("gpus") or 0),
            image=str(machine.extra.get("image", "")),
            driver=str(machine.extra.get("driver", "")),
            firmware=str(machine.extra.get("bmc_firmware", "")),
        )

    def _free(self, request: LeaseRequest) -> str:
        machines = [m for m in self._api.list_machines() if m.resource_class == request.resource_class]
        free = [m for m in machines if is_free(m) and set(request.traits) <= set(m.traits)]
        return f"{len(free)} of {len(machines)} machines of class {request.resource_class!r} are free"


class _Watch:
    """What was seen of each machine while waiting for it."""

    def __init__(self) -> None:
        self.seen: dict[int, str] = {}
        self._strange: dict[int, int] = {}
        self._refused: dict[int, int] = {}

    def note(self, index: int, allocation: Allocation | None, machine: Machine | None) -> str:
        if allocation is None:
            text = f"allocation {index} is gone"
        elif machine is None:
            text = f"{allocation.name}: state {allocation.state!r} {allocation.last_error}".strip()
        else:
            maintenance = ", in maintenance" if machine.maintenance else ""
            fault = f", fault {machine.fault!r}" if machine.fault else ""
            error = f": {machine.last_error}" if machine.last_error else ""
            text = f"{machine.name}: {machine.provision_state!r}{maintenance}{fault}{error}"
        self.seen[index] = text
        return text

    def strange(self, index: int) -> int:
        self._strange[index] = self._strange.get(index, 0) + 1
        return self._strange[index]

    def refused(self, index: int) -> int:
        self._refused[index] = self._refused.get(index, 0) + 1
        return self._refused[index]


def _name_taken(name: str, seen: str) -> LeaseLost:
    return LeaseLost(
        f"the allocation name {name!r} belongs to somebody else",
        seen=seen,
        next_step="open the next generation of the run, or ask the cloud's operator who owns the name",
    )
