"""The reaper finishes what a dead claimant began, and writes down what nobody did."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import EndReason, LeaseRequest
from mlops_sdk.history import read_history
from mlops_sdk.run import Run
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.faults import Crash
from support_dead_runs import ByHand, died, entries, fence, leased


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


def given_back(cloud: FakeCloud, *, fails: set[str]) -> Run:
    """A run that gave its machine back, which was not clean by then."""
    run = leased(cloud)
    next(m for m in cloud.machines.values() if m.shown.allocation_id).fails |= fails
    again = cloud.client().attach(run.id)
    again.release()
    again.close()
    return run


def test_what_a_run_handed_over_is_finished_with_all_that_is_known_of_it(cloud):
    run = given_back(cloud, fails={"clean"})
    cloud.machines[next(iter(cloud.machines))].fails.clear()
    since = read_history(entries(cloud, run)).generations[1].pieces[f"ml-{run.key}-g1-0"].since
    reaper = cloud.reaper()
    report = reaper.reap_once()
    assert [(due.kind, due.reason) for due in report.due] == [("fence", EndReason.NOT_RENEWED)]
    (evidence,) = report.evidence
    assert (evidence.outcome.value, evidence.recleans, evidence.resource) == ("cleaned", 1, f"ml-{run.key}-g1-0")
    assert (evidence.reason, evidence.started_at) == (EndReason.NOT_RENEWED, since.isoformat() if since else "")
    assert not any(key.startswith("fence/") for key in cloud.s3.objects)
    assert read_history(entries(cloud, run)).generations[1].pieces[evidence.resource].evidence == evidence


def test_what_a_run_handed_over_is_begun_once(cloud):
    given_back(cloud, fails={"clean"})
    reaper = cloud.reaper()
    reaper._scan(dry_run=False)
    ((ident, begun),) = reaper._in_flight.items()
    assert f"fence/{ident}" in cloud.s3.objects
    reaper._scan(dry_run=False)
    assert list(reaper._in_flight.values()) == [begun]


def test_a_machine_that_came_back_while_nobody_looked_has_its_end_written_down(cloud):
    run = died(cloud)
    reaper = cloud.reaper()
    reaper._scan(dry_run=False)
    reaper._step([])  # the tear-down is asked for, and this reaper dies
    for _ in range(30):
        cloud.clock.sleep(1)
        assert cloud.held == {}
    cloud.clock.sleep(270)
    report = cloud.reaper().reap_once()
    (evidence,) = report.evidence
    assert (evidence.outcome.value, evidence.resource) == ("cleaned", f"ml-{run.key}-g1-0")
    history = read_history(entries(cloud, run))
    assert history.generations[1].pieces[evidence.resource].ended
    assert [interval.seconds < 200 for interval in history.intervals] == [True]  # until it was clean
    assert not any(key.startswith("fence/") for key in cloud.s3.objects)


def test_a_machine_that_was_only_allocated_is_known_as_never_used_whoever_finishes(cloud):
    cloud.faults.fail_at("create_allocation", 1, error=Crash(), when="after")
    deadline = cloud.clock.now() + timedelta(hours=1)
    run = cloud.client(keeper=ByHand()).start_run(name="one")
    with pytest.raises(Crash):
        run.lease(LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=deadline))
    cloud.faults.clear()
    cloud.clock.sleep(60)
    first = cloud.reaper()
    first._scan(dry_run=False)
    for release in first._in_flight.values():
        release.step()  # its allocation goes, and this reaper dies
    assert cloud.held == {}
    cloud.clock.sleep(60)
    report = cloud.reaper().reap_once()
    assert {item.outcome for item in report.evidence} <= {Outcome.NEVER_DEPLOYED}
    (piece,) = read_history(entries(cloud, run)).generations[1].pieces.values()
    assert piece.evidence is not None
    assert piece.evidence.outcome is Outcome.NEVER_DEPLOYED


def test_a_run_whose_journal_was_lost_loses_no_machine_and_gets_its_evidence(cloud):
    run = died(cloud)
    for key in [key for key in cloud.s3.objects if "/journal/" in key]:
        del cloud.s3.objects[key]
    report = cloud.reaper().reap_once()
    assert report.errors == ()
    assert cloud.held == {}
    (evidence,) = report.evidence
    told = [entry for entry in entries(cloud, run) if entry.kind.value == "evidence"]
    assert [entry.resource for entry in told] == [evidence.resource] == [f"ml-{run.key}-g1-0"]
    assert read_history(entries(cloud, run)).intervals == []


def test_the_same_end_is_written_down_once(cloud):
    run = died(cloud)
    reaper = cloud.reaper()
    (evidence,) = reaper.reap_once().evidence
    before = len(entries(cloud, run))
    reaper._write_down(evidence)
    assert len(entries(cloud, run)) == before
    reaper._write_down(replace(evidence, outcome=Outcome.NOT_CLEAN))
    assert len(entries(cloud, run)) > before


def test_a_claim_on_what_ended_and_was_written_down_is_only_removed(cloud):
    run = given_back(cloud, fails=set())
    before = len(entries(cloud, run))
    claim = fence(cloud).claim("id", provider="ironic", name=f"ml-{run.key}-g1-0")
    assert claim is not None
    fence(cloud).yield_up(claim)
    report = cloud.reaper().reap_once()
    assert [due.kind for due in report.due] == ["fence"]
    assert (report.evidence, len(entries(cloud, run))) == ((), before)
    assert not any(key.startswith("fence/") for key in cloud.s3.objects)
