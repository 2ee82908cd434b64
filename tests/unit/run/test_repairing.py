"""What a run does about machines that nobody sees any more: evidence first, then replacement. On a cloud in memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.loss import Answer, Channel, Statement, blind_if_all_silent, of_peers
from mlops_sdk.capacity.node import Node
from mlops_sdk.errors import LeaseLost, NotFenced
from mlops_sdk.remote.witness import Witness
from mlops_sdk.repairing import look, repair
from mlops_sdk.run import Run
from mlops_sdk.testing.cloud import FakeCloud


class Eyes(Witness):
    """Sees every machine but those that are named; each look takes a second, and may be the last at which one is away.

    Attributes:
        away: Machines that nobody reaches, by name: for how many looks.
        alive: Renewed before each look, as the keeper's thread would in real time.
    """

    def __init__(self, cloud: FakeCloud) -> None:
        self.away: dict[str, int] = {}
        self.looks = 0
        self.alive: list[Run] = []
        self._cloud = cloud

    def look(self, nodes: Sequence[Node]) -> Mapping[str, tuple[Statement, ...]]:
        """See `Witness.look`."""
        self.looks += 1
        for run in self.alive:
            run._heartbeat.beat()
        self._cloud.clock.sleep(1)
        missed = {node.name for node in nodes if self.away.get(node.name, 0) >= self.looks}
        answers = {node.name: Answer.SILENT if node.name in missed else Answer.ALIVE for node in nodes}
        ssh = {n: Statement(channel=Channel.SSH, answer=answer, words="login") for n, answer in answers.items()}
        seeing = [node.name for node in nodes if node.name not in missed]
        peers = {n: of_peers({p: answers[n] is Answer.ALIVE for p in seeing if p != n}) for n in answers}
        return {name: (blind_if_all_silent(ssh)[name], peers[name]) for name in answers}


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


@pytest.fixture
def eyes(cloud: FakeCloud) -> Eyes:
    return Eyes(cloud)


@pytest.fixture
def run(cloud: FakeCloud, eyes: Eyes) -> Iterator[Run]:
    run = cloud.client().start_run(name="nightly")
    deadline = cloud.clock.now() + timedelta(hours=1)
    run.lease(LeaseRequest(nodes=2, spares=1, resource_class="gpu.h200.8x", deadline=deadline))
    eyes.alive.append(run)
    yield run
    run.close()


FOR_EVER = 10**6


def test_nothing_is_replaced_while_all_answer(run, eyes):
    before = run.held
    assert repair(run, eyes) == before
    assert eyes.looks == 1


def test_a_machine_that_is_away_for_a_moment_is_kept(run, eyes):
    before = run.held
    eyes.away[before.nodes[0].name] = 2
    assert repair(run, eyes) == before
    assert eyes.looks == 3


def test_a_lost_machine_is_replaced_by_the_spare_and_the_evidence_is_written_down(run, eyes):
    lost, other = run.held.nodes
    eyes.away[lost.name] = FOR_EVER
    spare = run.held.spares[0]
    assert repair(run, eyes).nodes == (spare, other)
    (intent,) = [e for e in run.journal.entries() if e.action == "node.replace" and e.kind.value == "intent"]
    evidence = intent.data["evidence"]
    assert evidence["looks"] >= 2
    assert {s["channel"]: s["answer"] for s in evidence["last"]["statements"]} == {
        "ssh": "silent",
        "peers": "silent",
        "power": "blind",
    }


def test_a_spare_that_is_lost_as_well_takes_no_place(run, eyes):
    lost, other = run.held.nodes
    spare = run.held.spares[0]
    eyes.away |= {lost.name: FOR_EVER, spare.name: FOR_EVER}
    lease = repair(run, eyes)
    assert lease.nodes[1] == other
    assert lease.nodes[0].name not in {lost.name, spare.name}
    assert lease.spares == ()
    assert [(r.lost, r.by, r.done) for r in run.history().generations[1].replacements] == [(0, 3, True), (2, -1, True)]


def test_who_reaches_nobody_replaces_nobody(run, eyes):
    before = run.held
    eyes.away = dict.fromkeys((node.name for node in (*before.nodes, *before.spares)), FOR_EVER)
    assert repair(run, eyes) == before
    assert not any(verdict.lost for verdict in look(run, eyes).values())


def test_a_single_machine_is_lost_when_its_bmc_says_that_it_is_off(cloud, eyes):
    run = cloud.client().start_run(name="single")
    deadline = cloud.clock.now() + timedelta(hours=1)
    (only,) = run.lease(LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=deadline)).nodes
    eyes.alive.append(run)
    eyes.away[only.name] = FOR_EVER
    assert repair(run, eyes).nodes == (only,)  # one channel, and a machine that is on
    machine = cloud.machines[only.id]
    machine.shown = replace(machine.shown, power_state="power off")
    assert repair(run, eyes).nodes != (only,)
    run.close()


def test_a_lost_machine_without_its_bmc_stops_the_repair_with_what_to_do(cloud, run, eyes):
    before = run.held
    eyes.away[before.nodes[0].name] = FOR_EVER
    cloud.machines[before.nodes[0].id].fails.add("bmc")
    with pytest.raises(NotFenced, match="unfenced"):
        repair(run, eyes)
    assert run.held == before


def test_a_run_without_machines_has_nothing_to_repair(cloud, eyes):
    with pytest.raises(LeaseLost):
        repair(cloud.client().start_run(name="nothing"), eyes)
