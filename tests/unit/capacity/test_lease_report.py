"""The nightly report: what is held, what is overdue, what it cost."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.report import report_leases, store_report
from mlops_sdk.errors import LeasesOverdue, ServiceUnavailable
from mlops_sdk.testing.cloud import FakeCloud


def leased(cloud: FakeCloud, name: str, nodes: int, *, keep: bool) -> None:
    deadline = cloud.clock.now() + timedelta(hours=1)
    with cloud.client().start_run(name=name) as run:
        run.lease(LeaseRequest(nodes=nodes, resource_class="gpu.h200.8x", deadline=deadline))
        cloud.clock.sleep(10)
        if keep:
            run.keep()


def test_it_names_what_is_held_and_what_each_run_cost() -> None:
    cloud = FakeCloud()
    leased(cloud, "given-back", 1, keep=False)
    leased(cloud, "held", 2, keep=True)
    report = report_leases(cloud.client())
    report.check()
    assert len(report.held) == 2
    assert {holding.owner for holding in report.held} == {"tester"}
    costs = {run.name: run.cost for run in report.runs}
    assert costs["held"] > costs["given-back"] > 0
    assert report.cost == pytest.approx(sum(costs.values()))
    words = report.words()
    assert "2 machines held, 0 things overdue" in words
    assert "run" in words
    assert "given-back: released" in words


def test_what_is_overdue_fails_and_says_what_to_do() -> None:
    cloud = FakeCloud()
    leased(cloud, "dead", 2, keep=True)
    cloud.clock.sleep(3600)
    before = dict(cloud.held)
    report = report_leases(cloud.client())
    assert cloud.held == before  # nothing is touched
    with pytest.raises(LeasesOverdue, match="mlops reap") as caught:
        report.check()
    assert caught.value.retriable
    assert sum(due.kind == "allocation" for due in report.overdue) == 2
    cloud.reaper().reap_once()
    report_leases(cloud.client()).check()


def test_what_could_not_be_looked_at_fails_too() -> None:
    cloud = FakeCloud()
    cloud.faults.fail_at("list_credentials", 1, error=ServiceUnavailable("Keystone is down"))
    with pytest.raises(LeasesOverdue, match="Keystone is down"):
        report_leases(cloud.client()).check()


def test_old_runs_are_left_out_unless_they_hold_something() -> None:
    cloud = FakeCloud()
    leased(cloud, "old", 1, keep=False)
    leased(cloud, "old-and-held", 1, keep=True)
    cloud.clock.sleep(3 * 86400)
    leased(cloud, "new", 1, keep=False)
    assert {run.name for run in report_leases(cloud.client()).runs} == {"old-and-held", "new"}
    assert {run.name for run in report_leases(cloud.client(), days=7).runs} == {"old", "old-and-held", "new"}


def test_it_is_kept_as_json_under_its_moment() -> None:
    cloud = FakeCloud()
    leased(cloud, "held", 1, keep=True)
    client = cloud.client()
    report = report_leases(client)
    uri = store_report(client, report)
    stored = json.loads(client.store.get(uri.removeprefix("s3://mlops/")) or b"")
    assert stored == report.to_json()
    assert "secret" not in json.dumps(stored)
