"""Leases when machines or services fail, on the real Ironic, Keystone and RGW of the embedded stack."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.client import Client
from mlops_sdk.cloud import Cloud
from mlops_sdk.errors import NodeFailed, ServiceUnavailable

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

CLASS = "gpu.h200.8x"


@pytest.fixture
def client(stack: Any) -> Client:
    lease = stack.settings.lease.model_copy(update={"deploy_timeout_s": 8.0})
    return Client(stack.settings.model_copy(update={"lease": lease}))


@pytest.fixture
def fault(client: Client) -> Iterator[Callable[[dict[str, str]], None]]:
    """Lets every machine fail as told; cured at the end."""
    cloud = Cloud(client.settings.keystone)
    headers = {"X-OpenStack-Ironic-API-Version": "1.60"}

    def inject(what: dict[str, str]) -> None:
        for machine in client.services.baremetal.list_machines():
            patch = [{"op": "add", "path": "/extra/fault", "value": what}]
            for _ in range(20):
                path = f"/v1/nodes/{machine.id}"
                reply = cloud.request("baremetal", "PATCH", path, body=patch, headers=headers, accept={409})
                if reply.status != 409:
                    break
                time.sleep(0.5)

    yield inject
    inject({})


def request(nodes: int = 1) -> LeaseRequest:
    deadline = datetime.now(UTC) + timedelta(minutes=10)
    return LeaseRequest(nodes=nodes, resource_class=CLASS, deadline=deadline, wait_s=60)


def wait_for(done: Callable[[], bool], timeout_s: float, what: str) -> None:
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.5)


@pytest.mark.parametrize("how", ["fail", "hang"])
def test_a_machine_that_does_not_come_up_gives_everything_back(client: Client, fault: Any, how: str):
    fault({"deploy": how})
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
    fault({"tear_down": "fail"})
    (evidence,) = run.release()
    assert evidence.outcome is Outcome.NOT_CLEAN
    assert "injected fault" in evidence.last_error
    assert [item.resource for item in run.prove().missing if item.kind.value == "machine"] == [lease.nodes[0].name]
    fault({})
    limit = client.settings.lease.renew_for_s + 2 * client.settings.lease.reaper_period_s + 40
    wait_for(lambda: run.prove().complete, limit, "the reaper tears it down again")


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
