"""What Ironic shows of allocations and machines, and what can be said of one at a glance. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mlops_sdk.capacity.lease import LeaseRequest, Marker
from mlops_sdk.capacity.quote import Supply


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """An Ironic allocation as observed."""

    id: str
    name: str
    state: str
    node_id: str = ""
    last_error: str = ""
    created_at: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def marker(self) -> Marker | None:
        """Our marker, if it carries one."""
        return Marker.parse(self.extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """An Ironic node as observed.

    Attributes:
        target_power_state: What its BMC was told and has not confirmed yet; "" when nothing is under way.
        locked: Ironic is at work on it.
        fault: Ironic's own reason for maintenance ("clean failure", "power failure", ...); "" for a person's.
        maintenance_reason: Words of whoever put it into maintenance.
        retired: It leaves the pool for good once it is clean.
        checked_at: When it was last seen to be in order: by its last inspection, or, while it is `available`, by the
            cleaning that made it so.
        instance_id: Id of what has it: an allocation, or a server of Nova; "" for a machine that nobody has.
        instance: What it is, or was last, deployed with (``instance_info``); see `ironic_instance`.
    """

    id: str
    name: str
    provision_state: str
    power_state: str = ""
    target_power_state: str = ""
    locked: bool = False
    maintenance: bool = False
    maintenance_reason: str = ""
    retired: bool = False
    fault: str = ""
    last_error: str = ""
    allocation_id: str = ""
    instance_id: str = ""
    owner: str = ""
    resource_class: str = ""
    traits: tuple[str, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    instance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    checked_at: datetime | None = None

    @property
    def taken(self) -> bool:
        """Whether somebody has it: through an allocation, or without one as Nova does."""
        return bool(self.allocation_id or self.instance_id)


def suits(machine: Machine, request: LeaseRequest) -> bool:
    """Whether a machine is of the kind that is asked for, and among those that are."""
    if request.machines and not {machine.id, machine.name} & set(request.machines):
        return False
    return machine.resource_class == request.resource_class and set(request.traits) <= set(machine.traits)


def supply_of(request: LeaseRequest, *, machines: Iterable[Machine], allocations: Iterable[Allocation]) -> Supply:
    """Count what Ironic shows of machines that suit a request."""
    suitable = [machine for machine in machines if suits(machine, request)]
    busy = [machine for machine in suitable if machine.taken or machine.provision_state in _IN_USE]
    free = [machine for machine in suitable if is_free(machine)]
    return Supply(
        free=len(free),
        busy=len(busy),
        out_of_service=len(suitable) - len(busy) - len(free),
        waiting=sum(allocation.state in {"allocating", "error"} for allocation in allocations),
        checked_at=min((machine.checked_at for machine in free if machine.checked_at is not None), default=None),
        partitions=Counter(partition for machine in free if (partition := _partition_of(machine))),
    )


def _partition_of(machine: Machine) -> str:
    topology: Mapping[str, Any] = machine.extra.get("topology") or {}
    return str(topology.get("partition") or "")


def is_free(machine: Machine) -> bool:
    """Whether Ironic could allocate this machine now."""
    return (
        machine.provision_state == "available"
        and not machine.taken
        and not machine.maintenance
        and bool(machine.power_state)  # Ironic's allocator skips machines whose power state it does not know
    )


def is_in_use(machine: Machine) -> bool:
    """Whether somebody has this machine, or had it and it is being cleaned: it comes back by itself."""
    return not machine.maintenance and (machine.taken or machine.provision_state in _IN_USE)


def words_of(machine: Machine) -> str:
    """Its state for a person.

    Example:
        >>> words_of(Machine(id="1", name="gpu-01", provision_state="clean failed", maintenance=True))
        'clean failed, in maintenance'
    """
    reason = f": {machine.maintenance_reason}" if machine.maintenance_reason else ""
    maintenance = f", in maintenance{reason}" if machine.maintenance else ""
    fault = f" ({machine.fault})" if machine.fault else ""
    return f"{machine.provision_state}{maintenance}{fault}"


_IN_USE = {"active", "deploying", "wait call-back", "deploy failed", "deleting", "cleaning", "clean wait", "error"}
