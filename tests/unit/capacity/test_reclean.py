"""A machine whose cleaning fails is cleaned again by the reaper, and leaves the pool when that does not help."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.providers.ironic import IronicLeases
from mlops_sdk.errors import MlopsError
from mlops_sdk.run import Run
from mlops_sdk.testing.cloud import FakeCloud, FakeMachine
from mlops_sdk.testing.faults import Crash
from mlops_sdk.testing.settings import fake_settings


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


@pytest.fixture
def bad(cloud: FakeCloud) -> FakeMachine:
    found = next(iter(cloud.machines.values()))
    found.fails.add("clean")
    return found


@pytest.fixture
def run(cloud: FakeCloud, bad: FakeMachine) -> Run:
    """One that gave back a machine that could not be cleaned."""
    made = cloud.client().start_run(name="nightly")
    made.lease(LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=cloud.clock.now() + timedelta(hours=1)))
    (evidence,) = made.release()
    assert evidence.outcome is Outcome.NOT_CLEAN
    assert evidence.recleans == 0
    assert bad.shown.provision_state == "clean failed"
    return made


def claims(cloud: FakeCloud) -> list[str]:
    return [key for key in cloud.s3.objects if key.startswith("fence/")]


def test_the_reaper_cleans_it_again_at_once_and_proves_it(cloud, bad, run):
    bad.fails.clear()
    report = cloud.reaper().reap_once()
    assert [(item.outcome, item.recleans, item.steps) for item in report.evidence] == [
        (Outcome.CLEANED, 1, ("deploy.erase_devices",))
    ]
    assert (bad.shown.provision_state, bad.shown.maintenance) == ("available", False)
    assert run.prove().complete
    assert claims(cloud) == []


def test_after_three_times_it_is_out_of_the_pool_and_says_why(cloud, bad, run):
    report = cloud.reaper().reap_once()
    (evidence,) = report.evidence
    assert (evidence.outcome, evidence.recleans) == (Outcome.NOT_CLEAN, 3)
    assert cloud.faults.calls.count("provide") == 3
    assert bad.shown.maintenance
    assert bad.shown.maintenance_reason.startswith("mlops: 'clean failed' after ml-")
    assert claims(cloud) == []
    cloud.clock.sleep(1000)
    assert cloud.reaper().reap_once().due == ()
    assert not run.prove().complete
    shown = {m.name: m for m in cloud.services().provider("ironic").pool()}[bad.shown.name]
    assert "clean failed, in maintenance: mlops: 'clean failed'" in shown.state
    assert not shown.in_service


def test_a_person_may_try_it_once_more(cloud, bad, run):
    cloud.reaper().reap_once()
    provider = cloud.services().provider("ironic", by="person")
    assert isinstance(provider, IronicLeases)
    assert "out of the pool" in provider.clean(bad.shown.name)
    bad.fails.clear()
    assert "deploy.erase_devices" in provider.clean(bad.shown.name)
    assert (bad.shown.provision_state, bad.shown.maintenance) == ("available", False)
    assert claims(cloud) == []
    with pytest.raises(MlopsError, match="needs no cleaning"):
        provider.clean(bad.shown.name)
    with pytest.raises(MlopsError, match="no machine"):
        provider.clean("gpu-99")


def test_a_machine_in_use_or_in_somebodys_hands_is_not_cleaned_by_hand(cloud, bad):
    provider = cloud.services().provider("ironic", by="person")
    assert isinstance(provider, IronicLeases)
    other = list(cloud.machines.values())[1]
    other.shown = replace(other.shown, maintenance=True, maintenance_reason="fan", provision_state="manageable")
    with pytest.raises(MlopsError, match="fan"):
        provider.clean(other.shown.name)
    bad.shown = replace(bad.shown, allocation_id="somebody")
    with pytest.raises(MlopsError, match="in use"):
        provider.clean(bad.shown.name)


def test_what_a_person_put_into_maintenance_is_left_to_that_person(cloud, bad, run):
    bad.shown = replace(bad.shown, maintenance_reason="its disk is on order", fault="")
    report = cloud.reaper().reap_once()
    assert [item.outcome for item in report.evidence] == [Outcome.NOT_CLEAN]
    assert "manage" not in cloud.faults.calls
    assert bad.shown.provision_state == "clean failed"
    assert bad.shown.maintenance_reason == "its disk is on order"
    assert claims(cloud) == []


def test_a_tear_down_that_never_works_ends_too(cloud):
    machine = next(iter(cloud.machines.values()))
    machine.fails.add("tear_down")
    run = cloud.client().start_run(name="nightly")
    run.lease(LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=cloud.clock.now() + timedelta(hours=1)))
    run.release()
    (evidence,) = cloud.reaper().reap_once().evidence
    assert (evidence.outcome, evidence.recleans) == (Outcome.NOT_CLEAN, 3)
    assert machine.shown.maintenance_reason.startswith("mlops: 'error' after ml-")
    assert claims(cloud) == []


def slow_cloud() -> FakeCloud:
    """It is looked at every ten seconds only, so that a sweep over all calls is short."""
    settings = fake_settings()
    lease = settings.lease.model_copy(update={"poll_s": 10.0})
    return FakeCloud(settings=settings.model_copy(update={"lease": lease}))


def count_calls() -> int:
    cloud = slow_cloud()
    broken(cloud)
    cloud.faults.clear()
    cloud.reaper().reap_once()
    return len(cloud.faults.calls)


def broken(cloud: FakeCloud) -> FakeMachine:
    machine = next(iter(cloud.machines.values()))
    machine.fails.add("clean")
    run = cloud.client().start_run(name="nightly")
    run.lease(LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=cloud.clock.now() + timedelta(hours=1)))
    run.release()
    return machine


CALLS = count_calls()


@pytest.mark.parametrize("k", [pytest.param(k, marks=pytest.mark.slow if k % 3 else ()) for k in range(1, CALLS + 1)])
def test_a_reaper_that_dies_at_any_call_is_followed_by_one_that_ends_it_within_the_budget(k):
    cloud = slow_cloud()
    machine = broken(cloud)
    cloud.faults.clear()
    cloud.faults.fail_at("*", k, error=Crash(), when="after")
    with suppress(Crash):  # a call that fails by itself does not come to its "after"
        cloud.reaper().reap_once()
    tried = cloud.faults.calls.count("manage")
    cloud.faults.clear()
    for _ in range(4):
        cloud.clock.sleep(cloud.settings.lease.renew_for_s + 1)
        cloud.reaper().reap_once()
    assert machine.shown.maintenance
    assert machine.shown.maintenance_reason.startswith("mlops: ")
    assert tried + cloud.faults.calls.count("manage") <= cloud.settings.lease.reclean_tries
    assert claims(cloud) == []
