"""What was seen of a machine after it was given back: the evidence, and how it is judged. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from mlops_sdk.capacity.lease import EndReason, Machine, ReleaseStep, release_step


class Outcome(enum.Enum):
    """How a machine was given back."""

    CLEANED = "cleaned"  # torn down, cleaned by Ironic, back in the pool
    NEVER_DEPLOYED = "never_deployed"  # allocated only; nothing of ours ever ran on it
    NOT_CLEAN = "not_clean"  # cleaning or tear-down failed: it stays out of the pool until an operator looks
    UNPROVEN = "unproven"  # back in the pool, but no cleaning of it was seen or recorded
    PENDING = "pending"  # not given back yet


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
        }

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> NodeEvidence:
        """From the journal."""
        texts = {name: str(data.get(name, "")) for name in _EVIDENCE_TEXT}
        return cls(outcome=Outcome(data["outcome"]), reason=EndReason(data["reason"]), **texts)


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


def judge_outcome(
    machine: Machine | None, *, deployed: bool, saw_cleaning: bool, started_at: datetime, skew_s: float
) -> Outcome:
    """How a machine ended that our allocation has left.

    Clean means: Ironic was seen cleaning it and it is out of that state again, or its own record of a finished cleaning
    is younger than the start of the release.
    """
    if machine is None:
        return Outcome.UNPROVEN if deployed else Outcome.NEVER_DEPLOYED
    step = release_step(None, machine)
    if step is ReleaseStep.NOT_CLEAN or (machine.maintenance and not machine.allocation_id):
        return Outcome.NOT_CLEAN
    if step is not ReleaseStep.DONE:
        return Outcome.PENDING
    if not deployed:
        return Outcome.NEVER_DEPLOYED
    cleaned_at = machine.cleaned_at
    recorded = cleaned_at is not None and cleaned_at >= started_at - timedelta(seconds=skew_s)
    return Outcome.CLEANED if recorded or saw_cleaning else Outcome.UNPROVEN
