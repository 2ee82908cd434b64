"""Leases under Airflow's own scheduler, workers and triggerer: people and signals interfere, nothing is left behind."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from mlops_sdk.capacity.lease import LeaseRequest, Priority
from mlops_sdk.capacity.lifecycle import EndReason
from mlops_sdk.client import Client
from mlops_sdk.journal import EntryKind
from support import eventually
from support_turns import Turn, service

pytestmark = [
    pytest.mark.stack,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("nothing_is_held"),
]

ALL = 4  # machines of the stack
LONG = {"steps": 900, "checkpoint_every": 10}


def test_a_turn_leases_trains_and_gives_back(start: Callable[..., Turn]):
    turn = start()
    assert turn.end() == "success"
    leased, trained, back = (turn.xcom(task_id) for task_id in ("provision", "train", "release"))
    assert leased["generation"] == 1
    assert trained["run"] == leased["run"] == turn.run.key
    assert back["machines"] == {leased["nodes"][0]: "cleaned"}
    assert turn.run.prove().complete
    log = turn.log("train")
    assert "rank 0 runs on" in log
    assert turn.client.settings.broker_key.get_secret_value() not in log


@pytest.mark.parametrize("name", ["airflow-triggerer", "airflow-scheduler", "airflow-api"])
def test_a_component_that_is_killed_while_machines_train_costs_no_commit(
    start: Callable[..., Turn], stack: Any, name: str
):
    turn = start(**LONG)
    turn.wait_for("train", "deferred")
    step = turn.wait_for_commits()
    os.kill(service(stack, name).pid, signal.SIGKILL)
    assert turn.end() == "success"
    trained = turn.xcom("train")
    if name == "airflow-triggerer":
        assert trained["attempts"] == 2
        assert trained["resumed_from"] >= step
    else:
        assert trained["attempts"] == 1
    assert set(turn.run.history().generations) == {1}
    assert turn.run.prove().complete


@pytest.mark.parametrize("name", ["airflow-triggerer", "airflow-scheduler", "airflow-api"])
def test_a_component_that_is_killed_while_machines_are_on_their_way_leases_nothing_twice(
    start: Callable[..., Turn], fault: Callable[..., None], operator: Any, stack: Any, name: str
):
    fault(deploy="hang")
    turn = start()
    turn.wait_for("provision", "deferred")
    os.kill(service(stack, name).pid, signal.SIGKILL)
    wait_until_renewed(turn)
    assert turn.asked_for() == 1
    (node,) = [node.id for node in operator.baremetal.nodes() if node.provision_state == "wait call-back"]
    fault()
    operator.baremetal.set_node_provision_state(node, "deleted")  # taken back: the next try opens the next generation
    fault()  # Ironic changes no node that waits
    assert turn.end() == "success"
    assert set(turn.run.history().generations) == {1, 2}
    assert turn.asked_for() == 2
    assert turn.run.prove().complete


@pytest.mark.parametrize("name", ["airflow-triggerer", "airflow-scheduler"])
def test_a_component_that_is_killed_while_machines_go_back_leaves_none(
    start: Callable[..., Turn], stack: Any, name: str
):
    turn = start()
    turn.wait_for("release", "deferred", "running")
    os.kill(service(stack, name).pid, signal.SIGKILL)
    assert turn.end() == "success"
    assert turn.asked_for() == 1
    assert turn.run.prove().complete


def test_a_training_whose_machines_are_taken_with_notice_goes_on_with_its_next_lease_and_that_costs_no_try(
    start: Callable[..., Turn], client: Client
):
    turn = start(conf={"priority": "batch", "preemptible": True}, **LONG)
    turn.wait_for("train", "deferred")
    step = turn.wait_for_commits()
    with client.start_run(name=f"urgent-{uuid.uuid4()}") as urgent:
        deadline = client.services.now() + timedelta(minutes=10)
        request = LeaseRequest(
            nodes=ALL, resource_class="gpu.h200.8x", deadline=deadline, wait_s=120.0, priority=Priority.URGENT
        )
        assert len(urgent.lease(request).nodes) == ALL
        stopped_at = turn.wait_for_commits()
        assert (turn.state("train"), turn.tries("train")) == ("deferred", 1)
    assert turn.end() == "success"
    assert stopped_at > step
    assert turn.xcom("train")["resumed_from"] == stopped_at  # where it was told, not at its last regular checkpoint
    assert turn.tries("train") == 1
    first, second = (turn.run.history().generations[number] for number in (1, 2))
    assert (first.reason, second.reason) == (EndReason.PREEMPTED, EndReason.FINISHED)
    assert turn.asked_for() == 2
    assert turn.run.prove().complete


def test_a_training_that_is_cleared_goes_on_with_the_same_machines(start: Callable[..., Turn]):
    turn = start(**LONG)
    turn.wait_for("train", "deferred")
    step = turn.wait_for_commits()
    turn.airflow.rest.clear(turn.dag, turn.id, ["train"])
    assert turn.end() == "success"
    assert turn.xcom("train")["resumed_from"] >= step
    assert set(turn.run.history().generations) == {1}
    assert turn.run.prove().complete


def test_a_training_that_a_person_fails_ends_on_the_machines_and_all_is_given_back(start: Callable[..., Turn]):
    turn = start(**LONG)
    turn.wait_for("train", "deferred")
    turn.wait_for_commits()
    turn.airflow.rest.set_task_state(turn.dag, turn.id, "train", "failed")
    turn.end()
    assert turn.state("release") == "success"
    assert turn.run.prove().complete


def test_a_provision_that_a_person_fails_gives_back_what_it_got(start: Callable[..., Turn], fault: Callable[..., None]):
    fault(deploy="hang")
    turn = start()
    turn.wait_for("provision", "deferred")
    wait_until_renewed(turn)
    assert "machine.deploy" in actions(turn)
    assert lease_intents(turn) == 1  # while they are on their way, the trigger has no run of its own
    turn.airflow.rest.set_task_state(turn.dag, turn.id, "provision", "failed")
    turn.end()
    eventually(lambda: turn.run.prove().complete, within_s=60, what="it is back")
    assert "cancelled" in str([e.data for e in turn.run.journal.entries() if e.action == "release"])


def test_a_run_that_a_person_fails_holds_nothing_soon(start: Callable[..., Turn]):
    turn = start(**LONG)
    turn.wait_for("train", "deferred")
    turn.wait_for_commits()
    turn.airflow.rest.set_run_state(turn.dag, turn.id, "failed")
    turn.wait_until_back(renew_for_s=45)


def test_provision_that_is_cleared_after_success_leases_nothing_twice(start: Callable[..., Turn]):
    turn = start(**LONG)
    turn.wait_for("train", "deferred")
    turn.wait_for_commits()
    turn.airflow.rest.clear(turn.dag, turn.id, ["provision"])  # with all that comes after it
    assert turn.end() == "success"
    assert set(turn.run.history().generations) == {1}
    assert turn.asked_for() == 1
    assert turn.run.prove().complete


def test_machines_that_cannot_be_had_are_asked_for_again_and_the_failure_says_why(start: Callable[..., Turn]):
    turn = start(conf={"nodes": 9, "wait_s": 0})
    assert turn.end() == "failed"
    assert turn.tries("provision") == 3
    log = turn.log("provision", 3)
    assert "could not get 9 x gpu.h200.8x" in log
    assert "mlops lease list" in log
    assert turn.run.prove().complete


def wait_until_renewed(turn: Turn) -> None:
    """Until a trigger renews what the task has asked for: it waits for the machines."""
    (piece,) = turn.run.history().generations[1].pieces.values()

    def until() -> datetime:
        allocation = turn.client.services.baremetal.get_allocation(piece.name)
        assert allocation is not None
        assert allocation.marker is not None
        return allocation.marker.renewed_until

    first = until()
    eventually(lambda: until() > first, within_s=120, what="the lease is renewed")


def lease_intents(turn: Turn) -> int:
    return sum(entry.action == "lease" and entry.kind is EntryKind.INTENT for entry in turn.run.journal.entries())


def actions(turn: Turn) -> set[str]:
    return {entry.action for entry in turn.run.journal.entries()}
