"""A lost machine is replaced while the rest of its lease stays: on the real Ironic, through the BMCs of the stack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from openstack.exceptions import ConflictException

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.loss import Answer, Channel, Statement
from mlops_sdk.capacity.node import Node
from mlops_sdk.client import Client
from mlops_sdk.errors import NotFenced
from mlops_sdk.remote.witness import SshWitness
from mlops_sdk.repairing import look, repair
from mlops_sdk.run import Run
from support import eventually
from support_machines import Cable

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240), pytest.mark.slow]

CLASS = "gpu.h200.8x"


@pytest.fixture
def client(stack: Any) -> Client:
    lease = stack.settings.lease.model_copy(update={"loss_after_s": 2.0, "fence_timeout_s": 20.0})
    return Client(stack.settings.model_copy(update={"lease": lease}))


@pytest.fixture
def run(client: Client) -> Iterator[Run]:
    with client.start_run() as made:
        deadline = datetime.now(UTC) + timedelta(minutes=10)
        made.lease(LeaseRequest(nodes=2, spares=1, resource_class=CLASS, deadline=deadline, wait_s=60))
        witness = SshWitness.of(made)
        eventually(lambda: all(is_alive(said) for said in witness.look(all_of(made)).values()), within_s=30)
        yield made
    eventually(lambda: made.prove().complete, within_s=120, what="everything is given back")


class Bmc:
    """The BMC of a machine, as Ironic knows it."""

    def __init__(self, operator: Any) -> None:
        self._api = operator.baremetal
        self._real: dict[str, str] = {}

    def take_away(self, node_id: str) -> None:
        """Ironic looks for it where there is none."""
        self._real[node_id] = self._api.get_node(node_id).driver_info["redfish_address"]
        eventually(partial(self._point, node_id, "http://127.0.0.1:9"), within_s=30)

    def bring_back(self) -> None:
        """And where it is."""
        for node_id, address in self._real.items():
            eventually(partial(self._point, node_id, address), within_s=60, what="the BMC is back")
        self._real.clear()

    def _point(self, node_id: str, address: str) -> bool:
        patch = [{"op": "replace", "path": "/driver_info/redfish_address", "value": address}]
        try:
            self._api.patch_node(node_id, patch)
        except ConflictException:  # the conductor holds it
            return False
        return True


@pytest.fixture
def bmc(operator: Any) -> Iterator[Bmc]:
    made = Bmc(operator)
    yield made
    made.bring_back()


def is_alive(said: tuple[Statement, ...]) -> bool:
    return {Answer.ALIVE} == {statement.answer for statement in said}


def all_of(run: Run) -> tuple[Node, ...]:
    return (*run.held.nodes, *run.held.spares) if run.held else ()


def test_a_machine_that_is_cut_off_from_the_network_is_switched_off_and_replaced(run: Run, stack: Any, operator: Any):
    lost, other, spare = all_of(run)
    assert not any(verdict.lost for verdict in look(run).values())
    Cable(stack.pid, lost.address).pull()
    verdict = look(run)[lost.name]
    said = {statement.channel: statement.answer for statement in verdict.statements}
    assert said[Channel.SSH] is said[Channel.PEERS] is Answer.SILENT, verdict.words
    assert said[Channel.POWER] is Answer.BLIND  # it is on, and may be at work
    assert verdict.lost

    now = repair(run)

    assert now.nodes == (spare, other)
    assert (now.generation, now.spares) == (1, ())
    assert operator.baremetal.get_node(lost.id).power_state == "power off"
    entries = [e for e in run.journal.entries() if e.action in {"node.replace", "machine.fence"}]
    assert [(e.action, e.kind.value) for e in entries] == [
        ("node.replace", "intent"),
        ("machine.fence", "intent"),
        ("machine.fence", "outcome"),
        ("node.replace", "outcome"),
    ]
    assert entries[0].data["evidence"]["last"]["lost"] is True
    assert all(is_alive(said) for said in SshWitness.of(run).look(all_of(run)).values())
    assert repair(run) == now  # nothing else is lost


def test_without_its_bmc_a_machine_is_not_replaced_unless_a_person_says_that_it_is_off(
    run: Run, stack: Any, bmc: Bmc, operator: Any
):
    lost, other, spare = all_of(run)
    Cable(stack.pid, lost.address).pull()
    bmc.take_away(lost.id)
    with pytest.raises(NotFenced) as caught:
        repair(run)
    assert caught.value.seen
    assert run.held is not None
    assert run.held.nodes == (lost, other)  # nothing has taken its place
    assert operator.baremetal.get_node(lost.id).provision_state == "active"

    now = run.replace(lost.name, unfenced="the tests pulled its plug")
    assert now.nodes == (spare, other)
    bmc.bring_back()  # or it could not be torn down, and would leave the pool


@pytest.mark.parametrize(
    ("step", "phase"),
    [("machine.fence", "before"), ("machine.fence", "after"), ("machine.tear_down", "after")],
)
def test_a_repair_whose_process_is_killed_is_finished_by_the_next_one(
    client: Client, stack: Any, step: str, phase: str
):
    name = f"killed-{uuid.uuid4()}"
    controller = Path(__file__).with_name("controller.py")
    killed = subprocess.run(
        [sys.executable, str(controller), name, step, phase, "2", "1"],
        env={**os.environ, "MLOPS_CONFIG": str(stack.layout.client_toml)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with client.start_run(name=name) as run:
        before = run.history().generations[1]
        assert [(item.lost, item.by, item.done) for item in before.replacements] == [(0, 2, False)]
        lease = run.lease()
        assert [node.index for node in lease.nodes] == [2, 1]
        assert run.history().generations[1].replacements[0].done
        lost = client.services.baremetal.get_machine(before.pieces[lease_name(run, 0)].node_id)
        assert lost is not None
        assert lost.power_state == "power off"
        eventually(lambda: all(map(is_alive, SshWitness.of(run).look(all_of(run)).values())), within_s=30)
    eventually(lambda: run.prove().complete, within_s=120, what="everything is given back")


def lease_name(run: Run, number: int) -> str:
    return f"ml-{run.key}-g1-{number}"
