"""Every state of an Ironic node, and what we do in it: one table. Pure.

Three questions are asked of a machine: how does it become ours (`getting`), how does it go back while our allocation is
on it (`held`), and how does it come back into the pool once our allocation has left it (`left`). A test compares the
rows with Ironic's own list of states, and the calls that follow from them with Ironic's own state machine.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from mlops_sdk.capacity.evidence import Cleaning, Outcome
from mlops_sdk.capacity.providers.ironic_instance import deployed_for
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine

OURS = "mlops: "
"""How the reason begins when it is we who put a machine into maintenance."""


class Step(enum.Enum):
    """What to do next about one machine of a lease that is being acquired."""

    CREATE = "create"  # no allocation of this name: ask for one
    WAIT = "wait"
    DEPLOY = "deploy"
    ADOPT = "adopt"
    ASK_AGAIN = "ask_again"  # the allocation failed for want of a machine: delete it, and ask again while time is left
    NEXT_GENERATION = "next_generation"  # it failed; this generation never deploys a machine twice
    UNKNOWN = "unknown"  # not in the table: an error after a few polls, with the raw value shown


class ReleaseStep(enum.Enum):
    """What to do next about one machine that is being given back."""

    TEAR_DOWN = "tear_down"  # ask Ironic for `deleted`
    DROP = "drop"  # never deployed: delete the allocation
    WAIT = "wait"
    ABORT = "abort"  # nobody will end this by itself: it fails, and goes on from there
    RECLEAN = "reclean"  # cleaning failed: clean again, so many times
    PROVIDE = "provide"  # the second half of cleaning again
    DONE = "done"  # allocation absent, machine at rest and clean
    NOT_CLEAN = "not_clean"  # allocation absent, machine out of the pool, and a person has to look
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """What is done in one state. `sticky`: it can last for ever, and Ironic lets us end it (its verb `abort`)."""

    getting: Step
    held: ReleaseStep
    left: ReleaseStep
    sticky: bool = False


_NEXT = Step.NEXT_GENERATION
_R = ReleaseStep

STATES: Mapping[str, Row] = {
    # in the pool, and out of it
    "available": Row(Step.DEPLOY, _R.DROP, _R.DONE),
    "manageable": Row(_NEXT, _R.DROP, _R.PROVIDE),
    "enroll": Row(_NEXT, _R.DROP, _R.NOT_CLEAN),
    "verifying": Row(_NEXT, _R.WAIT, _R.NOT_CLEAN),
    # on its way to us
    "deploying": Row(Step.WAIT, _R.WAIT, _R.DONE),
    "wait call-back": Row(Step.WAIT, _R.TEAR_DOWN, _R.DONE),
    "deploy hold": Row(Step.WAIT, _R.ABORT, _R.DONE),
    "deploy complete": Row(Step.WAIT, _R.WAIT, _R.DONE),
    "deploy failed": Row(_NEXT, _R.TEAR_DOWN, _R.DONE),
    "active": Row(Step.ADOPT, _R.TEAR_DOWN, _R.DONE),
    # on its way back
    "deleting": Row(_NEXT, _R.WAIT, _R.WAIT),
    "deleted": Row(_NEXT, _R.WAIT, _R.WAIT),
    "cleaning": Row(_NEXT, _R.WAIT, _R.WAIT),
    "clean wait": Row(_NEXT, _R.WAIT, _R.WAIT, sticky=True),
    "clean hold": Row(_NEXT, _R.WAIT, _R.WAIT, sticky=True),
    "clean failed": Row(_NEXT, _R.DROP, _R.RECLEAN),
    # Ironic drops the allocation even when the tear-down failed; asking for `deleted` again is how it gets out
    "error": Row(_NEXT, _R.TEAR_DOWN, _R.TEAR_DOWN),
    # a person at work on a machine that nobody has
    "inspecting": Row(_NEXT, _R.WAIT, _R.NOT_CLEAN),
    "inspect wait": Row(_NEXT, _R.WAIT, _R.NOT_CLEAN, sticky=True),
    "inspect failed": Row(_NEXT, _R.DROP, _R.NOT_CLEAN),
    "adopting": Row(_NEXT, _R.WAIT, _R.NOT_CLEAN),
    "adopt failed": Row(_NEXT, _R.DROP, _R.NOT_CLEAN),
    # a person at work on a machine in use; without an allocation of ours it is somebody else's
    "rescuing": Row(_NEXT, _R.WAIT, _R.DONE),
    "rescue wait": Row(_NEXT, _R.TEAR_DOWN, _R.DONE),
    "rescue": Row(_NEXT, _R.TEAR_DOWN, _R.DONE),
    "rescue failed": Row(_NEXT, _R.TEAR_DOWN, _R.DONE),
    "unrescuing": Row(_NEXT, _R.WAIT, _R.DONE),
    "unrescue failed": Row(_NEXT, _R.TEAR_DOWN, _R.DONE),
    "servicing": Row(Step.WAIT, _R.WAIT, _R.DONE),
    "service wait": Row(Step.WAIT, _R.TEAR_DOWN, _R.DONE),
    "service hold": Row(Step.WAIT, _R.ABORT, _R.DONE),
    "service failed": Row(_NEXT, _R.TEAR_DOWN, _R.DONE),
}

_ALLOCATION_STEP: Mapping[str, Step] = {
    "allocating": Step.WAIT,
    "error": Step.ASK_AGAIN,
}

# Ironic's own reasons for maintenance, and whether a machine is cleaned again in spite of one. `power failure` is
# lifted by Ironic itself when the BMC answers again.
FAULTS: Mapping[str, ReleaseStep] = {
    "clean failure": ReleaseStep.RECLEAN,
    "power failure": ReleaseStep.WAIT,
    "rescue abort failure": ReleaseStep.NOT_CLEAN,
    "service failure": ReleaseStep.NOT_CLEAN,
}


def acquire_step(allocation: Allocation | None, machine: Machine | None) -> Step:
    """The next step towards an active machine, from what Ironic shows.

    A machine in maintenance or with a fault is never adopted or deployed: it failed, whatever its provision state.
    """
    if allocation is None:
        return Step.CREATE
    if allocation.state != "active":
        return _ALLOCATION_STEP.get(allocation.state, Step.UNKNOWN)
    if machine is None:
        return Step.UNKNOWN
    if machine.maintenance or machine.fault:
        return Step.NEXT_GENERATION
    row = STATES.get(machine.provision_state)
    return row.getting if row is not None else Step.UNKNOWN


def release_step(
    allocation: Allocation | None,
    machine: Machine | None,
    *,
    recleaning: bool = False,
    overdue: bool = False,
    stray: bool = False,
) -> ReleaseStep:
    """The next step towards a machine given back, from what Ironic shows.

    Args:
        allocation: Ours, while it is there.
        machine: Behind it, or the one that was.
        recleaning: We began to clean it again, so a machine that is only managed is in our hands.
        overdue: It has been in this state for longer than anything takes.
        stray: It was deployed for our allocation after that had left it; see `is_stray`.
    """
    if allocation is not None:
        if machine is None or machine.allocation_id != allocation.id:
            return ReleaseStep.DROP
        row = STATES.get(machine.provision_state)
        return row.held if row is not None else ReleaseStep.UNKNOWN
    if machine is None or machine.taken:
        return ReleaseStep.DONE
    if stray:
        return STATES[machine.provision_state].held
    return _left_step(machine, recleaning=recleaning, overdue=overdue)


def _left_step(machine: Machine, *, recleaning: bool, overdue: bool) -> ReleaseStep:
    row = STATES.get(machine.provision_state)
    if row is None:
        return ReleaseStep.UNKNOWN
    if row.left is ReleaseStep.WAIT and overdue:
        return ReleaseStep.ABORT if row.sticky else ReleaseStep.NOT_CLEAN
    if recleaning and is_out(machine) and row.left is ReleaseStep.DONE:
        return ReleaseStep.RECLEAN  # it did not come up too often; a person wants it back
    if machine.retired and row.left is ReleaseStep.PROVIDE:
        return ReleaseStep.DONE  # Ironic leaves a machine that was retired meanwhile here, when it is clean
    return _cleaning_step(row.left, machine, recleaning=recleaning, overdue=overdue)


def _cleaning_step(step: ReleaseStep, machine: Machine, *, recleaning: bool, overdue: bool) -> ReleaseStep:
    """Cleaning again is for what Ironic took out of the pool, not for what a person did, or we did for good."""
    if step is ReleaseStep.PROVIDE and not recleaning:
        return ReleaseStep.NOT_CLEAN
    if step not in {ReleaseStep.RECLEAN, ReleaseStep.PROVIDE} or not machine.maintenance:
        return step
    if machine.fault == "power failure":
        return ReleaseStep.NOT_CLEAN if overdue else ReleaseStep.WAIT
    if recleaning:
        return step
    if is_out(machine):
        return ReleaseStep.NOT_CLEAN
    return step if FAULTS.get(machine.fault) is ReleaseStep.RECLEAN else ReleaseStep.NOT_CLEAN


def is_stray(machine: Machine, name: str) -> bool:
    """Whether a machine without an allocation is deployed, or being deployed, for the allocation of this name.

    A request for a deployment that reached Ironic after the machine was given back. Nobody else can have it: Ironic
    allocates only what is `available`.
    """
    row = STATES.get(machine.provision_state)
    deployed = row is not None and row.left is ReleaseStep.DONE and machine.provision_state != "available"
    return deployed and not machine.taken and bool(name) and deployed_for(machine) == name


def is_out(machine: Machine) -> bool:
    """Whether we have taken this machine out of the pool."""
    return machine.maintenance and machine.maintenance_reason.startswith(OURS)


def is_unfinished(machine: Machine) -> bool:
    """Whether a machine without an allocation is stuck on its way back, so that somebody of ours has to act."""
    return not machine.taken and release_step(None, machine, recleaning=not is_out(machine)) in {
        ReleaseStep.TEAR_DOWN,
        ReleaseStep.RECLEAN,
        ReleaseStep.PROVIDE,
        ReleaseStep.WAIT,
    }


def why_not_by_hand(machine: Machine) -> str | None:
    """Why a machine is not cleaned for a person who asks for it, or None when it is."""
    if machine.taken:
        return "it is in use"
    if machine.maintenance and not is_out(machine) and FAULTS.get(machine.fault) is not ReleaseStep.RECLEAN:
        return f"somebody put it into maintenance: {machine.maintenance_reason or 'no reason given'}"
    if machine.provision_state not in {"clean failed", "error", "manageable"} and not is_out(machine):
        return "it needs no cleaning"
    return None


def judge_outcome(
    machine: Machine | None, *, deployed: bool, cleaning: Cleaning | None, started_at: datetime, skew_s: float
) -> Outcome:
    """How a machine ended that our allocation has left.

    Clean means: a cleaning that erased disks ended well, and is younger than the start of the release.
    """
    if machine is None:
        return Outcome.UNPROVEN if deployed else Outcome.NEVER_DEPLOYED
    step = release_step(None, machine)
    if step in _OUT_OF_POOL or (machine.maintenance and not machine.taken):
        return Outcome.NOT_CLEAN
    if step is not ReleaseStep.DONE:
        return Outcome.PENDING
    if not deployed:
        return Outcome.NEVER_DEPLOYED
    if cleaning is None or cleaning.finished_at < started_at - timedelta(seconds=skew_s):
        return Outcome.UNPROVEN
    return Outcome.CLEANED if cleaning.erased else Outcome.UNPROVEN


_OUT_OF_POOL = {ReleaseStep.NOT_CLEAN, ReleaseStep.RECLEAN, ReleaseStep.PROVIDE}
