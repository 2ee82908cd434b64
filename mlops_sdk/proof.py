"""The proof that a run gave everything back: what it created, item by item, with what was seen of it. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class ProofKind(enum.Enum):
    """What kind of thing a run created."""

    ALLOCATION = "allocation"
    MACHINE = "machine"
    CREDENTIAL = "credential"
    FENCE = "fence"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofItem:
    """One thing that a run created: whether it is back, and what shows it."""

    kind: ProofKind
    resource: str
    returned: bool
    evidence: str

    def to_json(self) -> dict[str, Any]:
        """For the CLI and the timeline."""
        return {
            "kind": self.kind.value,
            "resource": self.resource,
            "returned": self.returned,
            "evidence": self.evidence,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Everything a run created."""

    run_key: str
    items: tuple[ProofItem, ...]

    @property
    def complete(self) -> bool:
        """Whether everything is back, cleaned and revoked."""
        return all(item.returned for item in self.items)

    @property
    def missing(self) -> tuple[ProofItem, ...]:
        """What is not proven to be back."""
        return tuple(item for item in self.items if not item.returned)

    def to_json(self) -> dict[str, Any]:
        """For the CLI and the timeline."""
        return {
            "run_key": self.run_key,
            "complete": self.complete,
            "items": [item.to_json() for item in self.items],
        }
