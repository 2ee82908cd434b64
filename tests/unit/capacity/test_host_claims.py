"""The claim on a host of the fixed pool: what it says, and how a lease on it ended."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import Marker, to_iso
from mlops_sdk.capacity.providers.static_claim import Before, ClaimState, HostClaim, age, in_turn, judge
from mlops_sdk.names import resource_name

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
RUN = uuid.UUID("7f1c3d1e-0000-4000-8000-000000000007")
SECOND = timedelta(seconds=1)
MARKER = Marker(
    run_id=str(RUN),
    deployment_id="ours",
    generation=1,
    index=0,
    nodes=2,
    owner="me",
    deadline=NOW + timedelta(hours=1),
    renewed_until=NOW + timedelta(seconds=20),
)
BEFORE = Before(authorized_keys="ssh-ed25519 A", processes=("1:2",), files=("work/a",), image="debian")
CLAIM = HostClaim(
    host="pool-01",
    state=ClaimState.HELD,
    id="c1",
    name=resource_name(RUN, 1, 0),
    marker=MARKER,
    created_at=to_iso(NOW),
    used=True,
    ready=True,
    before=BEFORE,
    cleaned_at=NOW,
    words="busy",
)


def test_a_claim_on_a_host_comes_back_whole():
    for claim in (CLAIM, HostClaim(host="pool-01"), replace(CLAIM, marker=None, before=None, cleaned_at=None)):
        assert HostClaim.parse("pool-01", json.loads(json.dumps(claim.to_json()))) == claim
    older = {key: value for key, value in BEFORE.to_json().items() if key != "files"}
    assert Before.parse(older) == replace(BEFORE, files=())


@pytest.mark.parametrize("raw", [None, [], {}, {**CLAIM.to_json(), "state": "lent"}, {**CLAIM.to_json(), "before": 3}])
def test_a_host_whose_claim_cannot_be_read_is_out_and_never_free(raw):
    claim = HostClaim.parse("pool-01", raw)
    assert (claim.host, claim.state, claim.used) == ("pool-01", ClaimState.OUT, True)
    assert "cannot be read" in claim.words


def test_a_freed_host_is_nobodys_and_keeps_when_it_was_clean():
    later = NOW + timedelta(minutes=5)
    assert CLAIM.freed(cleaned_at=later, words="clean") == HostClaim(host="pool-01", cleaned_at=later, words="clean")
    assert CLAIM.freed(cleaned_at=None) == HostClaim(host="pool-01", cleaned_at=NOW)


def test_of_several_claims_of_one_name_all_choose_the_oldest():
    old = replace(CLAIM, created_at="2026-05-01T11:00:00+00:00", id="z")
    same = replace(old, id="b")
    assert min([CLAIM, old, same], key=age) == same


def test_hosts_are_tried_in_an_order_of_each_name():
    hosts = [f"pool-{number:02}" for number in range(8)]
    assert in_turn(hosts, "a") == in_turn(reversed(hosts), "a")
    assert sorted(in_turn(hosts, "a")) == hosts
    assert len({tuple(in_turn(hosts, f"name-{number}")) for number in range(8)}) > 4


@pytest.mark.parametrize(
    ("claim", "deployed", "since", "outcome"),
    [
        (None, False, NOW, Outcome.NEVER_DEPLOYED),
        (None, True, NOW, Outcome.UNPROVEN),
        (replace(CLAIM, state=ClaimState.OUT), True, NOW, Outcome.NOT_CLEAN),
        (replace(CLAIM, cleaned_at=None), True, NOW, Outcome.UNPROVEN),
        (CLAIM, True, None, Outcome.CLEANED),
        (CLAIM, True, NOW + 2 * SECOND, Outcome.CLEANED),
        (CLAIM, True, NOW + 3 * SECOND, Outcome.UNPROVEN),  # that cleaning was after another lease
    ],
)
def test_a_host_is_clean_when_it_was_cleaned_after_it_was_leased(claim, deployed, since, outcome):
    assert judge(claim, deployed=deployed, since=since, skew_s=2) is outcome
