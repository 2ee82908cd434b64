"""What a run is charged for, read from its journal. Pure.

The entries may come in any order. Whatever was not written because a process died is concluded from what was: a machine
with evidence of its return and no interval counts until that evidence; an attempt without an end ends with the next
one, with the release, or with the machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from mlops_sdk.capacity.cost import Interval
from mlops_sdk.capacity.cost_lines import Hold, Line, Rollout, Spending, Stored, Wait, Work
from mlops_sdk.capacity.lease import from_iso
from mlops_sdk.checkpoint.manifest import Manifest
from mlops_sdk.history import History, Piece, read_history
from mlops_sdk.journal import Entry, EntryKind
from mlops_sdk.names import piece_number
from mlops_sdk.training.launch import Cause

ATTEMPT: Final = "attempt"
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_KEPT: Final = {"lease.hold": Line.DEBUG, "lease.park": Line.WARM}
_COUNTED: Final = frozenset({Cause.SUCCEEDED.value, Cause.STOPPED.value})  # the work is done, or is in a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as far as its cost goes.

    Attributes:
        key: Of the run.
        history: What its journal tells.
        spending: Machines and work on them, until `read_record`'s now; neither storage nor serving.
        rollouts: When versions of it began to serve.
        models: URIs of the model versions that it has registered.
        model: Name of the model that it was ordered to train; empty when it was not.
    """

    key: str
    history: History
    spending: Spending
    rollouts: tuple[Rollout, ...] = ()
    models: tuple[str, ...] = ()
    model: str = ""

    def ahead(self, now: datetime) -> tuple[Interval, ...]:
        """What is promised still: each machine that is leased or asked for, from now until the deadline.

        A generation that is being given back is not expected to reach its deadline, so it is left out.
        """
        return tuple(
            Interval(
                node_id=f"{self.key}-g{generation.number}-{index}",
                resource_class=generation.request.resource_class,
                start=now,
                end=max(now, generation.end or now),
            )
            for generation in self.history.generations.values()
            if generation.request is not None and not generation.over
            for index in range(generation.request.nodes + generation.request.spares)
        )


def read_record(key: str, entries: Iterable[Entry], now: datetime) -> RunRecord:
    """Fold a journal into what it says about money. Machines that are still held count until now."""
    ordered = sorted(entries, key=lambda entry: entry.number)
    history = read_history(ordered)
    return RunRecord(
        key=key,
        history=history,
        spending=Spending(
            holds=tuple(_holds(ordered, history, now)),
            works=tuple(_works(ordered, history, now)),
            waits=tuple(_waits(ordered, history, now)),
        ),
        rollouts=tuple(
            Rollout(run_key=key, endpoint=e.resource, version=str(e.data.get("version", "")), at=e.at)
            for e in ordered
            if e.action == "deploy" and e.kind is EntryKind.OUTCOME
        ),
        models=tuple(
            dict.fromkeys(e.resource for e in ordered if e.action == "register" and e.kind is EntryKind.OUTCOME)
        ),
        model=next((_model_of(e) for e in reversed(ordered) if e.action == "train"), ""),
    )


def stored_in(manifests: Iterable[Manifest], now: datetime) -> tuple[Stored, ...]:
    """The checkpoints that are in the bucket now, each since its commit. Those removed meanwhile are not seen."""
    return tuple(Stored(bytes=m.bytes, start=min(m.created, now), end=now) for m in manifests)


def _model_of(entry: Entry) -> str:
    """From a training that was ordered, or one that is finished."""
    written = entry.data.get("order") or entry.data.get("trained") or {}
    return str(written.get("model_name", ""))


def _holds(entries: Sequence[Entry], history: History, now: datetime) -> Iterable[Hold]:
    roles = _roles(entries, history)
    for entry in entries:
        if entry.kind is EntryKind.COST:
            data = entry.data
            spare_until, away_from = roles.get((entry.generation, entry.resource), (None, None))
            yield Hold(
                generation=entry.generation,
                spare_until=spare_until,
                away_from=away_from,
                interval=Interval(
                    node_id=str(data["node_id"]),
                    resource_class=str(data["resource_class"]),
                    start=from_iso(str(data["start"])),
                    end=from_iso(str(data["end"])),
                ),
            )
    for generation in history.generations.values():
        for piece in generation.pieces.values():
            if generation.request is not None and piece.since is not None and piece.node_id:
                interval = Interval(
                    node_id=piece.node_id,
                    resource_class=generation.request.resource_class,
                    start=piece.since,
                    end=_end_of(piece, now),
                )
                spare_until, away_from = roles.get((generation.number, piece.name), (None, None))
                yield Hold(
                    generation=generation.number, interval=interval, spare_until=spare_until, away_from=away_from
                )


_Role = tuple[datetime | None, datetime | None]


def _roles(entries: Sequence[Entry], history: History) -> dict[tuple[int, str], _Role]:
    """Until when a piece was in reserve, and from when on it was lost; one that is not there worked all the time."""
    found: dict[tuple[int, str], _Role] = {}
    for generation in history.generations.values():
        request = generation.request
        for name in generation.pieces:
            if request is not None and request.nodes <= piece_number(name) < request.nodes + request.spares:
                found[generation.number, name] = (_NEVER, None)
    for entry in entries:
        if entry.action != "node.replace":
            continue
        lost = (entry.generation, entry.resource)
        spare_until = found.get(lost, (None, None))[0]
        if entry.kind is EntryKind.INTENT:
            found[lost] = (spare_until, entry.at)
        elif entry.kind is EntryKind.EVENT:  # given up: it stays
            found[lost] = (spare_until, None)
        elif entry.kind is EntryKind.OUTCOME:
            found[entry.generation, f"{entry.resource.rpartition('-')[0]}-{entry.data['by']}"] = (entry.at, None)
    return found


def _end_of(piece: Piece, now: datetime) -> datetime:
    finished = piece.evidence.finished_at if piece.evidence is not None else ""
    return from_iso(finished) if finished else now


def _works(entries: Sequence[Entry], history: History, now: datetime) -> Iterable[Work]:
    """The attempts, each with the end that was written down or can be concluded."""
    starts = [e for e in entries if e.action == ATTEMPT and e.kind is EntryKind.INTENT]
    ends = {e.data.get("attempt"): e for e in entries if e.action == ATTEMPT and e.kind is EntryKind.OUTCOME}
    for start in starts:
        end = ends.get(start.data.get("attempt"))
        if end is not None:
            counted = end.data.get("cause") in _COUNTED
            yield Work(generation=start.generation, start=start.at, end=max(start.at, end.at), counted=counted)
            continue
        stop, counted = _concluded(start, entries, history, now)
        yield Work(generation=start.generation, start=start.at, end=max(start.at, stop), counted=counted)


def _waits(entries: Sequence[Entry], history: History, now: datetime) -> Iterable[Wait]:
    """Times for which machines were kept: until they are leased again, given back, or returned by the reaper."""
    for entry in entries:
        line = _KEPT.get(entry.action)
        if line is None or entry.kind is not EntryKind.OUTCOME:
            continue
        after = (
            later.at
            for later in entries
            if later.number > entry.number
            and later.generation == entry.generation
            and later.action in {"lease", "release", "machine.released"}
        )
        end = next(after, now)
        returned = _returned_at(history, entry.generation)
        if returned is not None and returned > entry.at:
            end = min(end, returned)
        yield Wait(generation=entry.generation, start=entry.at, end=end, line=line)


def _returned_at(history: History, generation: int) -> datetime | None:
    """When the first machine of a generation began to be returned; None while none was."""
    found = history.generations.get(generation)
    evidence = [p.evidence for p in found.pieces.values() if p.evidence is not None] if found else []
    return min((from_iso(item.started_at) for item in evidence if item.started_at), default=None)


def _concluded(start: Entry, entries: Sequence[Entry], history: History, now: datetime) -> tuple[datetime, bool]:
    """When an attempt without an end ended, and whether it counts: its training was written down, or it still runs."""
    later = [entry for entry in entries if entry.number > start.number and entry.generation == start.generation]
    for entry in later:
        if entry.action == "train" and entry.kind is EntryKind.OUTCOME:
            return entry.at, True
        if entry.action == "release" or (entry.action == ATTEMPT and entry.kind is EntryKind.INTENT):
            return entry.at, False
    returned = _returned_at(history, start.generation)
    return (returned, False) if returned is not None else (now, True)
