"""What a provider shows of the things that are leased through it, and which of them are overdue. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import EndReason, Marker, belongs, overdue


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One piece of a lease that is to be given back, and what is known of it.

    Attributes:
        name: Name under which it was leased.
        allocation_id: The provider's id of the lease on this piece, when it is known.
        node_id: The machine, when it is known; lets us prove the outcome though the lease on it is gone.
        deployed: Whether something of ours may have run on the machine.
        since: When the machine was leased; a cleaning that finished later proves it clean.
        kind: The provider's word for what this is ("" for a leased machine); see `Owned.kind`.
    """

    name: str
    allocation_id: str = ""
    node_id: str = ""
    deployed: bool = False
    since: datetime | None = None
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """Something that exists at a provider and carries our marker.

    Attributes:
        provider: Name of the provider.
        kind: Its word for what this is (``allocation``, ``server``, ``port``, ...).
        id: Its id for this thing.
        name: Ours.
        marker: Whose it is, and until when.
        created_at: ISO UTC, as the provider says it ("" when it does not).
        node_id: The machine behind it ("" when none).
        node_name: That machine's name, when the listing tells it.
        parent: Id of what it belongs to ("" for a lease on a machine): a child is given back after its parent.
    """

    provider: str
    kind: str
    id: str
    name: str
    marker: Marker
    created_at: str = ""
    node_id: str = ""
    node_name: str = ""
    parent: str = ""

    @property
    def held(self) -> Held:
        """As what is to be given back."""
        return Held(name=self.name, allocation_id=self.id, node_id=self.node_id, kind=self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMachine:
    """A machine that a login sees, whoever holds it.

    Attributes:
        provider: Name of the provider.
        id: The provider's id.
        name: Its name.
        resource_class: The provider's word for this kind of machine.
        state: In the provider's words.
        power: In the provider's words ("" when it does not say).
        held_by: Name of what holds it ("" when nobody does).
        marker: Of the holder, when it carries one of ours.
        traits: What it has.
        free: It could be given to somebody now.
        in_service: It is free, or will be when who holds it gives it back.
        since: When the holder got it, ISO UTC ("" when nobody holds it or the provider does not say).
    """

    provider: str
    id: str
    name: str
    resource_class: str
    state: str
    power: str = ""
    held_by: str = ""
    marker: Marker | None = None
    traits: tuple[str, ...] = ()
    free: bool = False
    in_service: bool = True
    since: str = ""


class Standing(enum.Enum):
    """Where one piece of a lease stands at its provider."""

    HELD = "held"  # the lease on it exists
    UNFINISHED = "unfinished"  # no lease any more, but its machine is stuck half returned: it has to be asked again
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a provider shows of one piece of a lease now.

    Attributes:
        standing: Whether the lease on it exists.
        words: What shows it, for the proof.
        outcome: How its machine ended, judged by what that shows; None when no machine is known.
        machine_words: What shows that.
    """

    standing: Standing
    words: str
    outcome: Outcome | None = None
    machine_words: str = ""


def due_for_return(
    owned: Iterable[Owned], *, deployment_id: str, now: datetime, skew_s: float
) -> list[tuple[Owned, EndReason]]:
    """What the reaper returns now: ours by name and by marker, and overdue. Never anybody else's.

    Children after parents: what belongs to something that is still there is left to the return of that.
    """
    there = list(owned)
    ids = {(item.provider, item.id) for item in there}
    due: list[tuple[Owned, EndReason]] = []
    for item in there:
        marker = item.marker
        if not belongs(item.name, marker, deployment_id) or (item.provider, item.parent) in ids:
            continue
        reason = overdue(deadline=marker.deadline, renewed_until=marker.renewed_until, now=now, skew_s=skew_s)
        if reason is not None:
            due.append((item, reason))
    return due
