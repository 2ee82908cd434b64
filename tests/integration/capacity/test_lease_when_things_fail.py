"""Leases when machines or services fail, on the real Ironic, Keystone and RGW of the embedded stack."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.cli.main import main
from mlops_sdk.client import Client
from mlops_sdk.errors import NodeFailed, ServiceUnavailable
from support import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

CLASS = "gpu.h200.8x"
LIST = ["lease", "list", "--json"]


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
def test_a_failed_cleaning_is_tried_again_by_the_reaper_and_proven_by_its_steps(client: Client, fault: Any):
    run = client.start_run()
    run.lease(request())
    fault(clean="fail")
    (evidence,) = run.release()
    assert (evidence.outcome, evidence.provision_state) == (Outcome.NOT_CLEAN, "clean failed")
    fault()
    limit = 3 * client.settings.lease.renew_for_s + 2 * client.settings.lease.reaper_period_s + 40
    eventually(lambda: run.prove().complete, within_s=limit, what="the reaper cleans it again")
    piece = run.history().generations[1].pieces[evidence.resource]
    assert piece.evidence is not None
    assert piece.evidence.released_by == "reaper"
    assert piece.evidence.recleans >= 1
    assert piece.evidence.steps == ("deploy.erase_scratch",)


@pytest.mark.slow
def test_a_machine_that_does_not_come_up_three_times_leaves_the_pool_and_a_person_brings_it_back(
    client: Client, fault: Any, stack: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLOPS_CONFIG", str(stack.state_dir / "client.toml"))
    api = client.services.baremetal
    machine = next(m for m in api.list_machines() if m.resource_class == CLASS)
    fault(deploy="fail")
    for _ in range(3):
        with client.start_run() as run, pytest.raises(NodeFailed):
            run.lease(replace(request(), machines=(machine.name,)))
    shown = api.get_machine(machine.id)
    assert shown is not None
    assert shown.maintenance_reason.startswith(f"mlops: did not come up 3 times in a row: {machine.name}: 'deploy fai")
    fault()
    result = CliRunner().invoke(main, ["lease", "clean", machine.name])
    assert result.output == f"{machine.name}: clean, back in the pool (deploy.erase_scratch)\n"
    with client.start_run() as run:
        run.lease(replace(request(), machines=(machine.name,)))
    assert list(client.store.list("health/")) == []


@pytest.mark.slow  # the pauses between the tries are what takes time
def test_what_cannot_be_cleaned_leaves_the_pool_and_a_person_brings_it_back(
    client: Client, fault: Any, stack: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLOPS_CONFIG", str(stack.state_dir / "client.toml"))
    run = client.start_run()
    lease = run.lease(request())
    name = lease.nodes[0].name
    fault(clean="fail")
    run.release()
    api = client.services.baremetal

    def is_out() -> bool:
        machine = api.get_machine(lease.nodes[0].id)
        return machine is not None and machine.maintenance_reason.startswith("mlops: 'clean failed' after ml-")

    eventually(is_out, within_s=10 * client.settings.lease.renew_for_s + 60, what="it is out of the pool")
    eventually(lambda: not any(run.key in str(c.details) for c in client.services.fence().claims()), within_s=10)
    shown = {row["machine"]: row["state"] for row in json.loads(CliRunner().invoke(main, LIST).output)}
    assert shown[name].startswith("clean failed, in maintenance: mlops: 'clean failed' after ml-")
    fault()
    result = CliRunner().invoke(main, ["lease", "clean", name])
    assert result.output == f"{name}: clean, back in the pool (deploy.erase_scratch)\n"
    machine = api.get_machine(lease.nodes[0].id)
    assert machine is not None
    assert (machine.provision_state, machine.maintenance, machine.maintenance_reason) == ("available", False, "")
    again = CliRunner().invoke(main, ["lease", "clean", name])
    assert again.exit_code == 1
    assert "needs no cleaning" in again.output


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
