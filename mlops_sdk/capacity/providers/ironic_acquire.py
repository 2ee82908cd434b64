"""Gets the machines of one lease from Ironic: allocate all or none, deploy, adopt. Look-up-or-create throughout.

Ironic allocates one machine at a time. So a round asks for all of them at once; if one cannot be had, the round gives
back what it got and tries again until the waiting time is up: two runs that each hold half of what the other needs
cannot block each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from mlops_sdk.capacity.config_drive import config_drive
from mlops_sdk.capacity.lease import LeaseRequest, Marker
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.provider import Grant, Party
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi, NameTaken, NotYet
from mlops_sdk.capacity.providers.ironic_instance import instance_of, same_instance
from mlops_sdk.capacity.providers.ironic_release import UNKNOWN_POLLS
from mlops_sdk.capacity.providers.ironic_states import Step, acquire_step
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine, is_free, suits
from mlops_sdk.capacity.watching import Phase, Watched
from mlops_sdk.errors import LeaseLost, NoCapacity, NodeFailed
from mlops_sdk.identity.ssh_keys import client_key, host_key, peer_key
from mlops_sdk.names import run_key
from mlops_sdk.steps import Steps, pauses

_REFUSED_POLLS = 60
_NAME_POLLS = 5
_INVALID = "Failed to validate deploy"  # what no waiting changes


class Acquisition:
    """The way to the machines of one lease. Made for each call; keeps nothing.

    Args:
        api: Ironic, through the login of the party.
        ours: Ironic, through the deployment's login.
        party: Who acts.
        grant: For whom.
        give_back: Returns every piece of the grant, as steps: what a round got that did not get all.
    """

    def __init__(
        self, api: BaremetalApi, ours: BaremetalApi, party: Party, grant: Grant, give_back: Callable[[], Steps[Any]]
    ) -> None:
        self._api = api
        self._ours = ours
        self._settings = party.settings.lease
        self._image_for = party.settings.instance_info_for
        self._clock = party.clock
        self._boundary = party.boundary
        self._grant = grant
        self._give_back = give_back

    def acquire(self, deployed: Collection[str]) -> Steps[tuple[Node, ...]]:
        """See `Provider.acquire`."""
        self._check_still_there(deployed)
        yield from self._allocate()
        return (yield from self._deploy())

    def begin(self, deployed: Collection[str]) -> Steps[None]:
        """See `Provider.begin`: allocated, and told to deploy."""
        self._check_still_there(deployed)
        yield from self._allocate()
        watch = _Watch()
        for index in self._grant.indices:
            self._deploy_step(index, watch)

    def _check_still_there(self, deployed: Collection[str]) -> None:
        """A generation deploys a machine once: what was taken back from it stays gone."""
        gone = [name for name in self._grant.names if name in deployed and self._api.get_allocation(name) is None]
        if gone:
            raise LeaseLost(
                f"generation {self._grant.generation} of this lease was given back meanwhile",
                seen=f"no allocation {', '.join(gone)}",
                next_step="open the next generation of the run",
            )

    def _allocate(self) -> Steps[None]:
        end = self._clock.monotonic() + self._grant.request.wait_s
        while True:
            seen = yield from self._allocate_round()
            if not seen:
                return
            yield from self._give_back()
            left = end - self._clock.monotonic()
            if left <= 0:
                raise NoCapacity(
                    f"could not get {self._grant.request} within {self._grant.request.wait_s:g} s; nothing is held",
                    seen=f"{seen}; {self._free(self._grant.request)}",
                    next_step="ask for fewer machines, wait longer (wait_s), or see who holds them: `mlops lease list`",
                )
            yield min(max(self._settings.poll_s, 0.01), left)

    def _allocate_round(self) -> Steps[str]:
        """Ask for every machine once and wait for Ironic's answers. Ironic's words when one cannot be had, else ""."""
        names = self._grant.names
        found = {name: self._api.get_allocation(name) for name in names}
        self._check_owner(found)
        for name, allocation in found.items():  # left by an earlier attempt: it holds nothing
            if allocation is not None and allocation.state == "error":
                self._api.delete_allocation(name)
                found[name] = None
        missing = [name for name in names if found[name] is None]
        if missing and any(a is not None and self._is_deployed(a) for a in found.values()):
            raise NodeFailed(
                f"part of generation {self._grant.generation} of this lease is gone",
                seen=f"no allocation {', '.join(missing)}, while others of it are deployed",
                next_step="give the rest back and open the next generation",
            )
        for index, name in zip(self._grant.indices, names, strict=True):
            if found[name] is None:
                found[name] = yield from self._create(index)
        return (yield from self._wait_allocated(found))

    def _wait_allocated(self, found: dict[str, Allocation | None]) -> Steps[str]:
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
                    f"Ironic did not answer the request for {self._grant.request}",
                    seen=", ".join(f"{name}: {state!r}" for name, state in states.items()),
                    next_step="see Ironic's log",
                )
            yield self._until_called(next(pause), waiting, end)
            found.update({name: self._api.get_allocation(name) for name in waiting})

    def _create(self, index: int) -> Steps[Allocation]:
        name = self._grant.name(index)
        with self._boundary("allocation.create", name, resource_class=self._grant.request.resource_class) as detail:
            for _ in range(_NAME_POLLS):
                try:
                    allocation = self._api.create_allocation(
                        name=name,
                        resource_class=self._grant.request.resource_class,
                        traits=self._grant.request.traits,
                        marker=self._marker(index),
                        candidates=self._candidates(),
                        owner=self._grant.request.project,
                    )
                except NameTaken:
                    allocation = self._api.get_allocation(name)
                if allocation is not None:
                    self._check_owner({name: allocation})
                    detail.update(allocation_id=allocation.id)
                    return allocation
                yield self._settings.poll_s
        raise _name_taken(name, "Ironic says the name is taken but shows no such allocation to us")

    def _candidates(self) -> tuple[str, ...]:
        """The machines that may be taken; empty for any."""
        request = self._grant.request
        if request.machines or not self._grant.avoid:
            return request.machines
        free = [m.id for m in self._api.list_machines() if suits(m, request) and is_free(m)]
        good = tuple(node_id for node_id in free if node_id not in self._grant.avoid)
        return good if 0 < len(good) < len(free) else ()

    def _check_owner(self, found: Mapping[str, Allocation | None]) -> None:
        for name, allocation in found.items():
            if allocation is None:
                continue
            marker = allocation.marker
            if (
                marker is None
                or marker.run_id != str(self._grant.run_id)
                or marker.generation != self._grant.generation
            ):
                raise _name_taken(name, "an allocation of this name exists without this run's marker")

    def _is_deployed(self, allocation: Allocation) -> bool:
        machine = self._api.get_machine(allocation.node_id) if allocation.node_id else None
        return machine is not None and machine.provision_state != "available"

    def _deploy(self) -> Steps[tuple[Node, ...]]:
        end = self._clock.monotonic() + self._settings.deploy_timeout_s
        ready: dict[int, Node] = {}
        watch, pause = _Watch(), pauses(self._settings.poll_s)
        while True:
            for index in self._grant.indices:
                if index not in ready:
                    node = self._deploy_step(index, watch)
                    if node is not None:
                        ready[index] = node
            if len(ready) == len(self._grant.indices):
                return tuple(ready[index] for index in self._grant.indices)
            if self._clock.monotonic() >= end:
                limit_s = self._settings.deploy_timeout_s
                for index in set(self._grant.indices) - set(ready):
                    allocation = self._api.get_allocation(self._grant.name(index))
                    machine = self._api.get_machine(allocation.node_id) if allocation and allocation.node_id else None
                    self._note_failed(index, machine, watch.seen[index])
                raise NodeFailed(
                    f"not every machine of {self._grant.request} was active within {limit_s:g} s",
                    seen="; ".join(watch.seen[i] for i in self._grant.indices if i not in ready),
                    next_step="see the machine's console and Ironic's log; the next generation gets other machines",
                )
            missing = [
                name for index, name in zip(self._grant.indices, self._grant.names, strict=True) if index not in ready
            ]
            yield self._until_called(next(pause), missing, end)

    def _until_called(self, seconds: float, names: Collection[str], end: float) -> Watched:
        """A pause until one of these is on its way no more, but not beyond the time-out."""
        left = max(0.0, end - self._clock.monotonic())
        return Watched(seconds, provider="ironic", keys=names, at_most_s=left, quiet={Phase.COMING})

    def _deploy_step(self, index: int, watch: _Watch) -> Node | None:
        allocation = self._api.get_allocation(self._grant.name(index))
        machine = self._api.get_machine(allocation.node_id) if allocation and allocation.node_id else None
        step = acquire_step(allocation, machine)
        seen = watch.note(index, allocation, machine)
        if allocation is None or machine is None or step in {Step.NEXT_GENERATION, Step.CREATE, Step.ASK_AGAIN}:
            self._note_failed(index, machine, seen)
            raise NodeFailed(
                f"machine {index} of {self._grant.request} failed",
                seen=seen,
                next_step="give the lease back; a retry opens the next generation",
            )
        if step is Step.ADOPT:
            return self._node(index, machine)
        if step is Step.DEPLOY:
            self._start_deploy(index, allocation, machine, watch)
        if step is Step.UNKNOWN and watch.strange(index) >= UNKNOWN_POLLS:
            raise NodeFailed(
                f"machine {index} of {self._grant.request} is in a state this version does not know",
                seen=seen,
                next_step="see Ironic's documentation of its states, and the machine's history",
            )
        return None

    def _note_failed(self, index: int, machine: Machine | None, seen: str) -> None:
        """The next generation of this run takes another machine, if there is one; and it is counted."""
        if machine is not None:
            with self._boundary("machine.failed", self._grant.name(index), node_id=machine.id, seen=seen):
                pass

    def _start_deploy(self, index: int, allocation: Allocation, machine: Machine, watch: _Watch) -> None:
        marker = self._marker(index)
        key = self._grant.broker_key.get_secret_value()
        drive = config_drive(
            machine,
            allocation=allocation.name,
            run_key=run_key(self._grant.run_id),
            marker=marker,
            host=host_key(key, self._grant.run_id, self._grant.generation, index),
            authorized=(
                client_key(key, self._grant.run_id, self._grant.generation).public,
                peer_key(key, self._grant.run_id, self._grant.generation).public,
            ),
        )
        with self._boundary("machine.deploy", allocation.name, node_id=machine.id, node_name=machine.name) as detail:
            image = self._image_for(machine.resource_class)
            instance = instance_of(image, allocation=allocation.name, marker=marker)
            try:
                if not same_instance(machine, instance):
                    self._ours.set_instance(machine.id, instance)
                self._api.deploy(machine.id, drive)
            except NotYet as signal:
                detail.update(refused=str(signal))
                if _INVALID in str(signal):
                    raise NodeFailed(
                        f"Ironic cannot deploy machine {machine.name!r} as it is told to",
                        seen=str(signal),
                        next_step=f"see the settings' ironic_images for class {machine.resource_class!r}, and the node",
                    ) from signal
                if watch.refused(index) >= _REFUSED_POLLS:
                    raise NodeFailed(
                        f"Ironic does not deploy machine {machine.name!r}",
                        seen=str(signal),
                        next_step="see Ironic's log; a retry opens the next generation",
                    ) from signal

    def _node(self, index: int, machine: Machine) -> Node:
        topology: Mapping[str, Any] = machine.extra.get("topology") or {}
        key = self._grant.broker_key.get_secret_value()
        return Node(
            id=machine.id,
            name=machine.name,
            index=index,
            address=str(machine.extra.get("address", "")),
            host_public_key=host_key(key, self._grant.run_id, self._grant.generation, index).public,
            leaf=str(topology.get("leaf", "")),
            position=int(topology.get("position", 0)),
            resource_class=machine.resource_class,
            traits=machine.traits,
            gpus=int(machine.extra.get("gpus") or machine.properties.get("gpus") or 0),
            image=str(machine.extra.get("image", "")),
            driver=str(machine.extra.get("driver", "")),
            firmware=str(machine.extra.get("bmc_firmware", "")),
        )

    def _marker(self, index: int) -> Marker:
        return self._grant.marker(index, now=self._api.now(), renew_for_s=self._settings.renew_for_s)

    def _free(self, request: LeaseRequest) -> str:
        machines = [m for m in self._api.list_machines() if m.resource_class == request.resource_class]
        free = [m for m in machines if is_free(m) and suits(m, request)]
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
