"""One lost machine is replaced while the rest of the lease stays: fenced first, whatever crashes."""

from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.members import Replacement
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.providers.ironic import IronicLeases
from mlops_sdk.errors import LeaseLost, NoCapacity, NodeFailed, NotFenced
from mlops_sdk.journal import EntryKind
from mlops_sdk.run import Lease, Run
from mlops_sdk.steps import drive
from mlops_sdk.testing.cloud import FakeCloud, FakeMachine
from mlops_sdk.testing.faults import Crash


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


def request(cloud: FakeCloud, nodes: int = 2, **changes) -> LeaseRequest:
    deadline = cloud.clock.now() + timedelta(hours=1)
    return LeaseRequest(nodes=nodes, resource_class="gpu.h200.8x", deadline=deadline, **changes)


def machine_of(cloud: FakeCloud, lease: Lease, position: int = 0) -> FakeMachine:
    return cloud.machines[lease.nodes[position].id]


def adopted(cloud: FakeCloud, run: Run) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """What another process finds that the run holds: machines that work, and spares."""
    other = cloud.client().attach(run.id)
    lease = other.lease()
    other.close()
    return lease.nodes, lease.spares


def nothing_is_left(cloud: FakeCloud) -> bool:
    fences = [key for key in cloud.s3.objects if key.startswith("fence/")]
    return not cloud.held and not cloud.credentials and not fences


def settled(cloud: FakeCloud, alive: Run | None = None) -> None:
    """The reaper has seen to what nobody renews any more."""
    for _ in range(3):
        for _ in range(5):
            cloud.clock.sleep(cloud.settings.lease.renew_for_s / 4)
            if alive is not None:
                alive._heartbeat.beat()
        cloud.reaper().reap_once()


def test_spares_are_leased_along_and_given_back(cloud):
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(request(cloud, spares=1))
        assert len(lease.nodes) == 2
        assert len(lease.spares) == 1
        assert len(cloud.held) == 3
        assert adopted(cloud, run) == (lease.nodes, lease.spares)
    assert nothing_is_left(cloud)
    assert run.prove().complete


def test_a_lease_fails_only_below_what_it_asked_for(cloud):
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(request(cloud, nodes=3, spares=2))
        assert (len(lease.nodes), len(lease.spares)) == (3, 1)
    with cloud.client().start_run(name="other") as other, pytest.raises(NoCapacity):
        other.lease(request(cloud, nodes=5, spares=1))
    assert nothing_is_left(cloud)


def test_a_spare_that_does_not_come_up_is_given_back_and_the_lease_goes_on(cloud):
    for machine in list(cloud.machines.values())[2:]:
        machine.fails.add("deploy")
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(request(cloud, nodes=2, spares=1))
        assert lease.spares == ()
    assert nothing_is_left(cloud)
    assert run.prove().complete


def test_a_spare_takes_the_place_of_a_lost_machine_that_is_off_by_then(cloud):
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(request(cloud, spares=1))
        lost = machine_of(cloud, lease)
        power_when_it_left: list[str] = []
        run.on_event(
            lambda step, phase, _detail: (
                power_when_it_left.append(lost.shown.power_state)
                if (step, phase) == ("machine.fence", "after")
                else None
            )
        )
        now = run.replace(lease.nodes[0].name)
        assert power_when_it_left == ["power off"]
        assert now.nodes == (lease.spares[0], lease.nodes[1])
        assert now.spares == ()
        assert now.generation == lease.generation
        assert run.held == now
        run.raise_if_lost()
        left = cloud.clock.now()
        settled(cloud, run)
        assert lost.shown.provision_state == "available"
        run.raise_if_lost()
        assert adopted(cloud, run)[0] == now.nodes
    assert nothing_is_left(cloud)
    assert run.prove().complete
    (paid,) = [i for i in run.history().intervals if i.node_id == lost.shown.id]
    assert paid.end < left + timedelta(seconds=10)  # not until the end of the run, when somebody looked


def test_without_a_spare_a_new_machine_is_leased_and_never_the_lost_one():
    cloud = FakeCloud(machines=5)
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(request(cloud, nodes=3))
        lost = lease.nodes[1]
        now = run.replace(lost.id)
        assert lost.id not in {node.id for node in now.nodes}
        assert [node.index for node in now.nodes] == [0, 3, 2]
        again = run.replace(now.nodes[1].name)
        assert [node.index for node in again.nodes] == [0, 4, 2]
    settled(cloud)
    assert nothing_is_left(cloud)
    assert run.prove().complete


def test_the_journal_says_which_machine_was_cut_off_and_which_one_took_its_place(cloud):
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(request(cloud))
        lost = lease.nodes[0]
        name = cloud.held[lost.name]
        (by,) = set(run.replace(lost.name).nodes) - set(lease.nodes)
        said = {(entry.action, entry.kind): entry for entry in run.journal.entries()}
        cut_off, replaced = said["machine.fence", EntryKind.INTENT], said["node.replace", EntryKind.OUTCOME]
        assert (cut_off.resource, cut_off.data["node_id"]) == (name, lost.id)
        assert (replaced.resource, replaced.data["lost"], replaced.data["by"]) == (name, 0, 2)
        assert replaced.data["nodes"] == [{"id": by.id, "name": by.name}]


def test_a_machine_whose_bmc_is_away_is_not_replaced(cloud):
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(request(cloud, spares=1))
        lost = machine_of(cloud, lease)
        lost.fails.add("bmc")
        with pytest.raises(NotFenced) as caught:
            run.replace(lease.nodes[0].name)
        assert "no route to the BMC" in caught.value.seen
        assert lost.shown.allocation_id
        assert run.held == lease
        assert "deploy" not in cloud.faults.calls[-10:]

        now = run.replace(lease.nodes[0].name, unfenced="ada pulled the plug in rack 3")
        assert now.nodes == (lease.spares[0], lease.nodes[1])
        (written,) = [e for e in run.journal.entries() if e.data.get("unfenced")]
        assert written.data["unfenced"] == "ada pulled the plug in rack 3"
    settled(cloud)
    assert nothing_is_left(cloud)


def test_no_machine_for_the_place_says_so_and_the_next_generation_can_begin(cloud):
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(request(cloud, nodes=4))
        with pytest.raises(NoCapacity):
            run.replace(lease.nodes[0].name)
        run.next_generation()
        assert run.lease(request(cloud, nodes=4)).generation == 2
    settled(cloud)
    assert nothing_is_left(cloud)


def test_what_another_process_replaced_is_taken_as_it_is(cloud):
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(request(cloud, spares=1))
        by_hand = cloud.client().attach(run.id)
        drive(by_hand.adopting(), cloud.clock)
        now = by_hand.replace(lease.nodes[0].name)
        by_hand.close()
        assert run.held == lease  # it does not know yet
        assert run.replace(lease.nodes[0].name).nodes == now.nodes
        assert cloud.faults.calls.count("power_off") == 1
    settled(cloud)
    assert run.prove().complete


@pytest.mark.parametrize("ahead", range(6))
def test_two_processes_that_replace_the_same_machine_end_with_one_in_its_place(ahead):
    cloud = FakeCloud(machines=5)
    run = cloud.client().start_run(name="nightly")
    lease = run.lease(request(cloud, spares=1))
    other = cloud.client().attach(run.id)
    drive(other.adopting(), cloud.clock)
    both = [process.replacing(lease.nodes[0].name) for process in (run, other)]
    ended: list[Lease] = []
    turns = [0] * ahead + [1, 0] * 500
    for who in turns:
        if both[who] is None:
            continue
        try:
            cloud.clock.sleep(next(both[who]))
        except StopIteration as stop:
            ended.append(stop.value)
            both[who] = None
    assert len(ended) == 2
    assert ended[-1].nodes == adopted(cloud, run)[0]
    assert lease.nodes[0] not in ended[-1].nodes
    assert len({node.id for node in ended[-1].nodes}) == 2
    other.close()
    run.release()
    settled(cloud)
    assert nothing_is_left(cloud)
    assert run.prove().complete


def test_what_is_no_part_of_the_lease_is_not_replaced(cloud):
    with cloud.client().start_run(name="nightly") as run:
        with pytest.raises(LeaseLost):
            run.replace("gpu-01")
        run.lease(request(cloud))
        with pytest.raises(LeaseLost, match="no part"):
            run.replace("gpu-04")


def test_a_machine_that_failed_to_deploy_is_not_taken_again_while_there_are_others(cloud):
    bad = next(iter(cloud.machines.values()))
    bad.fails.add("deploy")
    with cloud.client().start_run(name="nightly") as run:
        with suppress(Exception):
            run.lease(request(cloud, nodes=2))
        for _ in range(3):
            run.next_generation()
            lease = run.lease(request(cloud, nodes=2))
            assert bad.shown.id not in {node.id for node in lease.nodes}


@pytest.mark.parametrize(("how", "state"), [("deploy", "deploy failed"), ("hang", "wait call-back")])
def test_a_machine_that_never_comes_up_leaves_the_pool_and_a_person_brings_it_back(cloud, how, state):
    bad = next(iter(cloud.machines.values()))
    bad.fails.add(how)
    for number in range(1, 4):
        assert not bad.shown.maintenance
        with cloud.client().start_run(name=f"run {number}") as run, pytest.raises(NodeFailed):
            run.lease(request(cloud, nodes=1, machines=(bad.shown.name,)))
    assert bad.shown.maintenance_reason.startswith(f"mlops: did not come up 3 times in a row: gpu-01: {state!r}")
    assert bad.shown.provision_state == "available"
    assert nothing_is_left(cloud)
    bad.fails.clear()
    provider = cloud.services().provider("ironic", by="person")
    assert isinstance(provider, IronicLeases)
    assert "back in the pool" in provider.clean(bad.shown.name)
    assert not bad.shown.maintenance
    with cloud.client().start_run(name="again") as run:
        run.lease(request(cloud, nodes=1, machines=(bad.shown.name,)))
    assert not [key for key in cloud.s3.objects if key.startswith("health/")]  # it came up: nothing is counted


def test_a_machine_that_comes_up_in_between_is_counted_anew(cloud):
    bad = next(iter(cloud.machines.values()))
    for works in (False, False, True, False, False):
        bad.fails = set() if works else {"deploy"}
        with suppress(NodeFailed), cloud.client().start_run(name=f"{cloud.clock.now()}") as run:
            run.lease(request(cloud, nodes=1, machines=(bad.shown.name,)))
    assert not bad.shown.maintenance


def live(cloud: FakeCloud, run: Run, marks: list[int] | None = None) -> None:
    marks = [] if marks is None else marks
    lease = run.lease(request(cloud, spares=1))
    marks.append(len(cloud.faults.calls))
    run.replace(lease.nodes[0].name)
    marks.append(len(cloud.faults.calls))
    run.release()


def calls_of_a_replacement() -> range:
    cloud, marks = FakeCloud(), list[int]()
    live(cloud, cloud.client().start_run(name="nightly"), marks)
    return range(marks[0], marks[1] + 1)


CALLS = calls_of_a_replacement()


def died_after(k: int) -> tuple[FakeCloud, Run]:
    """A run that was killed after this call of a lease, a replacement and a release."""
    cloud = FakeCloud()
    cloud.faults.fail_at("*", k, error=Crash(), when="after")
    run = cloud.client().start_run(name="nightly")
    with suppress(Crash):
        live(cloud, run)
    run.close()
    cloud.faults.clear()
    return cloud, run


def sampled(calls: range, every: int) -> list[Any]:
    """All of them; but some are enough for `make test`."""
    return [pytest.param(k, marks=() if (k - calls[0]) % every == 0 else pytest.mark.slow) for k in calls]


@pytest.mark.parametrize("k", sampled(CALLS, 8))
def test_after_a_crash_at_any_call_the_reaper_returns_everything(k):
    cloud, _ = died_after(k)
    settled(cloud)
    assert nothing_is_left(cloud)
    proof = cloud.client().start_run(name="nightly").prove()
    assert proof.complete, proof.missing


@pytest.mark.parametrize("k", sampled(CALLS, 4))
def test_another_process_finishes_the_repair_and_what_was_lost_never_works_again(k):
    cloud, _ = died_after(k)
    again = cloud.client().start_run(name="nightly")
    begun = list(again.history().generations[1].replacements)
    lease = again.lease(request(cloud, spares=1))
    assert len(lease.nodes) == 2
    if begun and again.generation == 1:  # a call that fails by itself has no "after": then all went well
        assert again.history().generations[1].replacements == [Replacement(lost=0, by=2, done=True)]
        assert {node.index for node in lease.nodes} == {1, 2}
    again.release()
    settled(cloud)
    proof = again.prove()
    assert proof.complete, proof.missing
    assert nothing_is_left(cloud)
    evidence = [piece.evidence for piece in again.history().generations[1].pieces.values()]
    assert [item.outcome for item in evidence if item is not None] == [Outcome.CLEANED] * 3
