"""Kill the controller before and after every outside call of a lease and its release: the reaper returns everything."""

from dataclasses import replace
from datetime import timedelta

import pytest

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.run import Run
from mlops_sdk.testing.cloud import FakeBaremetal, FakeCloud
from mlops_sdk.testing.faults import Crash

STRANGER = "their-training"


def request(cloud: FakeCloud, nodes: int = 2) -> LeaseRequest:
    deadline = cloud.clock.now() + timedelta(hours=1)
    return LeaseRequest(nodes=nodes, resource_class="gpu.h200.8x", traits=("CUSTOM_GPU_H200",), deadline=deadline)


def stranger_holds_a_machine(cloud: FakeCloud) -> None:
    machine = next(iter(cloud.machines.values()))
    api = FakeBaremetal(cloud)
    with cloud.client().start_run(name="stranger's") as run:  # only to get a machine allocated
        run.lease(request(cloud, nodes=1))
        run.keep()
    allocation = cloud.allocations.popitem()[1]
    cloud.allocations[STRANGER] = replace(allocation, name=STRANGER, extra={})
    cloud.credentials.clear()
    cloud.access_rules.clear()
    cloud.s3.objects.clear()
    assert api.get_machine(machine.shown.id) is not None


def live(cloud: FakeCloud, run: Run) -> None:
    run.lease(request(cloud))
    run.release()


def count_calls() -> int:
    cloud = FakeCloud()
    stranger_holds_a_machine(cloud)
    cloud.faults.clear()
    live(cloud, cloud.client().start_run(name="nightly"))
    return len(cloud.faults.calls)


CALLS = count_calls()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("k", range(1, CALLS + 1))
def test_after_a_crash_at_any_call_the_reaper_returns_everything(k, when):
    cloud = FakeCloud()
    stranger_holds_a_machine(cloud)
    theirs = cloud.held
    cloud.faults.clear()
    cloud.faults.fail_at("*", k, error=Crash(), when=when)
    run = None
    try:
        run = cloud.client().start_run(name="nightly")
        live(cloud, run)
    except Crash:
        pass
    finally:
        if run is not None:
            run.close()
    cloud.faults.clear()

    cloud.clock.sleep(cloud.settings.lease.renew_for_s + cloud.settings.lease.clock_skew_s + 1)
    cloud.reaper().reap_once()
    cloud.clock.sleep(cloud.settings.lease.renew_for_s + cloud.settings.lease.clock_skew_s + 1)
    cloud.reaper().reap_once()

    assert cloud.held == theirs
    assert cloud.credentials == {}
    assert not [rule for rule in cloud.access_rules.values() if "/ml-" in rule.path]
    assert not [key for key in cloud.s3.objects if key.startswith("fence/")]
    again = cloud.client().start_run(name="nightly")
    proof = again.prove()
    assert proof.complete, proof.missing
    # and the run can go on
    again.lease(request(cloud)) if not again.history().generations else again.next_generation()
    again.close()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("k", range(1, CALLS + 1))
def test_another_process_attaches_after_a_crash_and_gives_everything_back_itself(k, when):
    cloud = FakeCloud()
    cloud.faults.fail_at("*", k, error=Crash(), when=when)
    run = None
    try:
        run = cloud.client().start_run(name="nightly")
        live(cloud, run)
    except Crash:
        pass
    finally:
        if run is not None:
            run.close()
    cloud.faults.clear()

    again = cloud.client().start_run(name="nightly")
    again.release()
    proof = again.prove()
    assert proof.complete, proof.missing
    assert cloud.held == {}
    assert cloud.credentials == {}
