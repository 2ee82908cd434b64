"""The nightly report as Airflow drives it: it must read zero orphans, or the task fails."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mlops_hooks.deployment import DeploymentHook
from mlops_operators import reports
from mlops_operators.reports import ReportLeasesOperator
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.errors import LeasesOverdue, ServiceUnavailable
from mlops_sdk.testing.cloud import FakeCloud
from support_airflow import Task


@pytest.fixture
def cloud(monkeypatch) -> FakeCloud:
    cloud = FakeCloud()
    monkeypatch.setattr(DeploymentHook, "client", lambda _hook: cloud.client())
    monkeypatch.setattr(reports, "tag_versions", lambda *_: ())
    return cloud


def lease_and_die(cloud: FakeCloud) -> None:
    deadline = cloud.clock.now() + timedelta(hours=1)
    with cloud.client().start_run(name="dead") as run:
        run.lease(LeaseRequest(nodes=2, resource_class="gpu.h200.8x", deadline=deadline))
        run.keep()


def kept(cloud: FakeCloud) -> list[str]:
    return sorted({"/".join(key.split("/")[:2]) for key in cloud.s3.objects if key.startswith("reports/")})


def test_nothing_overdue_is_a_success(cloud):
    lease_and_die(cloud)
    told = Task(ReportLeasesOperator(task_id="report")).run()
    assert (told["held"], told["overdue"]) == (2, 0)


def test_an_orphan_fails_it_until_it_is_taken_back_and_both_reports_are_kept_all_the_same(cloud):
    lease_and_die(cloud)
    cloud.clock.sleep(3600)
    task = Task(ReportLeasesOperator(task_id="report"))
    with pytest.raises(LeasesOverdue, match="3 things"):  # two machines and a credential
        task.run()
    assert kept(cloud) == ["reports/costs", "reports/leases"]
    cloud.reaper().reap_once()
    assert task.run()["overdue"] == 0


def test_a_service_that_could_not_be_asked_fails_it_too(cloud):
    cloud.faults.fail_at("list_credentials", 1, error=ServiceUnavailable("Keystone is down"))
    with pytest.raises(LeasesOverdue, match="Keystone is down"):
        Task(ReportLeasesOperator(task_id="report")).run()
