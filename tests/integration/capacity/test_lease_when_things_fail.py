"""Leases when machines or services fail, on the real Ironic, Keystone and RGW of the embedded stack."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.client import Client
from mlops_sdk.errors import NodeFailed, ServiceUnavailable
from support import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

CLASS = "gpu.h200.8x"


@pytest.fixture
def client(stack: Any) -> Client:
    lease = stack.settings.lease.model_copy(update={"deploy_timeout_s": 8.0})
    return Client(stack.settings.model_copy(update={"lease": lease}))


def request(nodes: int = 1) -> LeaseRequest:
    deadline = datetime.now(UTC) + timedelta(minutes=10)
    return LeaseRequest(nodes=nodes, resource_class=CLASS, deadline=deadline, wait_s=60)


@pytest.mark.parametrize("how", ["fail", "hang"])
def test_a_machine_that_does_not_come_up_gives_everything_back(client: Client, fault: Any, how: str):
    fault(deploy=how)
    with client.start_run() as run:
        with pytest.raises(NodeFailed) as caught:
            run.lease(request(2))
        assert "gpu-" in caught.value.seen
        assert caught.value.next_step
        assert [a.name for a in client.services.baremetal.list_allocations() if run.key in a.name] == []
    proof = run.prove()
    assert proof.complete, proof.missing


def test_a_failed_tear_down_is_shown_and_finished_by_the_reaper(client: Client, fault: Any):
    run = client.start_run()
    lease = run.lease(request())
    fault(tear_down="fail")
    (evidence,) = run.release()
    assert evidence.outcome is Outcome.NOT_CLEAN
    assert "injected fault" in evidence.last_error
    assert [item.resource for item in run.prove().missing if item.kind.value == "machine"] == [lease.nodes[0].name]
    fault()
    limit = client.settings.lease.renew_for_s + 2 * client.settings.lease.reaper_period_s + 40
    eventually(lambda: run.prove().complete, within_s=limit, what="the reaper tears it down again")


@pytest.mark.slow
def test_with_s3_down_the_machines_are_still_given_back_and_later_proven(client: Client, stack: Any):
    run = client.start_run()
    lease = run.lease(request())
    started = time.monotonic()
    with stack.held("ceph-rgw"):
        with pytest.raises(ServiceUnavailable):
            client.start_run(name="not while S3 is down")
        (evidence,) = run.release()
        assert evidence.outcome is Outcome.CLEANED
        machine = client.services.baremetal.get_machine(lease.nodes[0].id)
        assert machine is not None
        assert machine.provision_state == "available"
    assert time.monotonic() - started < 90
    assert run.prove().complete
