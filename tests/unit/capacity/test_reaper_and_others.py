"""The reaper beside others: another deployment, another provider, a run that is still at it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from mlops_sdk.capacity.lease import EndReason, LeaseRequest
from mlops_sdk.capacity.providers.ironic_view import Allocation
from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.testing.cloud import FakeCloud
from support_dead_runs import died, fence

DOWN = ServiceUnavailable("no answer")


def told(allocation: Allocation, **changes: Any) -> Allocation:
    """With another marker."""
    return replace(allocation, extra={"mlops": {**allocation.extra["mlops"], **changes}})


@pytest.mark.parametrize(
    "changed",
    [
        lambda allocation: replace(allocation, extra={}),
        lambda allocation: told(allocation, deployment_id="00000000-0000-4000-8000-000000000009"),
        lambda allocation: told(allocation, generation=2),
        lambda allocation: told(allocation, run_id="00000000-0000-4000-8000-000000000009"),
    ],
)
def test_what_is_not_ours_any_more_when_it_comes_to_act_is_left_alone(changed):
    cloud = FakeCloud()
    died(cloud)
    reaper = cloud.reaper()
    reaper._scan(dry_run=False)
    (name,) = cloud.allocations
    cloud.allocations[name] = changed(cloud.allocations[name])
    assert reaper._step([]) == []
    assert reaper._in_flight == {}
    assert cloud.faults.calls.count("tear_down") == 0
    assert cloud.held != {}


def test_its_claim_says_for_which_run():
    cloud = FakeCloud()
    run = died(cloud)
    reaper = cloud.reaper()
    reaper._scan(dry_run=False)
    reaper._step([])
    (claim,) = fence(cloud).claims()
    assert (claim.details["run_key"], claim.details["name"]) == (run.key, f"ml-{run.key}-g1-0")


def test_when_orders_cannot_be_asked_for_the_machine_comes_back_all_the_same():
    cloud = FakeCloud()
    died(cloud)
    cloud.faults.fail_at("get_object", cloud.faults.calls.count("get_object") + 1, error=DOWN)
    report = cloud.reaper().reap_once()
    assert [due.reason for due in report.due if due.kind == "allocation"] == [EndReason.NOT_RENEWED]
    assert cloud.held == {}


def on_both(cloud: FakeCloud) -> None:
    """A run on Ironic and one on a host of the pool, which nobody renews."""
    deadline = cloud.clock.now() + timedelta(hours=1)
    for name, provider, kind in (("one", "ironic", "gpu.h200.8x"), ("two", "static", "gpu.static")):
        with cloud.client().start_run(name=name) as run:
            run.lease(LeaseRequest(nodes=1, resource_class=kind, deadline=deadline, provider=provider))
            run.keep()


def test_what_is_held_within_its_time_is_counted_over_all_providers():
    cloud = FakeCloud(hosts=1)
    on_both(cloud)
    assert cloud.reaper().reap_once(dry_run=True).not_due == 2


def test_one_provider_that_does_not_answer_hides_nothing_of_the_others():
    cloud = FakeCloud(hosts=1)
    on_both(cloud)
    cloud.clock.sleep(30)
    cloud.faults.fail_at("list_allocations", cloud.faults.calls.count("list_allocations") + 1, error=DOWN)
    report = cloud.reaper().reap_once()
    assert ["no answer" in text for text in report.errors] == [True]
    assert [item.node_name for item in report.evidence] == ["pool-01"]
    assert len(cloud.held) == 1
