"""What a run's journal tells: per generation what was asked for, what was created, and what became of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from mlops_sdk.capacity.cost import Interval
from mlops_sdk.capacity.evidence import NodeEvidence, Outcome
from mlops_sdk.capacity.lease import DEFAULT_PROVIDER, LeaseRequest, from_iso, priority_of, to_iso
from mlops_sdk.capacity.lifecycle import OVER, EndReason, LeaseEvent, LeaseState, advance
from mlops_sdk.capacity.members import Replacement, begun, ended, given_up
from mlops_sdk.capacity.orders import Keeping
from mlops_sdk.errors import ImpossibleEvent
from mlops_sdk.journal import Entry, EntryKind


@dataclass(slots=True, kw_only=True)
class Piece:
    """One allocation of a generation, as journalled."""

    name: str
    allocation_id: str = ""
    node_id: str = ""
    node_name: str = ""
    since: datetime | None = None
    deployed: bool = False
    failed: str = ""
    evidence: NodeEvidence | None = None

    @property
    def ended(self) -> bool:
        """Whether what became of it was written down: its cleaning has ended, too."""
        return self.evidence is not None and self.evidence.outcome is not Outcome.PENDING


@dataclass(slots=True, kw_only=True)
class Generation:
    """One generation of a run's lease, as journalled.

    Attributes:
        number: Of the generation.
        state: Where its lease stands.
        request: What was asked for; with its latest deadline.
        ends_at: When it ends before that deadline; None for no such end.
        credentials: Names of its application credentials; more than one when it was extended.
        revoked: Those of them that are gone.
        pieces: Its machines, by the name under which each was leased.
        replacements: What was repaired, and what was begun of it.
        preempted: Whether it was given notice for somebody else.
        reason: Why it ended, as whoever ended it said first; None while it lasts.
        impossible: What its journal tells that cannot be, in words; the state is the one before that.
    """

    number: int
    state: LeaseState = LeaseState.NEW
    request: LeaseRequest | None = None
    ends_at: datetime | None = None
    credentials: set[str] = field(default_factory=set[str])
    revoked: set[str] = field(default_factory=set[str])
    pieces: dict[str, Piece] = field(default_factory=dict[str, Piece])
    replacements: list[Replacement] = field(default_factory=list[Replacement])
    preempted: bool = False
    reason: EndReason | None = None
    impossible: list[str] = field(default_factory=list[str])

    @property
    def over(self) -> bool:
        """Whether it can only be given back, or was."""
        return self.state in OVER

    @property
    def end(self) -> datetime | None:
        """When its machines are given back at the latest; None before anything was asked for."""
        ends = [moment for moment in (self.ends_at, self.request.deadline if self.request else None) if moment]
        return min(ends) if ends else None

    @property
    def returned(self) -> bool:
        """Whether what became of every machine that it ever had was written down."""
        return bool(self.pieces) and all(piece.ended for piece in self.pieces.values())

    def why(self, seen: EndReason) -> EndReason:
        """Why it ends, by what its work has seen: machines that went away after notice went to who needed them."""
        return EndReason.PREEMPTED if self.preempted and seen is EndReason.NODE_FAILED else seen


@dataclass(slots=True, kw_only=True)
class History:
    """A whole run, as journalled."""

    run_id: str = ""
    name: str = ""
    owner: str = ""
    started_at: datetime | None = None
    last_at: datetime | None = None
    generations: dict[int, Generation] = field(default_factory=dict[int, Generation])
    intervals: list[Interval] = field(default_factory=list[Interval])

    def intervals_until(self, now: datetime) -> list[Interval]:
        """What was paid for until now: finished intervals, and those of machines that are still held."""
        running: list[Interval] = []
        for generation in self.generations.values():
            for piece in generation.pieces.values():
                if generation.request is None or piece.since is None or piece.evidence is not None or not piece.node_id:
                    continue
                running.append(
                    Interval(
                        node_id=piece.node_id,
                        resource_class=generation.request.resource_class,
                        start=piece.since,
                        end=now,
                    )
                )
        return [*self.intervals, *running]

    @property
    def latest(self) -> Generation | None:
        """The newest generation, or None before any."""
        return self.generations[max(self.generations)] if self.generations else None

    @property
    def lasting(self) -> LeaseRequest | None:
        """What the latest generation asked for, while nobody has begun to give it back, and a task works with it."""
        latest = self.latest
        if latest is None or latest.over or latest.state is LeaseState.WARM:
            return None
        return latest.request

    def generation_to_try(self, stored: int = 0, *, wanted: LeaseRequest | None = None) -> int:
        """Which generation a new try of the same task works on: the latest while it lasts, else the next one.

        One that is kept warm is for who wants the same; one that is held for debugging is for a person.

        Args:
            stored: What an earlier try wrote down before it created anything; 0 for nothing.
            wanted: What the task wants; None: whatever there is.

        Example:
            >>> History().generation_to_try()
            1
        """
        latest = self.latest
        if latest is None:
            return max(stored, 1)
        ended = latest.over or latest.state is LeaseState.HELD_FOR_DEBUG
        if latest.state is LeaseState.WARM and wanted is not None and latest.request is not None:
            ended = not same_machines(latest.request, wanted)
        return max(stored, latest.number + 1 if ended else latest.number)


def read_history(entries: Iterable[Entry]) -> History:
    """Fold the entries, oldest first, into what they tell."""
    history = History()
    for entry in entries:
        history.last_at = entry.at
        if entry.action == "run":
            history.run_id = str(entry.data.get("run_id", ""))
            history.name = str(entry.data.get("name", ""))
            history.owner = str(entry.data.get("owner", ""))
            history.started_at = entry.at
        if entry.generation:
            number = entry.generation
            _apply(history.generations.setdefault(number, Generation(number=number)), entry)
        if entry.kind is EntryKind.COST:
            history.intervals.append(_interval(entry.data))
    return history


def same_machines(one: LeaseRequest, other: LeaseRequest) -> bool:
    """Whether two requests differ in their times alone."""
    return replace(other, deadline=one.deadline, wait_s=one.wait_s) == one


def request_to_json(request: LeaseRequest) -> dict[str, Any]:
    """A request as journalled."""
    return {
        "nodes": request.nodes,
        "resource_class": request.resource_class,
        "traits": list(request.traits),
        "deadline": to_iso(request.deadline),
        "wait_s": request.wait_s,
        "provider": request.provider,
        "priority": int(request.priority),
        "preemptible": request.preemptible,
        "spares": request.spares,
        "machines": list(request.machines),
        "project": request.project,
        "hold_on_failure_s": request.hold_on_failure_s,
    }


def request_from_json(data: Mapping[str, Any]) -> LeaseRequest:
    """A request from the journal; one that names no provider was written when Ironic was the only one."""
    return LeaseRequest(
        nodes=int(data["nodes"]),
        resource_class=str(data["resource_class"]),
        traits=tuple(data["traits"]),
        deadline=from_iso(str(data["deadline"])),
        wait_s=float(data["wait_s"]),
        provider=str(data.get("provider", DEFAULT_PROVIDER)),
        priority=priority_of(data.get("priority")),
        preemptible=bool(data.get("preemptible", False)),
        spares=int(data.get("spares", 0)),
        machines=tuple(data.get("machines", ())),
        project=str(data.get("project", "")),
        hold_on_failure_s=float(data.get("hold_on_failure_s", 0.0)),
    )


KEEPING_ACTION: Mapping[Keeping, str] = {Keeping.DEBUG: "lease.hold", Keeping.WARM: "lease.park"}

_EVENTS: Mapping[tuple[str, EntryKind], LeaseEvent] = {
    ("lease", EntryKind.INTENT): LeaseEvent.ASKED,
    ("lease.queue", EntryKind.EVENT): LeaseEvent.QUEUED,
    ("allocation.create", EntryKind.INTENT): LeaseEvent.BEGUN,
    ("lease", EntryKind.OUTCOME): LeaseEvent.LEASED,
    ("lease.extend", EntryKind.OUTCOME): LeaseEvent.EXTENDED,
    ("lease.notice", EntryKind.EVENT): LeaseEvent.NOTICED,
    ("lease.hold", EntryKind.OUTCOME): LeaseEvent.HELD,
    ("lease.park", EntryKind.OUTCOME): LeaseEvent.PARKED,
    ("release", EntryKind.INTENT): LeaseEvent.GIVING_BACK,
    ("release", EntryKind.OUTCOME): LeaseEvent.RETURNED,
}
"""Entries that tell of an event by themselves."""


_OF_A_PIECE = {"allocation.create", "machine.deploy", "machine.failed", "allocation.delete", "machine.released"}


def _apply(generation: Generation, entry: Entry) -> None:
    data = entry.data
    if entry.action == "lease" and entry.kind is EntryKind.INTENT:
        generation.request = generation.request or request_from_json(data["request"])
    elif entry.action.startswith("lease"):
        _apply_decision(generation, entry)
    elif entry.action == "credential.create":
        generation.credentials.add(entry.resource)
        generation.revoked.discard(entry.resource)
    elif entry.action == "credential.revoke" and entry.kind is EntryKind.OUTCOME:
        generation.revoked.add(entry.resource)
    elif entry.action == "node.replace":
        lost, by = int(data["lost"]), int(data["by"])
        if entry.kind is EntryKind.OUTCOME:
            generation.replacements = ended(generation.replacements, lost, by)
        elif entry.kind is EntryKind.EVENT:
            generation.replacements = given_up(generation.replacements, lost, by)
        else:
            generation.replacements = begun(generation.replacements, lost, by, str(data.get("unfenced", "")))
    elif entry.action in _OF_A_PIECE:
        _apply_piece(generation.pieces.setdefault(entry.resource, Piece(name=entry.resource)), entry)
    event = _EVENTS.get((entry.action, entry.kind))
    if event is LeaseEvent.RETURNED and Outcome.PENDING.value in dict(data.get("outcomes", {})).values():
        event = None  # its cleaning goes on: whoever sees the end of it writes that down
    _happen(generation, event, entry)
    _end(generation, entry)


def _end(generation: Generation, entry: Entry) -> None:
    """Why it ended, and that it did, as soon as the entries say so."""
    if entry.action == "release" and entry.kind is EntryKind.INTENT:
        generation.reason = generation.reason or EndReason(entry.data.get("reason", EndReason.FINISHED.value))
    if generation.returned:
        evidence = [piece.evidence for piece in generation.pieces.values() if piece.evidence is not None]
        generation.reason = generation.reason or evidence[0].reason
        generation.preempted = generation.preempted or generation.reason is EndReason.PREEMPTED
        _happen(generation, None if generation.over else LeaseEvent.TAKEN, entry)
        revoked = bool(generation.revoked) and generation.credentials <= generation.revoked
        _happen(generation, LeaseEvent.RETURNED if revoked else None, entry)


def _apply_decision(generation: Generation, entry: Entry) -> None:
    """What was decided about a lease after it was asked for."""
    data = entry.data
    if entry.action == "lease.extend" and entry.kind is EntryKind.OUTCOME:
        _extend(generation, entry)
    elif entry.action == "lease.notice" and EndReason(data["reason"]) is not EndReason.DEADLINE:
        generation.ends_at = from_iso(str(data["ends_at"]))
        generation.preempted = True
    elif entry.action in KEEPING_ACTION.values() and entry.kind is EntryKind.OUTCOME:
        generation.ends_at = from_iso(str(data["until"]))
    elif entry.action == "lease" and generation.state is LeaseState.WARM:
        generation.ends_at = None


def _extend(generation: Generation, entry: Entry) -> None:
    """Two processes may write down the same extension, or two of them in another order: the latest deadline counts."""
    deadline = from_iso(str(entry.data["deadline"]))
    if generation.request is not None and deadline > generation.request.deadline:
        generation.request = replace(generation.request, deadline=deadline)
    if generation.ends_at is not None:
        generation.ends_at = max(generation.ends_at, deadline)


def _happen(generation: Generation, event: LeaseEvent | None, entry: Entry) -> None:
    if event is None:
        return
    words = f"entry {entry.number}: {entry.kind.value} {entry.action!r} by {entry.writer}"
    try:
        generation.state = advance(generation.state, event, raw=words)
    except ImpossibleEvent as error:  # the machines are there all the same, and have to be given back
        generation.impossible.append(f"{error.what} ({error.seen})")


def _apply_piece(piece: Piece, entry: Entry) -> None:
    data = entry.data
    piece.allocation_id = str(data.get("allocation_id") or piece.allocation_id)
    piece.node_id = str(data.get("node_id") or piece.node_id)
    piece.node_name = str(data.get("node_name") or piece.node_name)
    if entry.action == "allocation.create" and entry.kind is EntryKind.OUTCOME:
        piece.since = entry.at
    if entry.action == "machine.deploy":
        piece.deployed = True
    if entry.action == "machine.failed":
        piece.failed = str(data.get("seen") or "failed")
    if entry.action == "allocation.delete" and data.get("provision_state") == "available":
        piece.deployed = False
    if entry.kind is EntryKind.EVIDENCE:
        piece.evidence = NodeEvidence.parse(data)


def _interval(data: Mapping[str, Any]) -> Interval:
    return Interval(
        node_id=str(data["node_id"]),
        resource_class=str(data["resource_class"]),
        start=from_iso(str(data["start"])),
        end=from_iso(str(data["end"])),
    )
