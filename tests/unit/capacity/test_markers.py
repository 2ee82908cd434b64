"""Whose something is, and since when too long: markers of leases, of hosts, and of credentials."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from mlops_sdk.capacity.lease import (
    MARKER,
    EndReason,
    LeaseRequest,
    Marker,
    Priority,
    belongs,
    from_iso,
    overdue,
    priority_of,
    to_iso,
)
from mlops_sdk.capacity.owned import Owned, due_for_return
from mlops_sdk.identity.credential_marker import Alive, CredentialMarker, why_dead
from mlops_sdk.names import resource_name

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
RUN = uuid.UUID("7f1c3d1e-0000-4000-8000-000000000007")
OURS = "6f1c3d1e-0000-4000-8000-000000000001"
SECOND = timedelta(seconds=1)


def marker(**changes: Any) -> Marker:
    values = {
        "run_id": str(RUN),
        "deployment_id": OURS,
        "generation": 1,
        "index": 0,
        "nodes": 2,
        "owner": "me",
        "deadline": NOW + timedelta(hours=1),
        "renewed_until": NOW + timedelta(seconds=20),
    }
    return Marker(**{**values, **changes})


def request(**changes: Any) -> LeaseRequest:
    return LeaseRequest(**{"nodes": 2, "resource_class": "gpu", "deadline": NOW, **changes})


def test_overdue_begins_after_the_allowed_skew_and_the_deadline_is_the_stronger_reason():
    marks = {"deadline": NOW + 60 * SECOND, "renewed_until": NOW + 20 * SECOND, "skew_s": 2}
    assert overdue(now=NOW + 22 * SECOND, **marks) is None
    assert overdue(now=NOW + 23 * SECOND, **marks) is EndReason.NOT_RENEWED
    assert overdue(now=NOW + 62 * SECOND, **marks) is EndReason.NOT_RENEWED
    assert overdue(now=NOW + 63 * SECOND, **marks) is EndReason.DEADLINE
    renewed = {**marks, "renewed_until": NOW + timedelta(days=1)}
    assert overdue(now=NOW + 62 * SECOND, **renewed) is None
    assert overdue(now=NOW + 63 * SECOND, **renewed) is EndReason.DEADLINE


def test_a_marker_comes_back_whole_and_an_urgent_one_stays_urgent():
    whole = marker(priority=Priority.URGENT, preemptible=True)
    assert Marker.parse({MARKER: json.loads(json.dumps(whole.to_json()))}) == whole
    assert Marker.parse({}) is None
    assert Marker.parse({MARKER: ["run_id"]}) is None
    assert Marker.parse({MARKER: {**whole.to_json(), "deadline": "soon"}}) is None
    older = {key: value for key, value in whole.to_json().items() if key not in {"priority", "preemptible"}}
    read = Marker.parse({MARKER: older})
    assert read is not None
    assert (read.priority, read.preemptible) == (Priority.NORMAL, False)


@pytest.mark.parametrize(
    ("stored", "meant"), [(2, Priority.URGENT), ("0", Priority.BATCH), (None, Priority.NORMAL), ("x", Priority.NORMAL)]
)
def test_a_priority_that_is_not_known_is_normal(stored, meant):
    assert priority_of(stored) is meant


def test_a_priority_has_a_name():
    assert Priority.named("urgent") is Priority.URGENT
    with pytest.raises(ValueError, match=r"batch.*normal.*urgent"):
        Priority.named("soon")


def test_what_is_ours_carries_our_name_and_agrees_with_it():
    name = resource_name(RUN, 1, 0)
    assert belongs(name, marker(), OURS)
    assert not belongs(name, None, OURS)
    assert not belongs(name, marker(), "another")
    assert not belongs(name, marker(generation=2), OURS)
    assert not belongs(name, marker(index=1), OURS)
    assert not belongs(name, marker(run_id=str(uuid.UUID("8f1c3d1e-0000-4000-8000-000000000008"))), OURS)
    assert not belongs(name, marker(run_id="nobody"), OURS)
    assert not belongs("their-training", marker(), OURS)


def test_times_are_kept_in_utc_and_one_without_a_zone_is_utc():
    east = timezone(timedelta(hours=2))
    assert to_iso(NOW.astimezone(east)) == "2026-05-01T12:00:00+00:00"
    assert from_iso("2026-05-01T14:00:00+02:00") == NOW
    assert from_iso("2026-05-01T14:00:00+02:00").tzinfo is UTC
    assert from_iso("2026-05-01T12:00:00") == NOW
    with pytest.raises(ValueError, match=r"\S"):
        from_iso("soon")


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata", "UTC"])
def test_times_do_not_depend_on_where_a_process_runs(monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert to_iso(NOW) == "2026-05-01T12:00:00+00:00"
        assert from_iso("2026-05-01T12:00:00") == NOW
        assert Marker.parse({MARKER: marker().to_json()}) == marker()
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "edge",
    [{"nodes": 1}, {"spares": 0}, {"wait_s": 0.0}, {"hold_on_failure_s": 0.0}, {"machines": ("a", "b")}, {"spares": 1}],
)
def test_a_request_may_ask_for_the_least(edge):
    assert request(**edge)


@pytest.mark.parametrize(
    "wrong", [{"nodes": 0}, {"spares": -1}, {"wait_s": -0.5}, {"hold_on_failure_s": -0.5}, {"machines": ("a",)}]
)
def test_a_request_that_cannot_be_met_is_refused(wrong):
    with pytest.raises(ValueError, match=r"\S"):
        request(**wrong)


def test_a_request_says_in_words_what_is_wanted():
    words = str(request(traits=("ib", "fast"), spares=3, machines=("gpu-01", "gpu-02"), provider="nova"))
    for said in ("2 x gpu", "ib, fast", "3 in reserve", "gpu-01, gpu-02", "nova"):
        assert said in words
    assert str(request()) == "2 x gpu"


def owned(kind: str = "allocation", **changes: Any) -> Owned:
    values = {"provider": "ironic", "id": "a1", "name": resource_name(RUN, 1, 0), "marker": marker(), "node_id": "m1"}
    return Owned(**{**values, "kind": kind, **changes})


def test_what_is_returned_says_which_piece_and_machine_it_is():
    held = owned(kind="port").held
    assert (held.name, held.allocation_id, held.node_id, held.kind) == (resource_name(RUN, 1, 0), "a1", "m1", "port")


def test_each_overdue_thing_is_judged_for_itself():
    fresh = owned(id="a2", marker=marker(renewed_until=NOW + timedelta(minutes=9)))
    strange = owned(id="a3", marker=marker(deployment_id="another"))
    late = owned(id="a4")
    found = due_for_return([fresh, strange, late], deployment_id=OURS, now=NOW + 60 * SECOND, skew_s=1)
    assert found == [(late, EndReason.NOT_RENEWED)]


def test_what_belongs_to_something_of_another_provider_does_not_wait_for_it():
    child = owned(id="p1", kind="port", parent="a1", provider="nova")
    found = due_for_return([owned(), child], deployment_id=OURS, now=NOW + timedelta(days=1), skew_s=1)
    assert [item.id for item, _ in found] == ["a1", "p1"]


def credential(**changes: Any) -> CredentialMarker:
    values = {
        "run_id": str(RUN),
        "deployment_id": OURS,
        "generation": 2,
        "created_at": NOW,
        "deadline": NOW + timedelta(hours=1),
    }
    return CredentialMarker(**{**values, **changes})


def test_a_credentials_marker_comes_back_from_its_description():
    assert CredentialMarker.parse(str(credential())) == credential()
    assert str(credential()) == str(CredentialMarker.parse(str(credential())))
    raw = json.loads(str(credential()))
    for key in raw["mlops"]:
        lacking = {name: value for name, value in raw["mlops"].items() if name != key}
        assert CredentialMarker.parse(json.dumps({"mlops": lacking})) is None
    for other in ("", "made by hand", "[]", "null", '{"mlops": 3}', '{"mlops": {"generation": "x"}}'):
        assert CredentialMarker.parse(other) is None


def test_a_heartbeat_that_cannot_be_read_is_none():
    beat = {"generation": 2, "renewed_until": to_iso(NOW)}
    assert Alive.parse(beat) == Alive(generation=2, renewed_until=NOW)
    assert Alive.parse({**beat, "generation": "2"}) == Alive(generation=2, renewed_until=NOW)
    for wrong in (
        None,
        [],
        "beat",
        {},
        {"generation": 2},
        {"renewed_until": to_iso(NOW)},
        {**beat, "generation": None},
    ):
        assert Alive.parse(wrong) is None
    assert Alive.parse({**beat, "renewed_until": "soon"}) is None


def dead(seconds: float, alive: Alive | None) -> EndReason | None:
    return why_dead(credential(), alive, now=NOW + timedelta(seconds=seconds), skew_s=1, window_s=20)


def test_a_credential_is_revoked_when_its_run_is_dead_and_not_a_moment_before():
    assert dead(21, None) is None
    assert dead(21.5, None) is EndReason.NOT_RENEWED
    beating = Alive(generation=2, renewed_until=NOW + timedelta(seconds=100))
    assert dead(101, beating) is None
    assert dead(101.5, beating) is EndReason.NOT_RENEWED
    for_ever = Alive(generation=2, renewed_until=NOW + timedelta(days=1))
    assert dead(3601, for_ever) is None
    assert dead(3601.5, for_ever) is EndReason.DEADLINE


def test_a_credential_of_an_older_generation_was_left_by_a_crash_and_one_of_a_newer_was_not():
    alive = Alive(generation=3, renewed_until=NOW + timedelta(days=1))
    assert dead(0, alive) is EndReason.NODE_FAILED
    assert dead(0, replace(alive, generation=1)) is None
