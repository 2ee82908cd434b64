"""What a lease is and what happens to it next: states, reasons, the marker, and the tables that decide. Pure.

A lease is one Ironic allocation per machine, named after the run. Everything that decides lives here as data in, data
out; `providers/ironic.py` looks, asks these tables, and acts.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from mlops_sdk.capacity.lifecycle import EndReason
from mlops_sdk.names import parse_resource_name, run_key

MARKER = "mlops"
DEFAULT_PROVIDER = "ironic"


class Priority(enum.IntEnum):
    """Classes of work. A higher one gets machines first, and may end a lower one that allows it."""

    BATCH = 0
    NORMAL = 1
    URGENT = 2

    @classmethod
    def named(cls, name: str) -> Priority:
        """By its name in lower case.

        Raises:
            ValueError: naming those that there are.
        """
        try:
            return cls[name.upper()]
        except KeyError:
            known = ", ".join(repr(each.name.lower()) for each in cls)
            raise ValueError(f"there is no priority {name!r}; there are {known}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """What a run asks for: so many machines, all or none.

    Attributes:
        nodes: How many machines.
        resource_class: The provider's word for a kind of machine (Ironic: resource class; hosts: class of their pool).
        traits: Traits each machine must have.
        deadline: Hard end of the lease (aware UTC); the reaper takes the machines back after it.
        wait_s: How long to wait for capacity before `NoCapacity`; 0 asks once.
        provider: Whose machines: one of those that the deployment has.
        priority: Its class, while there are fewer machines than people want (`mlops_sdk.capacity.queue`).
        preemptible: Whether the lease may be ended, with notice, for a higher priority.
    """

    nodes: int
    resource_class: str
    deadline: datetime
    traits: tuple[str, ...] = ()
    wait_s: float = 0.0
    provider: str = DEFAULT_PROVIDER
    priority: Priority = Priority.NORMAL
    preemptible: bool = False

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError(f"a lease needs at least one machine, not {self.nodes!r}")
        if self.deadline.tzinfo is None:
            raise ValueError(f"deadline {self.deadline!r} has no time zone")
        if self.wait_s < 0:
            raise ValueError(f"wait_s must not be negative, not {self.wait_s!r}")

    def __str__(self) -> str:
        traits = f" with traits {', '.join(self.traits)}" if self.traits else ""
        whose = "" if self.provider == DEFAULT_PROVIDER else f" of {self.provider}"
        return f"{self.nodes} x {self.resource_class}{traits}{whose}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """What an allocation of ours carries in ``extra["mlops"]``: whose it is and how long it may be held."""

    run_id: str
    deployment_id: str
    generation: int
    index: int
    nodes: int
    owner: str
    deadline: datetime
    renewed_until: datetime
    priority: Priority = Priority.NORMAL
    preemptible: bool = False

    def to_json(self) -> dict[str, Any]:
        """The marker as Ironic stores it."""
        return {
            "run_id": self.run_id,
            "deployment_id": self.deployment_id,
            "generation": self.generation,
            "index": self.index,
            "nodes": self.nodes,
            "owner": self.owner,
            "deadline": to_iso(self.deadline),
            "renewed_until": to_iso(self.renewed_until),
            "priority": int(self.priority),
            "preemptible": self.preemptible,
        }

    @classmethod
    def parse(cls, extra: Mapping[str, Any]) -> Marker | None:
        """The marker in an allocation's ``extra``, or None when there is none or it is not one of ours."""
        raw = extra.get(MARKER)
        if not isinstance(raw, Mapping):
            return None
        data = cast("Mapping[str, Any]", raw)
        try:
            return cls(
                run_id=str(data["run_id"]),
                deployment_id=str(data["deployment_id"]),
                generation=int(data["generation"]),
                index=int(data["index"]),
                nodes=int(data["nodes"]),
                owner=str(data["owner"]),
                deadline=from_iso(str(data["deadline"])),
                renewed_until=from_iso(str(data["renewed_until"])),
                priority=priority_of(data.get("priority")),
                preemptible=bool(data.get("preemptible", False)),
            )
        except (KeyError, ValueError, TypeError):
            return None


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
    """An Ironic node as observed."""

    id: str
    name: str
    provision_state: str
    power_state: str = ""
    maintenance: bool = False
    fault: str = ""
    last_error: str = ""
    allocation_id: str = ""
    owner: str = ""
    resource_class: str = ""
    traits: tuple[str, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def cleaned_at(self) -> datetime | None:
        """When the machine's own cleaning last finished, as its deploy interface recorded it; None if it never did."""
        record = self.extra.get("cleaned")
        if not isinstance(record, Mapping):
            return None
        try:
            return from_iso(str(cast("Mapping[str, Any]", record)["finished_at"]))
        except (KeyError, ValueError):
            return None


class Step(enum.Enum):
    """What to do next about one machine of a lease that is being acquired."""

    CREATE = "create"  # no allocation of this name: ask for one
    WAIT = "wait"
    DEPLOY = "deploy"
    ADOPT = "adopt"
    ASK_AGAIN = "ask_again"  # the allocation failed for want of a machine: delete it, and ask again while time is left
    NEXT_GENERATION = "next_generation"  # it failed; this generation never deploys a machine twice
    UNKNOWN = "unknown"  # not in the table: an error after a few polls, with the raw value shown


_ALLOCATION_STEP: Mapping[str, Step] = {
    "allocating": Step.WAIT,
    "error": Step.ASK_AGAIN,
}

# Provision state of the machine behind an active allocation.
_PROVISION_STEP: Mapping[str, Step] = {
    "available": Step.DEPLOY,
    "deploying": Step.WAIT,
    "wait call-back": Step.WAIT,
    "deploy hold": Step.WAIT,
    "active": Step.ADOPT,
    "deploy failed": Step.NEXT_GENERATION,
    "error": Step.NEXT_GENERATION,
    "deleting": Step.NEXT_GENERATION,
    "cleaning": Step.NEXT_GENERATION,
    "clean wait": Step.NEXT_GENERATION,
    "clean failed": Step.NEXT_GENERATION,
    "rescue": Step.NEXT_GENERATION,
    "rescuing": Step.NEXT_GENERATION,
    "manageable": Step.NEXT_GENERATION,
}


def acquire_step(allocation: Allocation | None, machine: Machine | None) -> Step:
    """The next step towards an active machine, from what Ironic shows.

    A machine in maintenance or with a fault is never adopted or deployed: it failed, whatever its provision state.
    """
    if allocation is None:
        return Step.CREATE
    if allocation.state != "active":
        return _ALLOCATION_STEP.get(allocation.state, Step.UNKNOWN)
    if machine is None:
        return Step.UNKNOWN
    if machine.maintenance or machine.fault:
        return Step.NEXT_GENERATION
    return _PROVISION_STEP.get(machine.provision_state, Step.UNKNOWN)


class ReleaseStep(enum.Enum):
    """What to do next about one machine that is being given back."""

    TEAR_DOWN = "tear_down"  # ask Ironic for `deleted`
    DROP = "drop"  # never deployed: delete the allocation
    WAIT = "wait"
    DONE = "done"  # allocation absent, machine at rest and clean
    NOT_CLEAN = "not_clean"  # allocation absent, machine out of the pool
    UNKNOWN = "unknown"


# Provision state of the machine while our allocation is still there.
_HELD_STEP: Mapping[str, ReleaseStep] = {
    "available": ReleaseStep.DROP,
    "manageable": ReleaseStep.DROP,
    "enroll": ReleaseStep.DROP,
    "clean failed": ReleaseStep.DROP,
    "active": ReleaseStep.TEAR_DOWN,
    "deploy failed": ReleaseStep.TEAR_DOWN,
    "wait call-back": ReleaseStep.TEAR_DOWN,
    "deploy hold": ReleaseStep.TEAR_DOWN,
    "error": ReleaseStep.TEAR_DOWN,
    "rescue": ReleaseStep.TEAR_DOWN,
    "rescue failed": ReleaseStep.TEAR_DOWN,
    "unrescue failed": ReleaseStep.TEAR_DOWN,
    "deploying": ReleaseStep.WAIT,
    "deleting": ReleaseStep.WAIT,
    "cleaning": ReleaseStep.WAIT,
    "clean wait": ReleaseStep.WAIT,
    "rescuing": ReleaseStep.WAIT,
    "rescue wait": ReleaseStep.WAIT,
    "unrescuing": ReleaseStep.WAIT,
}

# Provision state of the machine once our allocation is gone. `error`: Ironic drops the allocation even when the
# tear-down failed; the machine can be given to nobody else, and asking for `deleted` again is how it gets out.
_LEFT_STEP: Mapping[str, ReleaseStep] = {
    "available": ReleaseStep.DONE,
    "manageable": ReleaseStep.NOT_CLEAN,
    "enroll": ReleaseStep.NOT_CLEAN,
    "clean failed": ReleaseStep.NOT_CLEAN,
    "clean hold": ReleaseStep.NOT_CLEAN,
    "error": ReleaseStep.TEAR_DOWN,
    "deleting": ReleaseStep.WAIT,
    "cleaning": ReleaseStep.WAIT,
    "clean wait": ReleaseStep.WAIT,
    # somebody else's already: it went through `available` while we did not look
    "active": ReleaseStep.DONE,
    "deploying": ReleaseStep.DONE,
    "wait call-back": ReleaseStep.DONE,
    "deploy hold": ReleaseStep.DONE,
    "deploy failed": ReleaseStep.DONE,
}


def release_step(allocation: Allocation | None, machine: Machine | None) -> ReleaseStep:
    """The next step towards a machine given back, from what Ironic shows."""
    if allocation is not None:
        if machine is None or machine.allocation_id != allocation.id:
            return ReleaseStep.DROP
        return _HELD_STEP.get(machine.provision_state, ReleaseStep.UNKNOWN)
    if machine is None:
        return ReleaseStep.DONE
    if machine.allocation_id:
        return ReleaseStep.DONE
    return _LEFT_STEP.get(machine.provision_state, ReleaseStep.UNKNOWN)


def priority_of(stored: Any) -> Priority:
    """A stored priority; NORMAL for one that is missing or that this version does not know: never a lost marker."""
    try:
        return Priority(int(stored))
    except (TypeError, ValueError):
        return Priority.NORMAL


def overdue(*, deadline: datetime, renewed_until: datetime, now: datetime, skew_s: float) -> EndReason | None:
    """Why something is held too long by the service's clock, or None while it is not."""
    allowed = timedelta(seconds=skew_s)
    if now > deadline + allowed:
        return EndReason.DEADLINE
    if now > renewed_until + allowed:
        return EndReason.NOT_RENEWED
    return None


def belongs(name: str, marker: Marker | None, deployment_id: str) -> bool:
    """Whether something is this deployment's: its name is one of ours and agrees with its marker."""
    parsed = parse_resource_name(name)
    if parsed is None or marker is None or marker.deployment_id != deployment_id:
        return False
    try:
        key = run_key(uuid.UUID(marker.run_id))
    except ValueError:
        return False
    return (parsed.run_key, parsed.generation, parsed.index) == (key, marker.generation, str(marker.index))


def to_iso(moment: datetime) -> str:
    """An aware datetime as ISO 8601 in UTC."""
    return moment.astimezone(UTC).isoformat()


def from_iso(text: str) -> datetime:
    """An aware UTC datetime from ISO 8601; a time without zone (as OpenStack writes them) is UTC.

    Raises:
        ValueError: when the text is not a time.
    """
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
