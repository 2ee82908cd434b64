"""What a run promises its user, on a cloud in memory."""

import json
from datetime import timedelta

import pytest

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.lifecycle import LeaseState
from mlops_sdk.errors import DamagedObject, LeaseLost, MlopsError, NoCapacity, NodeFailed, ServiceUnavailable
from mlops_sdk.journal import EntryKind
from mlops_sdk.proof import ProofKind
from mlops_sdk.steps import drive
from mlops_sdk.testing.cloud import FakeBaremetal, FakeCloud


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


def request(cloud: FakeCloud, nodes: int = 2, **changes) -> LeaseRequest:
    deadline = cloud.clock.now() + timedelta(hours=1)
    values = {"nodes": nodes, "resource_class": "gpu.h200.8x", "deadline": deadline, **changes}
    return LeaseRequest(**values)


def nothing_is_left(cloud: FakeCloud) -> bool:
    fences = [key for key in cloud.s3.objects if key.startswith("fence/")]
    return not cloud.held and not cloud.credentials and not fences


def test_the_with_block_gives_everything_back(cloud):
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(request(cloud))
        assert [node.index for node in lease.nodes] == [0, 1]
        assert len(cloud.held) == 2
    assert nothing_is_left(cloud)
    assert run.prove().complete


def test_an_error_in_the_block_gives_everything_back_and_is_what_the_user_sees(cloud):
    def train() -> None:
        with cloud.client().start_run() as run:
            run.lease(request(cloud))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert nothing_is_left(cloud)


def test_asking_again_adopts_in_this_and_in_another_process(cloud):
    with cloud.client().start_run(name="nightly") as run:
        nodes = run.lease(request(cloud)).nodes
        assert run.lease(request(cloud)).nodes == nodes
        other = cloud.client().attach(run.id)
        assert other.lease().nodes == nodes
        assert other.client_key.public == run.client_key.public
        other.close()
        with pytest.raises(LeaseLost, match="asked for as"):
            run.lease(request(cloud, nodes=3))


def test_too_few_machines_is_no_capacity_and_nothing_is_held(cloud):
    with cloud.client().start_run() as run:
        with pytest.raises(NoCapacity) as caught:
            run.lease(request(cloud, nodes=5, wait_s=10))
        assert "5 x gpu.h200.8x" in caught.value.what
        assert "number 1 in the queue: 4 of 5 are free, and only 4 such machines" in caught.value.seen
        assert nothing_is_left(cloud)
    assert run.prove().complete


def test_waiting_gets_what_becomes_free(cloud):
    with cloud.client().start_run(name="first") as first:
        first.lease(request(cloud, nodes=3))
        second = cloud.client().start_run(name="second")

        with second:
            waiting = second.leasing(request(cloud, nodes=2, wait_s=60))
            while cloud.clock.monotonic() < 20:
                cloud.clock.sleep(next(waiting))
            first.release()
            assert len(drive(waiting, cloud.clock).nodes) == 2
    assert nothing_is_left(cloud)


@pytest.mark.parametrize("how", ["deploy", "hang"])
def test_a_machine_that_does_not_come_up_gives_the_whole_lease_back(cloud, how):
    bad = list(cloud.machines.values())[1]
    bad.fails.add(how)
    with cloud.client().start_run() as run:
        with pytest.raises(NodeFailed) as caught:
            run.lease(request(cloud))
        assert bad.shown.name in caught.value.seen
        assert nothing_is_left(cloud)
        bad.fails.clear()
        assert run.next_generation() == 2
        assert run.lease(request(cloud)).generation == 2
    assert run.prove().complete


def test_a_machine_that_cannot_be_cleaned_is_shown_and_the_proof_is_not_complete(cloud):
    bad = next(iter(cloud.machines.values()))
    bad.fails.add("clean")
    run = cloud.client().start_run()
    run.lease(request(cloud, nodes=1))
    (evidence,) = run.release()
    assert evidence.outcome is Outcome.NOT_CLEAN
    assert evidence.last_error == "disk stuck"
    proof = run.prove()
    assert not proof.complete
    assert [item.resource for item in proof.missing if item.kind is ProofKind.MACHINE] == [bad.shown.name]
    assert len(proof.missing) == 2  # and the claim, by which the reaper finds the machine


def test_a_failed_tear_down_loses_its_allocation_and_is_finished_by_the_reaper(cloud):
    bad = next(iter(cloud.machines.values()))
    bad.fails.add("tear_down")
    run = cloud.client().start_run()
    run.lease(request(cloud, nodes=1))
    (evidence,) = run.release()
    assert evidence.outcome is Outcome.NOT_CLEAN
    bad.fails.clear()
    cloud.clock.sleep(30)
    report = cloud.reaper().reap_once()
    assert [item.outcome for item in report.evidence] == [Outcome.CLEANED]
    assert bad.shown.provision_state == "available"
    assert run.prove().complete


def test_keeping_leaves_the_machines_to_the_next_process_or_the_reaper(cloud):
    with cloud.client().start_run(name="nightly") as run:
        run.lease(request(cloud))
        run.keep()
    assert len(cloud.held) == 2
    assert cloud.reaper().reap_once(dry_run=True).due == ()
    cloud.clock.sleep(22)
    would = cloud.reaper().reap_once(dry_run=True)
    assert sorted(due.kind for due in would.due) == ["allocation", "allocation", "credential"]
    assert len(cloud.held) == 2
    cloud.reaper().reap_once()
    assert nothing_is_left(cloud)
    attached = cloud.client().attach(run.key)
    with pytest.raises(LeaseLost):
        attached.raise_if_lost()
    assert attached.prove().complete
    assert attached.generation == 2
    assert {e.writer.partition("-")[0] for e in attached.journal.entries()} == {"run", "reaper"}


def test_the_deadline_ends_a_lease_that_is_still_renewed(cloud):
    run = cloud.client().start_run()
    run.lease(request(cloud, deadline=cloud.clock.now() + timedelta(seconds=60)))
    for _ in range(8):
        cloud.clock.sleep(10)
        run._heartbeat.beat()
    with pytest.raises(LeaseLost, match="deadline"):
        run.raise_if_lost()
    cloud.reaper().reap_once()
    assert nothing_is_left(cloud)
    run.release()
    assert run.prove().complete


def test_a_lease_that_the_reaper_took_is_noticed(cloud):
    run = cloud.client().start_run()
    run.lease(request(cloud))
    cloud.clock.sleep(30)
    with pytest.raises(LeaseLost, match="not renewed"):
        run.raise_if_lost()
    cloud.reaper().reap_once()
    with pytest.raises(MlopsError):
        run._heartbeat.beat()
    run.release()
    assert run.prove().complete


def test_with_s3_down_the_run_still_gives_its_machines_back(cloud):
    run = cloud.client().start_run()
    run.lease(request(cloud))
    for call in ("put_object", "get_object", "list_objects_v2", "delete_object"):
        for k in range(1, 300):
            cloud.faults.fail_at(call, k + cloud.faults.calls.count(call), error=ServiceUnavailable("S3 is down"))
    run.release()
    assert not cloud.held
    assert cloud.credentials == {}
    cloud.faults.clear()
    assert [e.action for e in run.journal.entries() if e.kind is EntryKind.EVIDENCE] == []
    run.journal.append(EntryKind.EVENT, "back")  # what could not be written then is written now
    assert len([e for e in run.journal.entries() if e.kind is EntryKind.EVIDENCE]) == 2
    assert run.prove().complete


def test_a_generation_that_was_taken_back_is_not_made_again_under_the_same_name(cloud):
    with cloud.client().start_run(name="nightly") as run:
        run.lease(request(cloud))
        run.keep()
    for machine in cloud.machines.values():  # an operator tears the machines down
        if machine.shown.allocation_id:
            FakeBaremetal(cloud).tear_down(machine.shown.id)
    cloud.clock.sleep(10)
    again = cloud.client().attach(run.id)
    with pytest.raises(LeaseLost, match="given back meanwhile"):
        again.lease()
    assert again.prove().complete
    assert again.next_generation() == 2
    again.lease(request(cloud))
    again.release()
    assert nothing_is_left(cloud)


def test_no_secret_reaches_journal_heartbeat_or_markers(cloud):
    run = cloud.client().start_run()
    run.lease(request(cloud))
    secret = run.credential.secret.get_secret_value()
    drives = json.dumps(list(cloud.config_drives.values()))
    outside = b"".join(cloud.s3.objects.values()).decode() + repr(cloud.allocations) + drives + repr(run.credential)
    assert secret not in outside
    assert run.client_key.private not in outside
    assert "PRIVATE KEY" not in b"".join(cloud.s3.objects.values()).decode()
    assert run.client_key.public in drives
    run.release()
    assert cloud.config_drives == {}


def test_runs_are_listed_with_state_and_cost(cloud):
    client = cloud.client()
    with client.start_run(name="one", owner="ada") as run:
        run.lease(request(cloud))
        (row,) = client.runs()
        assert (row.name, row.owner, row.state, row.machines) == ("one", "ada", "active", ("gpu-01", "gpu-02"))
        cloud.clock.sleep(10)
    (row,) = client.runs()
    assert row.state == "released"
    assert row.node_seconds > 20
    assert row.cost == pytest.approx(row.node_seconds * 0.01)


@pytest.mark.parametrize("body", [b"", b"there", b"{}", b"[1]"])
def test_a_damaged_journal_is_named_and_hides_no_other_run(cloud, caplog, body):
    client = cloud.client()
    with client.start_run(name="one", owner="ada"):
        pass
    cloud.s3.objects["runs/damaged12345/journal/00000001.json"] = body
    assert [row.name for row in client.runs()] == ["one"]
    assert "runs/damaged12345/journal/00000001.json" in caplog.text
    with pytest.raises(DamagedObject, match=r"runs/damaged12345/journal/00000001\.json.*next:"):
        client.attach("damaged12345")


def test_an_unknown_run_is_an_error_with_a_next_step(cloud):
    with pytest.raises(MlopsError) as caught:
        cloud.client().attach("aaaaaaaaaaaa")
    assert "runs list" in caught.value.next_step


def test_a_lease_is_released_when_its_cleaning_has_ended_and_not_before(cloud):
    run = cloud.client().start_run(name="slow to clean")
    (node,) = run.lease(request(cloud, nodes=1)).nodes
    machine = cloud.machines[node.id]
    begin = cloud.clean
    cloud.clean = lambda found: cloud.change(found, to="cleaning", after_s=10**6, then="clean")
    (evidence,) = run.release()
    assert evidence.outcome is Outcome.PENDING
    assert run.history().latest.state is LeaseState.RELEASING
    begin(machine)
    cloud.clock.sleep(5)
    cloud.reaper().reap_once()
    assert run.history().latest.state is LeaseState.RELEASED
    assert run.prove().complete
