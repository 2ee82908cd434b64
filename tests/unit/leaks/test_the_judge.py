"""What says that nothing leaks would say so if something did; and what once leaked does not any more."""

import pytest

from benchmarks.leaks_life import MACHINES
from benchmarks.leaks_peer import leaks_by_hand
from benchmarks.leaks_run import run_schedule, stage
from benchmarks.leaks_schedules import Schedule, draw
from mlops_sdk.capacity import reaper as reaper_module
from mlops_sdk.capacity.lease import EndReason
from mlops_sdk.capacity.reaper import Reaper


def result(line: str):
    with stage():
        return run_schedule(Schedule.parse(line))


@pytest.mark.parametrize(
    ("part", "left"), [("_reap_credentials", "credential"), ("_sweep_rules", "access rule"), ("_sweep_fences", "claim")]
)
def test_what_a_part_of_the_reaper_would_leave_is_seen(part, left, monkeypatch):
    monkeypatch.setattr(Reaper, part, lambda _self, _dry_run, _errors: [])
    crashes = (f"7;release;1;1;0;;{k}=crash_after:0" for k in range(30, 200))
    assert any(words.startswith(left) for line in crashes for words in result(line).left)


def test_a_reaper_that_takes_everything_is_seen(monkeypatch):
    monkeypatch.setattr(Reaper, "_entitled", lambda *_: True)
    monkeypatch.setattr(
        reaper_module, "due_for_return", lambda owned, **_: [(item, EndReason.NOT_RENEWED) for item in owned]
    )
    assert result("1;release;1;1;0;;").wrong


def test_without_any_reaper_a_crash_leaves_everything():
    schedule = Schedule.parse("3;release;1;0;0;;60=crash_before:0")
    with stage():
        left = run_schedule(schedule).left
    assert {words.split()[0] for words in left} >= {"allocation", "machine", "credential"}


@pytest.mark.parametrize("kind", ["conflict", "throttled", "error", "error_done", "expired", "lost_reply", "timeout"])
def test_no_single_failure_of_a_renewal_costs_the_lease(kind):
    """Seed 5, call 61: a 409 to a renewal counted as "the allocation is gone"."""
    with stage():
        trace = run_schedule(Schedule.parse("5;release;1;1;0;;"), traced=True).trace
    renewals = [line.split()[1] for line in trace if " PATCH /v1/allocations" in line and line.endswith("200")]
    assert renewals
    assert [k for k in renewals if result(f"5;release;1;1;0;;{k}={kind}:0").ended] == []


def test_a_lower_class_gives_way_and_the_higher_gets_its_machines():
    with stage():
        played = run_schedule(Schedule.parse("3;preempt;2;1;0;;"), traced=True)
    assert played.ok
    deployed = [line for line in played.trace if "contender" in line and "states/provision -> 202" in line]
    assert len(deployed) >= 2 * MACHINES  # each of them there, and back
    assert any(" run " in line and "states/provision" in line for line in played.trace)


def test_machines_leased_by_hand_leak():
    with stage():
        assert sum(leaks_by_hand(draw(seed)) for seed in range(40)) > 0
