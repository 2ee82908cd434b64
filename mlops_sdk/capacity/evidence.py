"""What was seen of a machine after it was given back: the evidence, and how it is judged. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mlops_sdk.capacity.lease import EndReason


class Outcome(enum.Enum):
    """How a machine was given back."""

    CLEANED = "cleaned"  # torn down, cleaned, its disks erased, back in the pool
    NEVER_DEPLOYED = "never_deployed"  # allocated only; nothing of ours ever ran on it
    NOT_CLEAN = "not_clean"  # cleaning or tear-down failed: it stays out of the pool until an operator looks
    UNPROVEN = "unproven"  # back in the pool, but no cleaning that erased its disks is on record
    PENDING = "pending"  # not given back yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaning:
    """A cleaning that ended well, as the provider recorded it.

    Attributes:
        finished_at: When, by the provider's clock.
        steps: What was done, in its words and order.
    """

    finished_at: datetime
    steps: tuple[str, ...]

    @property
    def erased(self) -> bool:
        """Whether disks were erased: a step whose name says so (Ironic: ``erase_devices``, ``erase_...``) was run.

        Example:
            >>> from datetime import UTC
            >>> Cleaning(finished_at=datetime(2026, 1, 1, tzinfo=UTC), steps=("update_firmware",)).erased
            False
        """
        return any(step.rpartition(".")[2].startswith("erase") for step in self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEvidence:
    """What was seen of one machine after its release: the proof that it is no longer held.

    Attributes:
        resource: Name of the allocation.
        allocation_id: Ironic's id of the allocation.
        node_id: Ironic's id of the machine ("" when none was ever allocated).
        outcome: How it ended.
        provision_state: The machine's last state seen.
        power_state: The machine's last power state seen.
        cleaned_at: When cleaning finished, ISO UTC ("" when unknown).
        steps: What that cleaning did, in the provider's words: empty when it is not known.
        recleans: How often cleaning was started again after it had failed.
        last_error: Ironic's words when something went wrong.
        released_by: ``run`` or ``reaper``.
        reason: Why the lease ended.
        started_at: When the release began, ISO UTC by Ironic's clock.
        finished_at: When the outcome was seen, ISO UTC by Ironic's clock.
    """

    resource: str
    allocation_id: str
    node_id: str
    outcome: Outcome
    reason: EndReason
    released_by: str
    node_name: str = ""
    provision_state: str = ""
    power_state: str = ""
    cleaned_at: str = ""
    last_error: str = ""
    started_at: str = ""
    finished_at: str = ""
    steps: tuple[str, ...] = ()
    recleans: int = 0

    @property
    def clean(self) -> bool:
        """Whether the next user finds a machine without anything of this run."""
        return self.outcome in {Outcome.CLEANED, Outcome.NEVER_DEPLOYED}

    def to_json(self) -> dict[str, Any]:
        """As journalled."""
        return {
            **{name: getattr(self, name) for name in _EVIDENCE_TEXT},
            "outcome": self.outcome.value,
            "reason": self.reason.value,
            "steps": list(self.steps),
            "recleans": self.recleans,
        }

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> NodeEvidence:
        """From the journal."""
        texts = {name: str(data.get(name, "")) for name in _EVIDENCE_TEXT}
        return cls(
            outcome=Outcome(data["outcome"]),
            reason=EndReason(data["reason"]),
            steps=tuple(str(step) for step in data.get("steps", ())),
            recleans=int(data.get("recleans", 0)),
            **texts,
        )


_EVIDENCE_TEXT = (
    "resource",
    "allocation_id",
    "node_id",
    "released_by",
    "node_name",
    "provision_state",
    "power_state",
    "cleaned_at",
    "last_error",
    "started_at",
    "finished_at",
)
