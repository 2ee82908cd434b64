"""The tables that decide about a lease."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mlops_sdk.capacity.lease import (
    MARKER,
    EndReason,
    LeaseRequest,
    Marker,
    belongs,
    overdue,
)
from mlops_sdk.capacity.owned import Owned, due_for_return
from mlops_sdk.capacity.providers.ironic_view import Allocation

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
DEPLOYMENT = "6f1c3d1e-0000-4000-8000-000000000001"


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
