"""Who takes the place of a lost machine, and what is on record of one that was given back."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from mlops_sdk.capacity.evidence import Cleaning, NodeEvidence, Outcome
from mlops_sdk.capacity.lease import EndReason, LeaseRequest, to_iso
from mlops_sdk.capacity.members import Replacement, all_numbers, begun, ended, given_up, members_of

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def request(**changes: Any) -> LeaseRequest:
    return LeaseRequest(**{"nodes": 2, "resource_class": "gpu", "deadline": NOW, **changes})


EVIDENCE = NodeEvidence(
    resource="ml-a-g1-0",
    allocation_id="a1",
    node_id="m1",
    outcome=Outcome.NOT_CLEAN,
    reason=EndReason.DEADLINE,
    released_by="reaper",
    node_name="gpu-01",
    provision_state="clean failed",
    power_state="power off",
    cleaned_at=to_iso(NOW),
    last_error="it burns",
    started_at=to_iso(NOW),
    finished_at=to_iso(NOW),
    steps=("deploy.erase_devices",),
    recleans=2,
)


def test_evidence_comes_back_whole_and_what_an_older_version_did_not_write_is_empty():
    assert NodeEvidence.parse(json.loads(json.dumps(EVIDENCE.to_json()))) == EVIDENCE
    least = NodeEvidence.parse({"outcome": "cleaned", "reason": "finished"})
    assert (least.resource, least.node_id, least.steps, least.recleans) == ("", "", (), 0)


def test_the_next_user_finds_nothing_on_a_machine_that_was_cleaned_or_never_used():
    clean = {outcome for outcome in Outcome if replace(EVIDENCE, outcome=outcome).clean}
    assert clean == {Outcome.CLEANED, Outcome.NEVER_DEPLOYED}


@pytest.mark.parametrize(
    ("steps", "erased"),
    [
        ((), False),
        (("deploy.update_firmware", "deploy.erase_devices"), True),
        (("erase_devices_metadata",), True),
        (("raid.delete_configuration", "bios.not_erase"), False),
        (("erase.check",), False),
    ],
)
def test_disks_are_erased_when_a_step_says_so(steps, erased):
    assert Cleaning(finished_at=NOW, steps=steps).erased is erased


def test_a_machine_in_the_place_of_a_lost_one_stands_where_that_stood():
    asked = request(nodes=3, spares=1)
    taken = [Replacement(lost=1, by=3, done=True), Replacement(lost=3, by=4)]
    members = members_of(asked, taken)
    assert (members.working, members.spares, members.following) == ((0, 3, 2), (), 5)
    assert members.pending == (taken[1],)
    assert members.held == (0, 3, 2, 4)
    assert all_numbers(asked, taken) == (0, 1, 2, 3, 4)


def test_a_spare_that_is_lost_taken_or_gone_takes_no_place():
    asked = request(nodes=1, spares=3)
    assert members_of(asked, [], [2]).spares == (1, 3)
    assert members_of(asked, [Replacement(lost=1, by=-1)]).spares == (2, 3)
    assert members_of(asked, [Replacement(lost=0, by=2)]).spares == (1, 3)
    assert members_of(asked, [Replacement(lost=0, by=2, dropped=True)]).spares == (1, 2, 3)
    lost_spare = members_of(asked, [Replacement(lost=1, by=-1)])
    assert lost_spare.held == (0, 2, 3)
    assert members_of(asked, [Replacement(lost=1, by=-1, done=True)]).working == (0,)


def test_a_repair_that_is_begun_again_drops_only_the_earlier_try_for_the_same_piece():
    over = Replacement(lost=0, by=2, done=True)
    other = Replacement(lost=1, by=3)
    tried = Replacement(lost=2, by=4)
    assert begun([over, other, tried], 2, 5, "it burned") == [
        over,
        other,
        replace(tried, dropped=True),
        Replacement(lost=2, by=5, unfenced="it burned"),
    ]
    assert begun([over], 0, 6) == [over, Replacement(lost=0, by=6)]
    assert begun([replace(other, dropped=True)], 2, 5)[0].dropped


def test_a_repair_that_ended_or_was_given_up_is_that_one_alone():
    one, two = Replacement(lost=0, by=2), Replacement(lost=0, by=3)
    assert ended([one, two], 0, 3) == [one, replace(two, done=True)]
    assert given_up([one, two], 0, 3) == [one, replace(two, dropped=True)]
    assert given_up([replace(one, dropped=True), two], 0, 3)[0].dropped
