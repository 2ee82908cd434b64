"""What all who wait are shown of a cloud, and what follows from a state at the edges of its table."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mlops_sdk.capacity.evidence import Cleaning, Outcome
from mlops_sdk.capacity.lease import MARKER, Marker
from mlops_sdk.capacity.providers import ironic_sights, nova_sights, nova_states
from mlops_sdk.capacity.providers.ironic_instance import instance_of
from mlops_sdk.capacity.providers.ironic_reclean import Tries, may_try, reason_to_put_out
from mlops_sdk.capacity.providers.ironic_states import (
    ReleaseStep,
    Step,
    acquire_step,
    is_out,
    is_stray,
    is_unfinished,
    judge_outcome,
    release_step,
    why_not_by_hand,
)
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine
from mlops_sdk.capacity.providers.nova_marker import to_line, to_metadata
from mlops_sdk.capacity.providers.nova_states import Refusal, chosen, refusal_of
from mlops_sdk.capacity.providers.nova_view import Port, Server
from mlops_sdk.capacity.watching import Phase
from mlops_sdk.names import resource_name

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
RUN = uuid.UUID("7f1c3d1e-0000-4000-8000-000000000007")
NAME = resource_name(RUN, 1, 0)
MINE = Marker(
    run_id=str(RUN),
    deployment_id="6f1c3d1e-0000-4000-8000-000000000001",
    generation=1,
    index=0,
    nodes=1,
    owner="me",
    deadline=NOW + timedelta(hours=1),
    renewed_until=NOW + timedelta(seconds=20),
)


def machine(state: str, **changes: Any) -> Machine:
    return Machine(**{"id": "m1", "name": "gpu-01", "provision_state": state, **changes})


def allocation(state: str = "active", **changes: Any) -> Allocation:
    values = {"id": "a1", "name": NAME, "node_id": "m1", "extra": {MARKER: MINE.to_json()}}
    return Allocation(**{**values, "state": state, **changes})


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("available", Phase.OTHER),
        ("deploying", Phase.COMING),
        ("wait call-back", Phase.COMING),
        ("active", Phase.READY),
        ("deploy failed", Phase.OTHER),
        ("deleting", Phase.GOING),
        ("cleaning", Phase.GOING),
        ("clean wait", Phase.GOING),
    ],
)
def test_an_allocation_is_where_its_machine_is(state, phase):
    sights = ironic_sights.sights_of([allocation()], [machine(state)])
    assert sights[NAME] is sights["m1"]
    seen = sights[NAME]
    assert (seen.phase, seen.words, seen.node_id, seen.node_name) == (phase, state, "m1", "gpu-01")
    assert (seen.deadline, seen.renewed_until) == (MINE.deadline, MINE.renewed_until)


def test_an_allocation_without_a_machine_is_on_its_way_or_failed():
    waiting = ironic_sights.sights_of([allocation("allocating", node_id="")], [])[NAME]
    assert (waiting.phase, waiting.words, waiting.node_name) == (Phase.COMING, "allocating", "")
    failed = ironic_sights.sights_of([allocation("error", node_id="", last_error="no machine")], [])[NAME]
    assert (failed.phase, failed.words) == (Phase.OTHER, "error: no machine")


def test_what_went_wrong_is_among_its_words():
    seen = ironic_sights.sights_of([allocation()], [machine("deploy failed", last_error="no link")])[NAME]
    assert seen.words == "deploy failed: no link"


@pytest.mark.parametrize(
    ("state", "phase"), [("available", Phase.OTHER), ("active", Phase.READY), ("cleaning", Phase.GOING)]
)
def test_a_machine_that_nobody_has_is_shown_by_itself(state, phase):
    other = allocation(node_id="m2")
    sights = ironic_sights.sights_of([other], [machine(state)])
    assert set(sights) == {NAME, "m1"}
    seen = sights["m1"]
    assert (seen.phase, seen.words, seen.node_id, seen.node_name) == (phase, state, "m1", "gpu-01")
    assert (seen.deadline, seen.renewed_until) == (None, None)


@pytest.mark.parametrize("extra", [{}, {MARKER: "mine"}, {MARKER: {}}, {MARKER: {"deadline": "soon"}}])
def test_a_strangers_allocation_has_no_times(extra):
    seen = ironic_sights.sights_of([allocation(extra=extra)], [machine("active")])[NAME]
    assert (seen.deadline, seen.renewed_until) == (None, None)


def server(ident: str, status: str, **changes: Any) -> Server:
    return Server(**{"id": ident, "name": NAME, "status": status, "metadata": to_metadata(MINE), **changes})


@pytest.mark.parametrize(
    ("status", "task", "phase"),
    [
        ("BUILD", "", Phase.COMING),
        ("ACTIVE", "", Phase.READY),
        ("ACTIVE", "deleting", Phase.GOING),
        ("ERROR", "", Phase.OTHER),
        ("DELETED", "", Phase.GOING),
    ],
)
def test_a_server_is_where_its_status_says(status, task, phase):
    seen = nova_sights.sights_of([server("s1", status, task=task)], [])[NAME]
    assert (seen.phase, seen.node_id, seen.node_name) == (phase, "s1", NAME)
    assert status in seen.words
    assert (seen.deadline, seen.renewed_until) == (MINE.deadline, MINE.renewed_until)


def test_of_two_servers_of_one_name_the_name_shows_the_one_that_counts():
    lost = server("s1", "ERROR", created_at="2026-05-01T11:00:00Z")
    good = server("s2", "ACTIVE", created_at="2026-05-01T11:30:00Z")
    sights = nova_sights.sights_of([lost, good], [])
    assert set(sights) == {NAME, "s1", "s2"}
    assert sights[NAME] is sights["s2"]
    assert sights["s1"].phase is Phase.OTHER


def test_the_times_of_a_server_are_those_of_the_port_that_was_renewed_last():
    later = replace(MINE, renewed_until=NOW + timedelta(minutes=5), deadline=NOW + timedelta(hours=2))
    ports = [Port(id="p1", name=NAME, line=to_line(later)), Port(id="p2", name=NAME, line=to_line(MINE))]
    seen = nova_sights.sights_of([server("s1", "ACTIVE")], ports)[NAME]
    assert (seen.deadline, seen.renewed_until) == (later.deadline, later.renewed_until)


def test_a_strangers_server_has_no_times():
    seen = nova_sights.sights_of([server("s1", "ACTIVE", metadata={})], [])[NAME]
    assert (seen.phase, seen.deadline, seen.renewed_until) == (Phase.READY, None, None)


def test_of_several_servers_the_oldest_healthy_one_is_chosen_and_else_the_oldest():
    assert chosen([]) is None
    old, young = server("s1", "ACTIVE", created_at="1"), server("s0", "BUILD", created_at="2")
    assert chosen([young, old]) == old
    lost = server("s2", "ERROR", created_at="0")
    assert chosen([lost, young]) == young
    full = server("s3", "ERROR", created_at="0", fault="No valid host was found")
    assert chosen([full, young]) == young
    assert chosen([server("s4", "SHUTOFF", created_at="2"), lost]) == lost


@pytest.mark.parametrize(
    ("status", "words", "refusal"),
    [
        (403, "Quota exceeded for instances", Refusal.FULL),
        (409, "Maximum number of ports exceeded", Refusal.FULL),
        (413, "VolumeLimitExceeded: Maximum number of volumes allowed (10) exceeded for quota", Refusal.FULL),
        (403, "Policy does not allow this", Refusal.WRONG),
        (400, "a quota of nonsense", Refusal.WRONG),
        (409, "it is locked", Refusal.AGAIN),
        (413, "slow down", Refusal.AGAIN),
        (429, "slow down", Refusal.AGAIN),
        (400, "Port 7 could not be found", Refusal.AGAIN),
        (400, "Invalid volume: status must be available", Refusal.WRONG),
        (400, "Failed to get volume 7", Refusal.AGAIN),
        (400, "Flavor 7 could not be found", Refusal.WRONG),
        (400, "Port 7 is on another planet", Refusal.WRONG),
    ],
)
def test_a_refusal_of_nova_says_whether_to_ask_again(status, words, refusal):
    assert refusal_of(status, words) is refusal


OUT = {"maintenance": True, "maintenance_reason": "mlops: 'clean failed' after it"}
THEIRS = {"maintenance": True, "maintenance_reason": "disk 3 is on order"}
CLEANING = {"maintenance": True, "fault": "clean failure"}


def late(state: str, **changes: Any) -> Machine:
    return machine(state, **{"instance": instance_of({}, allocation=NAME, marker=MINE), **changes})


@pytest.mark.parametrize(
    ("shown", "name", "stray"),
    [
        (late("deploying"), NAME, True),
        (late("wait call-back"), NAME, True),
        (late("active"), NAME, True),
        (late("available"), NAME, False),  # back in the pool: what it was once deployed for says nothing
        (late("cleaning"), NAME, False),
        (late("error"), NAME, False),
        (late("beaming"), NAME, False),
        (late("active", allocation_id="a2"), NAME, False),  # somebody else's
        (late("active"), "ml-bbbbbbbbbbbb-g1-0", False),
        (machine("active"), NAME, False),
        (machine("active"), "", False),
        (machine("active", instance={"display_name": NAME}), NAME, False),  # nobody of ours said so
    ],
)
def test_a_machine_is_a_stray_when_it_is_deployed_for_a_name_that_holds_it_no_more(shown, name, stray):
    assert is_stray(shown, name) is stray


def test_a_stray_is_given_back_as_if_it_were_held():
    assert release_step(None, late("active"), stray=True) is ReleaseStep.TEAR_DOWN
    assert release_step(None, late("active")) is ReleaseStep.DONE


def test_a_status_of_the_next_nova_is_not_known_on_either_way():
    beaming = server("s1", "BEAMING")
    assert nova_states.acquire_step(beaming) is nova_states.AcquireStep.UNKNOWN
    assert nova_states.return_step(beaming) is nova_states.ReturnStep.UNKNOWN


def test_an_allocation_that_is_active_without_a_machine_is_not_known():
    assert acquire_step(allocation(), None) is Step.UNKNOWN


def test_a_machine_of_an_allocation_that_is_elsewhere_is_left_alone():
    assert release_step(allocation(), None) is ReleaseStep.DROP
    assert release_step(allocation(), machine("active", allocation_id="a2")) is ReleaseStep.DROP
    assert release_step(allocation(), machine("active", allocation_id="a1")) is ReleaseStep.TEAR_DOWN
    assert release_step(None, None) is ReleaseStep.DONE


@pytest.mark.parametrize(
    ("shown", "recleaning", "overdue", "step"),
    [
        (machine("inspecting"), False, False, ReleaseStep.NOT_CLEAN),
        (machine("deleting"), False, True, ReleaseStep.NOT_CLEAN),
        (machine("clean hold"), False, True, ReleaseStep.ABORT),
        (machine("clean failed", **CLEANING), True, False, ReleaseStep.RECLEAN),
        (machine("clean failed", **THEIRS), True, False, ReleaseStep.RECLEAN),  # ours by now: we began it
        (machine("clean failed", **OUT), True, False, ReleaseStep.RECLEAN),
        (machine("clean failed", **OUT), False, False, ReleaseStep.NOT_CLEAN),
        (machine("clean failed", maintenance=True, fault="power failure"), False, True, ReleaseStep.NOT_CLEAN),
        (machine("clean failed", maintenance=True, fault="power failure"), True, False, ReleaseStep.WAIT),
        (machine("manageable", maintenance=True, fault="power failure"), True, False, ReleaseStep.WAIT),
        (machine("manageable", **CLEANING), False, False, ReleaseStep.NOT_CLEAN),
        (machine("manageable", **CLEANING), True, False, ReleaseStep.PROVIDE),
        (machine("manageable", retired=True), True, False, ReleaseStep.DONE),
        (machine("clean failed", retired=True), False, False, ReleaseStep.RECLEAN),
        (machine("available", **OUT), True, False, ReleaseStep.RECLEAN),  # a person wants it back
        (machine("available", **THEIRS), True, False, ReleaseStep.DONE),
        (machine("available", **OUT), False, False, ReleaseStep.DONE),
        (machine("error", **OUT), True, False, ReleaseStep.TEAR_DOWN),
    ],
)
def test_how_a_machine_comes_back_into_the_pool(shown, recleaning, overdue, step):
    assert release_step(None, shown, recleaning=recleaning, overdue=overdue) is step


def test_out_of_the_pool_is_what_we_took_out():
    assert is_out(machine("clean failed", **OUT))
    assert not is_out(machine("clean failed", **THEIRS))
    assert not is_out(machine("clean failed", maintenance_reason="mlops: once"))


def test_a_machine_that_waits_for_its_second_half_is_unfinished_and_one_in_use_is_not():
    assert is_unfinished(machine("manageable", **CLEANING))
    assert not is_unfinished(machine("cleaning", allocation_id="a2"))
    assert not is_unfinished(machine("manageable", **OUT))


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (machine("clean failed"), None),
        (machine("error"), None),
        (machine("manageable"), None),
        (machine("clean failed", **CLEANING), None),
        (machine("clean failed", **OUT), None),
        (machine("available", **OUT), None),
        (machine("available"), "needs no cleaning"),
        (machine("available", allocation_id="a2"), "in use"),
        (machine("clean failed", **THEIRS), "disk 3 is on order"),
        (machine("clean failed", maintenance=True), "no reason given"),
        (machine("clean failed", maintenance=True, fault="power failure"), "no reason given"),
    ],
)
def test_who_may_have_a_machine_cleaned_by_hand(shown, why):
    words = why_not_by_hand(shown)
    assert words is None if why is None else why in (words or "")


def outcome(shown: Machine | None, seconds: float | None = None, *, deployed: bool = True) -> Outcome:
    moment = NOW + timedelta(seconds=seconds or 0.0)
    cleaning = None if seconds is None else Cleaning(finished_at=moment, steps=("deploy.erase_devices",))
    return judge_outcome(shown, deployed=deployed, cleaning=cleaning, started_at=NOW, skew_s=2)


def test_a_machine_that_is_gone_proves_nothing_unless_it_was_never_used():
    assert outcome(None, 5) is Outcome.UNPROVEN
    assert outcome(None, deployed=False) is Outcome.NEVER_DEPLOYED


def test_a_cleaning_counts_from_the_beginning_of_the_release_within_the_skew_of_clocks():
    assert outcome(machine("available"), -2) is Outcome.CLEANED
    assert outcome(machine("available"), -2.5) is Outcome.UNPROVEN


def test_a_machine_of_the_next_user_is_not_judged_by_what_that_one_does():
    assert outcome(machine("active", allocation_id="a2", maintenance=True), 5) is Outcome.CLEANED
    assert outcome(machine("active", allocation_id="a2"), deployed=False) is Outcome.NEVER_DEPLOYED
    assert outcome(machine("cleaning"), 5, deployed=False) is Outcome.PENDING


def test_tries_are_counted_from_what_a_claim_keeps():
    tries = Tries().another(NOW).another(NOW + timedelta(seconds=60))
    assert tries == Tries(made=2, last_at=NOW + timedelta(seconds=60))
    assert Tries.parse(tries.to_json()) == tries
    assert Tries.parse(Tries(made=2).to_json()) == Tries(made=2)
    assert Tries.parse({"recleans": 2}) == Tries(made=2)
    assert Tries.parse(Tries().to_json()) == Tries()
    for nonsense in ({"recleans": "x"}, {"recleaned_at": "soon"}, {"recleans": [2]}, {"recleans": None}):
        assert Tries.parse(nonsense) == Tries()


def test_the_first_try_is_at_once_and_each_pause_is_twice_the_last():
    def may(made: int, seconds: float) -> bool:
        now = NOW + timedelta(seconds=seconds)
        return may_try(Tries(made=made, last_at=NOW if made else None), now=now, limit=4, pause_s=10)

    assert may(0, 0)
    assert [may(1, 10), may(2, 20), may(3, 40), may(4, 10**6)] == [True, True, True, False]
    assert [may(1, 9.5), may(2, 19.5), may(3, 39.5)] == [False] * 3
    assert may_try(Tries(made=2), now=NOW, limit=4, pause_s=10)  # nobody knows when: not for ever


def test_why_a_machine_is_out_is_said_as_far_as_it_is_known():
    assert reason_to_put_out(machine("clean failed"), NAME, 0) == f"mlops: 'clean failed' after {NAME}"
