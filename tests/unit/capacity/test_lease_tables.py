"""The tables that decide about a lease."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mlops_sdk.capacity.evidence import Outcome, judge_outcome
from mlops_sdk.capacity.lease import (
    MARKER,
    Allocation,
    EndReason,
    LeaseRequest,
    Machine,
    Marker,
    ReleaseStep,
    Step,
    acquire_step,
    belongs,
    overdue,
    release_step,
)
from mlops_sdk.capacity.owned import Owned, due_for_return

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
DEPLOYMENT = "6f1c3d1e-0000-4000-8000-000000000001"

# Every state of Ironic 39 (ironic/common/states.py) that a node can be seen in.
PROVISION_STATES = [
    "enroll", "verifying", "manageable", "available", "active", "wait call-back", "deploying", "deploy failed",
    "deploy hold", "deleting", "cleaning", "clean wait", "clean failed", "clean hold", "error", "inspecting",
    "inspect failed", "inspect wait", "adopting", "adopt failed", "rescue", "rescue failed", "rescue wait", "rescuing",
    "unrescue failed", "unrescuing", "servicing", "service wait", "service failed", "service hold",
]  # fmt: skip


def machine(state: str = "available", **changes: object) -> Machine:
    values = {"id": "node-1", "name": "gpu-01", "provision_state": state, "allocation_id": "alloc-1", **changes}
    return Machine(**values)


def allocation(state: str = "active", name: str = "ml-aaaaaaaaaaaa-g1-0", marker: Marker | None = None) -> Allocation:
    extra = {MARKER: marker.to_json()} if marker else {}
    return Allocation(id="alloc-1", name=name, state=state, node_id="node-1", extra=extra)


def marker(**changes: object) -> Marker:
    values = {
        "run_id": "00000000-0000-0000-0000-000000000000",
        "deployment_id": DEPLOYMENT,
        "generation": 1,
        "index": 0,
        "nodes": 1,
        "owner": "me",
        "deadline": NOW + timedelta(hours=1),
        "renewed_until": NOW + timedelta(seconds=20),
    }
    return Marker(**{**values, **changes})


@pytest.mark.parametrize(
    ("provision_state", "step"),
    [
        ("available", Step.DEPLOY),
        ("deploying", Step.WAIT),
        ("active", Step.ADOPT),
        ("deploy failed", Step.NEXT_GENERATION),
        ("error", Step.NEXT_GENERATION),
        ("servicing", Step.UNKNOWN),
        ("a state of the next release", Step.UNKNOWN),
    ],
)
def test_acquiring_follows_the_machine(provision_state, step):
    assert acquire_step(allocation(), machine(provision_state)) is step


def test_acquiring_asks_again_only_for_an_allocation_that_failed():
    assert acquire_step(None, None) is Step.CREATE
    assert acquire_step(allocation("error"), None) is Step.ASK_AGAIN
    assert acquire_step(allocation("allocating"), None) is Step.WAIT
    assert acquire_step(allocation("never heard of"), None) is Step.UNKNOWN


@pytest.mark.parametrize("provision_state", PROVISION_STATES)
@pytest.mark.parametrize("trouble", [{"maintenance": True}, {"fault": "power failure"}])
def test_a_machine_in_trouble_is_never_adopted(provision_state, trouble):
    assert acquire_step(allocation(), machine(provision_state, **trouble)) is Step.NEXT_GENERATION


@pytest.mark.parametrize("provision_state", PROVISION_STATES)
def test_a_machine_that_is_not_under_our_allocation_is_never_torn_down(provision_state):
    """With the one exception that Ironic itself makes: tear-down failed, nobody has it."""
    others = machine(provision_state, allocation_id="somebody-else")
    assert release_step(allocation(), others) is ReleaseStep.DROP  # our allocation, without touching the machine
    assert release_step(None, others) is ReleaseStep.DONE
    nobodys = release_step(None, machine(provision_state, allocation_id=""))
    assert (nobodys is ReleaseStep.TEAR_DOWN) == (provision_state == "error")


def test_outcome_needs_evidence_of_cleaning():
    def judge(shown: Machine | None, *, deployed: bool = True, saw_cleaning: bool = False) -> Outcome:
        return judge_outcome(shown, deployed=deployed, saw_cleaning=saw_cleaning, started_at=NOW, skew_s=1)

    free = {"allocation_id": ""}
    young = {"extra": {"cleaned": {"finished_at": (NOW + timedelta(seconds=5)).isoformat()}}}
    old = {"extra": {"cleaned": {"finished_at": (NOW - timedelta(hours=5)).isoformat()}}}
    assert judge(machine(**free, **young)) is Outcome.CLEANED
    assert judge(machine(**free), saw_cleaning=True) is Outcome.CLEANED
    assert judge(machine(**free, **old)) is Outcome.UNPROVEN
    assert judge(machine(**free, extra={"cleaned": {"finished_at": "yesterday"}})) is Outcome.UNPROVEN
    assert judge(machine(**free), deployed=False) is Outcome.NEVER_DEPLOYED
    assert judge(machine("clean failed", maintenance=True, **free)) is Outcome.NOT_CLEAN
    assert judge(machine("cleaning", **free)) is Outcome.PENDING
    assert judge(machine("active", allocation_id="the next user's", **young)) is Outcome.CLEANED
    assert judge(None) is Outcome.UNPROVEN


def test_overdue_is_judged_with_skew_and_names_the_reason():
    def judge(seconds: float) -> EndReason | None:
        now = NOW + timedelta(seconds=seconds)
        until = NOW + timedelta(seconds=20)
        return overdue(deadline=NOW + timedelta(seconds=60), renewed_until=until, now=now, skew_s=2)

    assert judge(21.9) is None
    assert judge(22.1) is EndReason.NOT_RENEWED
    assert judge(62.1) is EndReason.DEADLINE


def test_the_reaper_takes_only_what_is_ours_and_overdue():
    late = NOW + timedelta(hours=2)
    ours = allocation(marker=marker())
    strangers = [
        allocation(),  # our kind of name, no marker
        allocation(marker=marker(deployment_id="another")),
        allocation(name="their-training", marker=marker()),
        allocation(name="ml-aaaaaaaaaaaa-g2-0", marker=marker()),  # name and marker disagree
        allocation(name="ml-aaaaaaaaaaaa-g1-7", marker=marker()),
        allocation(name="ml-bbbbbbbbbbbb-g1-0", marker=marker()),  # another run's name
        allocation(marker=marker(run_id="no id")),
        Allocation(id="x", name="ml-aaaaaaaaaaaa-g1-0", state="active", extra={MARKER: {"run_id": 3}}),
        Allocation(id="x", name="ml-aaaaaaaaaaaa-g1-0", state="active", extra={MARKER: "mine"}),
    ]
    assert not [other for other in strangers if belongs(other.name, other.marker, DEPLOYMENT)]
    listed = [owned(found) for found in (*strangers, ours) if found.marker is not None]
    assert due_for_return(listed, deployment_id=DEPLOYMENT, now=late, skew_s=1) == [(owned(ours), EndReason.DEADLINE)]
    assert due_for_return([owned(ours)], deployment_id=DEPLOYMENT, now=NOW, skew_s=1) == []


def test_what_belongs_to_something_that_is_there_comes_after_it():
    late = NOW + timedelta(hours=2)
    parent = owned(allocation(marker=marker()))
    child = replace(parent, kind="port", id="port-1", parent=parent.id)
    assert due_for_return([child, parent], deployment_id=DEPLOYMENT, now=late, skew_s=1) == [
        (parent, EndReason.DEADLINE)
    ]
    assert due_for_return([child], deployment_id=DEPLOYMENT, now=late, skew_s=1) == [(child, EndReason.DEADLINE)]


def owned(found: Allocation) -> Owned:
    assert found.marker is not None
    return Owned(provider="ironic", kind="allocation", id=found.id, name=found.name, marker=found.marker)


def test_the_marker_survives_ironic_and_rubbish_is_no_marker():
    whole = marker()
    assert Marker.parse({MARKER: whole.to_json()}) == whole
    for key in whole.to_json().keys() - {"priority", "preemptible"}:
        broken = {k: v for k, v in whole.to_json().items() if k != key}
        assert Marker.parse({MARKER: broken}) is None
    older = {k: v for k, v in whole.to_json().items() if k not in {"priority", "preemptible"}}
    newer = {**whole.to_json(), "priority": 99}
    assert Marker.parse({MARKER: older}) == Marker.parse({MARKER: newer}) == whole  # the reaper must see both


@pytest.mark.parametrize(
    "wrong",
    [{"nodes": 0}, {"deadline": datetime(2026, 1, 1)}, {"wait_s": -1.0}],  # noqa: DTZ001 - the wrong value
)
def test_a_request_that_makes_no_sense_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match=r"\S"):
        LeaseRequest(**{"nodes": 1, "resource_class": "c", "deadline": NOW, **wrong})
