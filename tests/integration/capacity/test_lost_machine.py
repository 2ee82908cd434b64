"""A lost machine is replaced while the rest of its lease stays: on the real Ironic, through the BMCs of the stack."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from openstack.exceptions import ConflictException

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.loss import Answer, Channel, Statement
from mlops_sdk.capacity.node import Node
from mlops_sdk.client import Client
from mlops_sdk.errors import NotFenced
from mlops_sdk.local.isolation import members
from mlops_sdk.remote.witness import SshWitness
from mlops_sdk.repairing import look, repair
from mlops_sdk.run import Run
from support import eventually

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


@pytest.fixture
def cut_off(stack: Any) -> Callable[[str], None]:
    """Pulls the network cable of the machine at an address; it goes on running."""

    def pull(address: str) -> None:
        for pid in members(stack.pid):
            enter = ["nsenter", "-t", str(pid), "-n", "ip"]
            shown = subprocess.run([*enter, "-o", "-4", "addr"], capture_output=True, text=True, check=False).stdout
            if f" {address}/" in shown:
                subprocess.run([*enter, "link", "set", "eth0", "down"], check=True)
                return
        pytest.fail(f"no process is on a machine at {address}")

    return pull


@pytest.fixture
def bmc_away(operator: Any) -> Iterator[Callable[[str], None]]:
    """Lets Ironic look for a machine's BMC where there is none; healed at the end."""
    real: dict[str, str] = {}

    def point(node_id: str, address: str) -> bool:
        try:
            patch = [{"op": "replace", "path": "/driver_info/redfish_address", "value": address}]
            operator.baremetal.patch_node(node_id, patch)
        except ConflictException:
            return False
        return True

    def take_away(node_id: str) -> None:
        real[node_id] = operator.baremetal.get_node(node_id).driver_info["redfish_address"]
        eventually(partial(point, node_id, "http://127.0.0.1:9"), within_s=30)

    def bring_back() -> None:
        for node_id, address in real.items():
            eventually(partial(point, node_id, address), within_s=60, what="the BMC is back")
        real.clear()

    take_away.bring_back = bring_back
    yield take_away
    bring_back()


def is_alive(said: tuple[Statement, ...]) -> bool:
    return {Answer.ALIVE} == {statement.answer for statement in said}


def all_of(run: Run) -> tuple[Node, ...]:
    return (*run.held.nodes, *run.held.spares) if run.held else ()


def test_a_machine_that_is_cut_off_from_the_network_is_switched_off_and_replaced(run: Run, cut_off: Any, operator: Any):
    lost, other, spare = all_of(run)
    assert not any(verdict.lost for verdict in look(run).values())
    cut_off(lost.address)
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
    run: Run, cut_off: Any, bmc_away: Any, operator: Any
):
    lost, other, spare = all_of(run)
    cut_off(lost.address)
    bmc_away(lost.id)
    with pytest.raises(NotFenced) as caught:
        repair(run)
    assert caught.value.seen
    assert run.held is not None
    assert run.held.nodes == (lost, other)  # nothing has taken its place
    assert operator.baremetal.get_node(lost.id).provision_state == "active"

    now = run.replace(lost.name, unfenced="the tests pulled its plug")
    assert now.nodes == (spare, other)
    bmc_away.bring_back()  # or it could not be torn down, and would leave the pool
