"""One line of the audit log, and whether a log is whole. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any

from mlops_sdk.canonical import to_json
from mlops_sdk.capacity.lease import from_iso, to_iso

PREFIX = "audit/"


class AuditResult(StrEnum):
    """What came of it."""

    ASKED = "asked"  # written before the call: if nothing follows, its process died in between
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Who did what, when, on which resource, with which result.

    Attributes:
        at: By the clock of the computer that wrote it.
        writer: One process's log; unique.
        number: In that writer's log, from 1.
        who: The person or service, and the login it used.
        action: Such as ``credential.mint``.
        resource: On what.
        result: What came of it.
        detail: What else is worth knowing; never a secret.
        previous: SHA-256 of the writer's entry before this one, "" for its first.
    """

    at: datetime
    writer: str
    number: int
    who: str
    action: str
    resource: str
    result: AuditResult
    detail: Mapping[str, Any] = field(default_factory=dict[str, Any])
    previous: str = ""

    @property
    def key(self) -> str:
        """Its object; keys sort by time."""
        at = self.at.astimezone(UTC)
        return f"{day_prefix(at)}{at:%H%M%S.%f}-{self.writer}-{self.number:06d}.json"

    @property
    def sha256(self) -> str:
        """What the next entry of this writer names."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As stored and exported."""
        return {
            "at": to_iso(self.at),
            "writer": self.writer,
            "number": self.number,
            "who": self.who,
            "action": self.action,
            "resource": self.resource,
            "result": self.result.value,
            "detail": dict(self.detail),
            "previous": self.previous,
        }

    def to_bytes(self) -> bytes:
        """The object."""
        return to_json(self.to_json())

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> AuditEntry:
        """From a stored object."""
        return cls(
            at=from_iso(str(raw["at"])),
            writer=str(raw["writer"]),
            number=int(raw["number"]),
            who=str(raw["who"]),
            action=str(raw["action"]),
            resource=str(raw["resource"]),
            result=AuditResult(raw["result"]),
            detail=raw.get("detail", {}),
            previous=str(raw.get("previous", "")),
        )


def day_prefix(day: datetime) -> str:
    """Where the entries of a day are."""
    return f"{PREFIX}{day.astimezone(UTC):%Y-%m-%d}/"


def breaks(entries: Iterable[AuditEntry]) -> list[str]:
    """Where the log is not what was written: an entry is missing between two others, or was changed.

    Entries before the first one given are not missed, and what was cut off at a writer's end cannot be seen.
    """
    by_writer: dict[str, list[AuditEntry]] = {}
    for entry in entries:
        by_writer.setdefault(entry.writer, []).append(entry)
    found: list[str] = []
    for writer, log in sorted(by_writer.items()):
        log.sort(key=lambda entry: entry.number)
        for before, after in pairwise(log):
            if after.number != before.number + 1:
                found.append(f"{writer}: entries {before.number + 1} to {after.number - 1} are missing")
            elif after.previous != before.sha256:
                found.append(f"{writer}: entry {before.number} is not what entry {after.number} was written after")
    return found
