"""What a lease is: its request, states, reasons to end, and the marker that each piece of it carries. Pure.

What a provider shows of its pieces, and what is done next about one, is in a pure module of that provider
(`providers/ironic_states.py`, `providers/static_claim.py`).
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
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
        wait_s: How long to wait for capacity before `NoCapacity`; 0 asks once. For machines of who was given notice for
            this, at least until they are back.
        provider: Whose machines: one of those that the deployment has.
        priority: Its class, while there are fewer machines than people want (`mlops_sdk.capacity.queue`).
        preemptible: Whether the lease may be ended, with notice, for a higher priority.
        spares: How many more machines to keep ready for the place of a lost one; fewer, where there are not so many.
        machines: Only these, by the provider's id or name; empty for any.
        project: For which project of the cloud (Ironic: owner of the allocation); "" for that of the login.
        hold_on_failure_s: How long the machines stay for a person to look at them when what ran there failed; paid for,
            and never beyond the deadline. 0: they are given back.
    """

    nodes: int
    resource_class: str
    deadline: datetime
    traits: tuple[str, ...] = ()
    wait_s: float = 0.0
    provider: str = DEFAULT_PROVIDER
    priority: Priority = Priority.NORMAL
    preemptible: bool = False
    spares: int = 0
    machines: tuple[str, ...] = ()
    project: str = ""
    hold_on_failure_s: float = 0.0

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError(f"a lease needs at least one machine, not {self.nodes!r}")
        if self.spares < 0:
            raise ValueError(f"spares must not be negative, not {self.spares!r}")
        if self.machines and len(self.machines) < self.nodes:
            raise ValueError(f"{self.nodes} machines cannot be among {len(self.machines)}")
        if self.deadline.tzinfo is None:
            raise ValueError(f"deadline {self.deadline!r} has no time zone")
        if self.wait_s < 0:
            raise ValueError(f"wait_s must not be negative, not {self.wait_s!r}")
        if self.hold_on_failure_s < 0:
            raise ValueError(f"hold_on_failure_s must not be negative, not {self.hold_on_failure_s!r}")

    def __str__(self) -> str:
        traits = f" with traits {', '.join(self.traits)}" if self.traits else ""
        spares = f" and {self.spares} in reserve" if self.spares else ""
        among = f" among {', '.join(self.machines)}" if self.machines else ""
        whose = "" if self.provider == DEFAULT_PROVIDER else f" of {self.provider}"
        return f"{self.nodes} x {self.resource_class}{traits}{spares}{among}{whose}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """What a piece of a lease carries (Ironic: in its allocation's ``extra``): whose it is, how long it may be held."""

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
