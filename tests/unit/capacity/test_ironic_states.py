"""The table of Ironic's states, against Ironic's own list and its own state machine."""

import json
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest

from mlops_sdk.capacity.evidence import Cleaning, Outcome
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.providers.ironic_reclean import Tries, may_try, reason_to_put_out
from mlops_sdk.capacity.providers.ironic_states import (
    FAULTS,
    STATES,
    ReleaseStep,
    Step,
    acquire_step,
    is_stray,
    is_unfinished,
    judge_outcome,
    release_step,
    why_not_by_hand,
)
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine, is_free, is_in_use, supply_of
from mlops_sdk.local.layout import Tools

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
PROBE = """
import json
from ironic.common import faults, states
from ironic.common.state_machine import machine
print(json.dumps({
    "states": sorted(states.ALL_STATES),
    "faults": sorted(faults.VALID_FAULTS),
    "rests": sorted({*states.STABLE_STATES, *states.UPDATE_ALLOWED_STATES} - {states.ACTIVE}),
    "edges": sorted([state, verb] for state, verb, _ in machine),
}))
"""


@cache
def ironic() -> dict[str, Any]:
    """What the installed Ironic says of itself."""
    argv = [str(Tools.find().openstack_python), "-c", PROBE]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def machine(state: str = "available", **changes: Any) -> Machine:
    values = {"id": "node-1", "name": "gpu-01", "provision_state": state, "allocation_id": "alloc-1", **changes}
    return Machine(**values)


def allocation(state: str = "active") -> Allocation:
    return Allocation(id="alloc-1", name="ml-aaaaaaaaaaaa-g1-0", state=state, node_id="node-1")


def left(state: str, **changes: Any) -> Machine:
    return machine(state, allocation_id="", **changes)


def test_the_table_has_exactly_the_states_and_faults_of_the_installed_ironic():
    assert sorted(STATES) == ironic()["states"]
    assert sorted(FAULTS) == ironic()["faults"]


def test_ironic_allows_what_follows_from_each_state():
    """A step that Ironic refuses in that state would be asked for for ever."""
    verbs = {
        ReleaseStep.TEAR_DOWN: "delete",
        ReleaseStep.ABORT: "abort",
        ReleaseStep.RECLEAN: "manage",
        ReleaseStep.PROVIDE: "provide",
    }
    allowed = {(state, verb) for state, verb in ironic()["edges"]}
    for state, row in STATES.items():
        for step in (row.held, row.left):
            if step in verbs:
                assert (state, verbs[step]) in allowed, (state, step)
        if row.held is ReleaseStep.DROP:  # `verify_node_for_deallocation`
            assert state in ironic()["rests"], state
        if row.getting is Step.DEPLOY:
            assert (state, "deploy") in allowed
        if row.sticky:
            assert (state, "abort") in allowed, state


@pytest.mark.parametrize("state", STATES)
def test_no_state_is_a_dead_end(state):
    """Whatever a machine is in, giving it back moves it, waits for what ends by itself, or says that it is out."""
    assert acquire_step(allocation(), machine(state)) is not Step.UNKNOWN
    assert release_step(allocation(), machine(state)) not in {ReleaseStep.UNKNOWN, ReleaseStep.NOT_CLEAN}
    assert release_step(None, left(state)) is not ReleaseStep.UNKNOWN
    assert release_step(None, left(state), overdue=True) is not ReleaseStep.WAIT


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("trouble", [{"maintenance": True}, *({"fault": fault} for fault in FAULTS)])
def test_a_machine_in_trouble_is_never_adopted(state, trouble):
    assert acquire_step(allocation(), machine(state, **trouble)) is Step.NEXT_GENERATION


def test_acquiring_asks_again_only_for_an_allocation_that_failed():
    assert acquire_step(None, None) is Step.CREATE
    assert acquire_step(allocation("error"), None) is Step.ASK_AGAIN
    assert acquire_step(allocation("allocating"), None) is Step.WAIT
    assert acquire_step(allocation("never heard of"), None) is Step.UNKNOWN
    assert acquire_step(allocation(), machine("a state of the next release")) is Step.UNKNOWN
    assert release_step(allocation(), machine("a state of the next release")) is ReleaseStep.UNKNOWN
    assert release_step(None, left("a state of the next release")) is ReleaseStep.UNKNOWN


@pytest.mark.parametrize("state", STATES)
def test_a_machine_that_is_not_under_our_allocation_is_never_touched(state):
    """With the exceptions that Ironic itself makes: it keeps a machine that could not go back from everybody."""
    others = machine(state, allocation_id="somebody-else")
    assert release_step(allocation(), others) is ReleaseStep.DROP  # our allocation, without touching the machine
    assert release_step(None, others) is ReleaseStep.DONE
    step = release_step(None, left(state))
    acts = {ReleaseStep.TEAR_DOWN: "error", ReleaseStep.RECLEAN: "clean failed"}
    assert step not in acts or acts[step] == state
    assert step is not ReleaseStep.PROVIDE  # unless we took it in hand ourselves


@pytest.mark.parametrize(
    ("shown", "step"),
    [
        (left("clean failed", maintenance=True, fault="clean failure"), ReleaseStep.RECLEAN),
        (left("clean failed"), ReleaseStep.RECLEAN),  # failed before the first step: Ironic sets no maintenance
        (left("clean failed", maintenance=True, fault="power failure"), ReleaseStep.WAIT),
        (left("clean failed", maintenance=True, maintenance_reason="disk 3 is on order"), ReleaseStep.NOT_CLEAN),
        (
            left("clean failed", maintenance=True, fault="clean failure", maintenance_reason="mlops: 3 times"),
            ReleaseStep.NOT_CLEAN,
        ),
        (left("clean failed", maintenance=True, fault="service failure"), ReleaseStep.NOT_CLEAN),
        (left("manageable"), ReleaseStep.NOT_CLEAN),
        (left("manageable", retired=True), ReleaseStep.DONE),
    ],
)
def test_only_what_ironic_took_out_of_the_pool_is_cleaned_again(shown, step):
    assert release_step(None, shown) is step


def test_what_we_began_to_clean_again_is_carried_on():
    assert release_step(None, left("manageable"), recleaning=True) is ReleaseStep.PROVIDE
    assert release_step(None, left("clean wait"), overdue=True) is ReleaseStep.ABORT
    assert release_step(None, left("cleaning"), overdue=True) is ReleaseStep.NOT_CLEAN
    power = left("clean failed", maintenance=True, fault="power failure")
    assert release_step(None, power, recleaning=True, overdue=True) is ReleaseStep.NOT_CLEAN


def test_a_machine_is_unfinished_until_it_is_back_or_out():
    assert is_unfinished(left("error"))
    assert is_unfinished(left("clean failed", maintenance=True, fault="clean failure"))
    assert is_unfinished(left("cleaning"))
    assert not is_unfinished(left("available"))
    assert not is_unfinished(machine("error"))  # the next tenant's
    assert not is_unfinished(left("clean failed", maintenance=True, maintenance_reason="mlops: 3 times"))


def test_outcome_needs_evidence_of_cleaning():
    def judge(shown: Machine | None, cleaning: Cleaning | None = None, *, deployed: bool = True) -> Outcome:
        return judge_outcome(shown, deployed=deployed, cleaning=cleaning, started_at=NOW, skew_s=1)

    def cleaned(seconds: float, *steps: str) -> Cleaning:
        return Cleaning(finished_at=NOW + timedelta(seconds=seconds), steps=steps)

    young = cleaned(5, "deploy.erase_devices")
    assert judge(left("available"), young) is Outcome.CLEANED
    assert judge(left("available"), cleaned(-3600, "deploy.erase_devices")) is Outcome.UNPROVEN
    assert judge(left("available"), cleaned(5, "bios.factory_reset")) is Outcome.UNPROVEN  # the disks were not erased
    assert judge(left("available"), cleaned(5)) is Outcome.UNPROVEN
    assert judge(left("available")) is Outcome.UNPROVEN
    assert judge(left("available"), deployed=False) is Outcome.NEVER_DEPLOYED
    assert judge(left("clean failed", maintenance=True, fault="clean failure")) is Outcome.NOT_CLEAN
    assert judge(left("manageable")) is Outcome.NOT_CLEAN
    assert judge(left("available", maintenance=True), young) is Outcome.NOT_CLEAN
    assert judge(left("cleaning"), young) is Outcome.PENDING
    assert judge(machine("active", allocation_id="the next user's"), young) is Outcome.CLEANED
    assert judge(None) is Outcome.UNPROVEN


def test_cleaning_again_pauses_longer_each_time_and_ends():
    def may(tries: Tries, seconds: float) -> bool:
        return may_try(tries, now=NOW + timedelta(seconds=seconds), limit=3, pause_s=60)

    tries = Tries()
    for pause in (0, 60, 120):
        assert not pause or not may(tries, pause - 1)
        assert may(tries, pause)
        tries = Tries.parse(tries.another(NOW).to_json())
    assert tries.made == 3
    assert not may(tries, 10**9)
    assert Tries.parse({"recleans": "many"}) == Tries.parse({}) == Tries()
    reason = reason_to_put_out(left("clean failed", last_error="disk stuck" * 99), "ml-a-g1-0", 3)
    assert reason.startswith("mlops: 'clean failed' after ml-a-g1-0, and 3 times again: disk stuck")
    assert len(reason) == 255


@pytest.mark.parametrize("state", sorted(STATES))
def test_a_machine_that_nova_has_without_an_allocation_is_somebody_elses_in_every_state(state: str):
    """Its name may be ours: Nova calls an instance what we called the server."""
    of_nova = left(state, instance_id="server-1", power_state="power on", instance={"display_name": "ml-a-g1-0"})
    for recleaning in (False, True):
        assert release_step(None, of_nova, recleaning=recleaning, overdue=True) is ReleaseStep.DONE
    assert not is_unfinished(of_nova)
    assert not is_free(of_nova)
    assert is_in_use(of_nova)
    assert not is_stray(of_nova, "ml-a-g1-0")
    assert why_not_by_hand(of_nova) == "it is in use"
    counted = supply_of(
        LeaseRequest(nodes=1, resource_class="c", deadline=NOW),
        machines=[replace(of_nova, resource_class="c")],
        allocations=[],
    )
    assert (counted.free, counted.busy) == (0, 1)
