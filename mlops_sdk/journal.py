"""What happened to a run: an append-only list of small JSON objects in S3, one object an entry.

The cloud is the authority on what exists; the journal is the authority on what happened. Losing it loses history, never
a machine.
"""

from __future__ import annotations

import enum
import json
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from time import monotonic
from typing import Any

from mlops_sdk.capacity.evidence import NodeEvidence
from mlops_sdk.capacity.lease import from_iso, to_iso
from mlops_sdk.errors import DamagedObject, RemoteError, ServiceUnavailable
from mlops_sdk.objects import ObjectStore, to_json

_ATTEMPTS = 50
_READERS = 8
_SILENCE_S = 30.0


class EntryKind(enum.Enum):
    """What an entry tells."""

    INTENT = "intent"  # written before something is created or given back
    OUTCOME = "outcome"  # what came of it
    EVIDENCE = "evidence"  # what was seen after something was given back
    COST = "cost"  # an interval that was paid for
    EVENT = "event"  # anything else worth knowing


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry: number in the journal, when, who wrote it, about what."""

    number: int
    at: datetime
    writer: str
    kind: EntryKind
    action: str
    resource: str = ""
    generation: int = 0
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {
            "number": self.number,
            "at": to_iso(self.at),
            "writer": self.writer,
            "kind": self.kind.value,
            "action": self.action,
            "resource": self.resource,
            "generation": self.generation,
            "data": dict(self.data),
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Entry:
        """From a stored object."""
        return cls(
            number=int(raw["number"]),
            at=from_iso(str(raw["at"])),
            writer=str(raw["writer"]),
            kind=EntryKind(raw["kind"]),
            action=str(raw["action"]),
            resource=str(raw.get("resource", "")),
            generation=int(raw.get("generation", 0)),
            data=raw.get("data", {}),
        )


class Journal:
    """The journal of one run. Several processes may append at once: each number is taken by a conditional PUT.

    Args:
        store: The deployment's bucket.
        run_key: Which run.
        now: The service's clock.
        writer: Who appends (``run`` or ``reaper``).

    Attributes:
        writer: The same, unique: how this one's entries are told from those of others.
    """

    def __init__(self, store: ObjectStore, run_key: str, *, now: Callable[[], datetime], writer: str = "run") -> None:
        self._store = store
        self._prefix = f"runs/{run_key}/journal/"
        self._now = now
        self.writer = f"{writer}-{uuid.uuid4().hex[:8]}"
        self._next = 0
        self._seen: dict[int, Entry] = {}  # an entry never changes: none is read twice
        self._backlog: list[Entry] = []
        self._silent_until = 0.0
        self._lock = threading.Lock()

    def append(self, kind: EntryKind, action: str, resource: str = "", /, *, generation: int = 0, **data: Any) -> Entry:
        """Write one entry behind the last one; returns it with its number.

        Raises:
            RemoteError: S3 failed, or other writers took every number we tried.
        """
        with self._lock:
            self._flush()
            return self._write(self._entry(kind, action, resource, generation, data))

    def note(self, kind: EntryKind, action: str, resource: str = "", /, *, generation: int = 0, **data: Any) -> None:
        """As `append`, for what must not fail because S3 is down (giving back): kept, and written by the next call."""
        with self._lock:
            self._backlog.append(self._entry(kind, action, resource, generation, data))
            if monotonic() < self._silent_until:
                return
            try:
                self._flush()
            except ServiceUnavailable:
                self._silent_until = monotonic() + _SILENCE_S  # each try takes seconds, and giving back must not wait

    def _flush(self) -> None:
        while self._backlog:
            self._write(self._backlog[0])
            self._backlog.pop(0)

    def _entry(self, kind: EntryKind, action: str, resource: str, generation: int, data: Mapping[str, Any]) -> Entry:
        return Entry(
            number=0,
            at=self._now(),
            writer=self.writer,
            kind=kind,
            action=action,
            resource=resource,
            generation=generation,
            data=data,
        )

    def _write(self, entry: Entry) -> Entry:
        number = self._next or self._last_number() + 1
        for attempt in range(_ATTEMPTS):
            numbered = replace(entry, number=number + attempt)
            body = to_json(numbered.to_json())
            if self._store.put_if_absent(f"{self._prefix}{numbered.number:08d}.json", body):
                self._next = numbered.number + 1
                self._seen[numbered.number] = Entry.parse(json.loads(body))
                return numbered
        raise RemoteError(
            f"journal {self._prefix!r} did not take an entry",
            seen=f"{_ATTEMPTS} numbers from {number} on were taken by others",
            next_step="see who else writes this run's journal: `mlops runs show`",
        )

    def entries(self, known: Mapping[int, Entry] | None = None) -> list[Entry]:
        """All entries, oldest first.

        Args:
            known: Entries of this journal by number that need not be read again; an entry never changes.

        Raises:
            DamagedObject: An object of it is no entry; names the object.
        """
        known = known or {}
        keys = {self._number(info.key): info.key for info in self._store.list(self._prefix)}
        new = [key for number, key in keys.items() if number not in known and number not in self._seen]
        if new:
            with ThreadPoolExecutor(_READERS) as pool:
                self._seen.update({entry.number: entry for entry in pool.map(self._read, new) if entry is not None})
        found = [self._seen[number] for number in keys if number in self._seen and number not in known]
        return sorted([*known.values(), *found], key=lambda entry: entry.number)

    def first(self) -> Entry | None:
        """The entry that opened the run, or None when there is no such run."""
        return self._read(f"{self._prefix}{1:08d}.json")

    def _read(self, key: str) -> Entry | None:
        raw = self._store.get_json(key)
        try:
            return None if raw is None else Entry.parse(raw)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedObject(
                f"object {key!r} is no journal entry",
                seen=f"{type(error).__name__}: {error}",
                next_step="restore it from its earlier version, or remove it if it was put there by mistake",
            ) from error

    def _last_number(self) -> int:
        last = 0
        for info in self._store.list(self._prefix):
            last = max(last, self._number(info.key))
        return last

    def _number(self, key: str) -> int:
        stem = key.removeprefix(self._prefix).removesuffix(".json")
        return int(stem) if stem.isdigit() else 0


def note_evidence(
    journal: Journal, evidence: NodeEvidence, *, generation: int, resource_class: str, since: datetime | None
) -> None:
    """Write down how a machine was given back, and the interval it cost."""
    journal.note(EntryKind.EVIDENCE, "machine.released", evidence.resource, generation=generation, **evidence.to_json())
    if evidence.node_id and since is not None:
        journal.note(
            EntryKind.COST,
            "machine.interval",
            evidence.resource,
            generation=generation,
            node_id=evidence.node_id,
            resource_class=resource_class,
            start=to_iso(since),
            end=evidence.finished_at,
        )
