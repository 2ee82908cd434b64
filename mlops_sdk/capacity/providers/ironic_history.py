"""Which cleaning a machine has had, from Ironic's history of the node or what its deploy interface left. Pure.

Ironic (2025.2 and later, ``[conductor] record_step_flows_in_history``) writes down the start of each cleaning with its
steps, and its end. The end of a good one no longer names the steps: they are taken from its start.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from mlops_sdk.capacity.evidence import Cleaning
from mlops_sdk.capacity.lease import from_iso
from mlops_sdk.capacity.providers.ironic_view import Machine

_STARTS = {"automated_cleaning_start", "manual_cleaning_start"}
_ENDS = {"automated_cleaning_end", "manual_cleaning_end"}
_STEPS = "steps="


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One entry of a node's history.

    Attributes:
        at: When.
        kind: Ironic's event type.
        words: Ironic's words.
        error: Whether it is the record of a failure.
    """

    at: datetime
    kind: str
    words: str
    error: bool = False


def last_cleaning(machine: Machine, history: Sequence[HistoryEntry]) -> Cleaning | None:
    """The youngest cleaning that ended well; None when none is on record.

    Args:
        machine: What Ironic shows now.
        history: The node's, newest first.
    """
    found = [cleaning for cleaning in (_from_history(history), _from_deploy_interface(machine)) if cleaning is not None]
    return max(found, key=lambda cleaning: (cleaning.finished_at, len(cleaning.steps)), default=None)


def _from_history(history: Sequence[HistoryEntry]) -> Cleaning | None:
    for position, entry in enumerate(history):
        if entry.kind in _ENDS and not entry.error:
            start = next((earlier for earlier in history[position + 1 :] if earlier.kind in _STARTS), None)
            steps = _steps(entry.words) or (_steps(start.words) if start is not None else ())
            return Cleaning(finished_at=entry.at, steps=steps)
    return None


def _steps(words: str) -> tuple[str, ...]:
    """Names of the steps in Ironic's words, which end with a Python list of them."""
    _, found, text = words.partition(_STEPS)
    try:
        steps: Any = ast.literal_eval(text) if found else []
    except (ValueError, SyntaxError):
        return ()
    return tuple(_name(cast("Mapping[str, Any]", step)) for step in steps if isinstance(step, Mapping))


def _name(step: Mapping[str, Any]) -> str:
    """As in Ironic's documentation: ``deploy.erase_devices``."""
    return ".".join(str(step[key]) for key in ("interface", "step") if step.get(key))


def _from_deploy_interface(machine: Machine) -> Cleaning | None:
    """What a deploy interface may have left in ``extra["cleaned"]``: for a cloud whose Ironic keeps no step flows."""
    record = machine.extra.get("cleaned")
    if not isinstance(record, Mapping):
        return None
    data = cast("Mapping[str, Any]", record)
    try:
        steps = tuple(str(step) for step in data.get("steps", ()))
        return Cleaning(finished_at=from_iso(str(data["finished_at"])), steps=steps)
    except (KeyError, ValueError, TypeError):
        return None
