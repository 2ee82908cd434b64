"""What an enrolment does with a node, for each state a crash can leave it in."""

from __future__ import annotations

import pytest

from mlops_sdk.errors import StackError
from mlops_sdk.local.enroll import NodeView, Step, next_step


def node(state: str, **changes: object) -> NodeView:
    view = {
        "provision_state": state,
        "maintenance": False,
        "owned": False,
        "power_state": "power off",
        "inspected": True,
        "matches": True,
    }
    return NodeView(**(view | changes))  # type: ignore[arg-type]


def test_an_absent_node_is_created() -> None:
    assert next_step(None) is Step.CREATE


@pytest.mark.parametrize(
    ("state", "step"),
    [
        ("enroll", Step.MANAGE),
        ("manageable", Step.PROVIDE),
        ("available", Step.DONE),
        ("active", Step.TEAR_DOWN),
        ("deploy failed", Step.TEAR_DOWN),
        ("wait call-back", Step.TEAR_DOWN),
        ("error", Step.TEAR_DOWN),
        ("clean failed", Step.MANAGE),
        ("inspect failed", Step.MANAGE),
        ("clean wait", Step.ABORT),
        ("cleaning", Step.WAIT),
        ("deploying", Step.WAIT),
    ],
)
def test_what_nobody_owns_goes_towards_available(state: str, step: Step) -> None:
    assert next_step(node(state)) is step


@pytest.mark.parametrize("state", ["active", "deploying", "deploy failed", "error", "available", "wait call-back"])
def test_what_somebody_owns_is_left_alone(state: str) -> None:
    assert next_step(node(state, owned=True, maintenance=True, matches=False)) is Step.LEAVE


def test_a_failed_cleaning_leaves_maintenance_which_is_ended_first() -> None:
    assert next_step(node("clean failed", maintenance=True)) is Step.END_MAINTENANCE


def test_a_manageable_node_is_inspected_and_its_power_known_before_it_is_provided() -> None:
    assert next_step(node("manageable", inspected=False)) is Step.INSPECT
    assert next_step(node("manageable", power_state="None")) is Step.POWER_OFF
    assert next_step(node("manageable", power_state="power on")) is Step.POWER_OFF


@pytest.mark.parametrize("state", ["manageable", "available"])
def test_what_differs_from_the_inventory_is_updated(state: str) -> None:
    assert next_step(node(state, matches=False)) is Step.UPDATE


def test_a_state_that_is_never_made_here_is_an_error_that_shows_it() -> None:
    with pytest.raises(StackError, match="rescue wait"):
        next_step(node("rescue wait"))
