"""Leases under Airflow's own scheduler, workers and triggerer: people and signals interfere, nothing is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops_pipelines.programs.code_lm import corpus
from mlops_sdk.checkpoint.resume import committed
from mlops_sdk.client import Client
from mlops_sdk.data.versioning import DataVersion
from mlops_sdk.local import control
from mlops_sdk.names import run_id_for
from mlops_sdk.run import Run
from support import eventually

pytestmark = [
    pytest.mark.stack,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("nothing_is_held"),
]

DAG = "leases"
LONG = {"steps": 900, "checkpoint_every": 10}


class Turn:
    """One run of the DAG."""

    def __init__(self, airflow: Any, client: Client, run_id: str) -> None:
        self.airflow = airflow
        self.client = client
        self.id = run_id

    @property
    def run(self) -> Run:
        return self.client.attach(run_id_for(self.client.settings.deployment_id, f"{DAG}/{self.id}"))

    def wait_for(self, task_id: str, *states: str) -> dict[str, Any]:
        return self.airflow.wait_for_task(DAG, self.id, task_id, *states, timeout_s=120)

    def state(self, task_id: str) -> str:
        return self.airflow.rest.task(DAG, self.id, task_id)["state"]

    def wait_for_commits(self) -> int:
        """Until the training has committed something; the newest step."""
        folder = f"{self.run.prefix}/checkpoints"
        eventually(lambda: bool(committed(self.client.store, folder)), within_s=120, what="a commit")
        return committed(self.client.store, folder)[0]

    def end(self) -> str:
        return self.airflow.wait_for_run(DAG, self.id, timeout_s=200)["state"]

    def xcom(self, task_id: str) -> dict[str, Any]:
        return self.airflow.rest.xcom(DAG, self.id, task_id)


@pytest.fixture
def start(airflow: Any, client: Client, checkout: Path, workdir: Path, job: Any) -> Callable[..., Turn]:
    prepared = corpus.prepared(workdir / "data", vocabulary=4096)
    version = DataVersion(
        name=corpus.FILE_NAME,
        sha256=prepared.sha256,
        md5=prepared.sha256[:32],
        size=prepared.size,
        revision="0" * 40,
    )
    client.store.put_if_absent(version.key, prepared.path.read_bytes())

    def begin(*, nodes: int = 1, wait_s: float = 5, **arguments: Any) -> Turn:
        program = {
            "module": "mlops_pipelines.programs.code_lm.train",
            "arguments": {**job.spec.program.arguments, **arguments},
        }
        conf = {
            "nodes": nodes,
            "wait_s": wait_s,
            "program": program,
            "code": str(checkout),
            "data": version.to_json(),
        }
        return Turn(airflow, client, airflow.start(DAG, conf))

    return begin


def test_a_turn_leases_trains_and_gives_back(start: Callable[..., Turn]):
    turn = start()
    assert turn.end() == "success"
    leased, trained, back = (turn.xcom(task_id) for task_id in ("provision", "train", "release"))
    assert leased["generation"] == 1
    assert trained["run"] == leased["run"] == turn.run.key
    assert back["machines"] == {leased["nodes"][0]: "cleaned"}
    assert turn.run.prove().complete
    log = turn.airflow.rest.task_log(DAG, turn.id, "train")
    assert "rank 0 runs on" in log
    assert turn.client.settings.broker_key.get_secret_value() not in log


@pytest.mark.parametrize("service", ["airflow-triggerer", "airflow-scheduler", "airflow-api"])
def test_a_component_that_is_killed_while_machines_train_costs_no_commit(
    start: Callable[..., Turn], stack: Any, service: str
):
    turn = start(**LONG)
    turn.wait_for("train", "deferred")
    step = turn.wait_for_commits()
    os.kill(pid_of(stack, service), signal.SIGKILL)
    assert turn.end() == "success"
    trained = turn.xcom("train")
    if service == "airflow-triggerer":
        assert trained["attempts"] == 2
        assert trained["resumed_from"] >= step
    else:
        assert trained["attempts"] == 1
    assert set(turn.run.history().generations) == {1}
    assert turn.run.prove().complete


def test_a_training_that_is_cleared_goes_on_with_the_same_machines(start: Callable[..., Turn]):
    turn = start(**LONG)
    turn.wait_for("train", "deferred")
    step = turn.wait_for_commits()
    turn.airflow.rest.clear(DAG, turn.id, ["train"])
    assert turn.end() == "success"
    assert turn.xcom("train")["resumed_from"] >= step
    assert set(turn.run.history().generations) == {1}
    assert turn.run.prove().complete


def test_a_training_that_a_person_fails_ends_on_the_machines_and_all_is_given_back(start: Callable[..., Turn]):
    turn = start(**LONG)
    turn.wait_for("train", "deferred")
    turn.wait_for_commits()
    turn.airflow.rest.set_task_state(DAG, turn.id, "train", "failed")
    turn.end()
    assert turn.state("release") == "success"
    assert turn.run.prove().complete


def test_a_provision_that_a_person_fails_gives_back_what_it_got(start: Callable[..., Turn]):
    turn = start()
    turn.wait_for("provision", "deferred")
    eventually(lambda: "machine.deploy" in actions(turn), within_s=60, what="a machine is being deployed")
    turn.airflow.rest.set_task_state(DAG, turn.id, "provision", "failed")
    turn.end()
    eventually(lambda: turn.run.prove().complete, within_s=60, what="it is back")
    assert "cancelled" in str([e.data for e in turn.run.journal.entries() if e.action == "release"])


def test_a_run_that_a_person_fails_holds_nothing_soon(start: Callable[..., Turn]):
    turn = start(**LONG)
    turn.wait_for("train", "deferred")
    turn.wait_for_commits()
    turn.airflow.rest.set_run_state(DAG, turn.id, "failed")
    limit = 60 + 3 + 40  # the connection's renewal, a period of the reaper, cleaning
    eventually(lambda: turn.run.prove().complete, within_s=limit, what="it is back")


def test_provision_that_is_cleared_after_success_leases_nothing_twice(start: Callable[..., Turn]):
    turn = start(**LONG)
    turn.wait_for("train", "deferred")
    turn.wait_for_commits()
    turn.airflow.rest.clear(DAG, turn.id, ["provision"])  # with all that comes after it
    assert turn.end() == "success"
    assert set(turn.run.history().generations) == {1}
    created = [e for e in turn.run.journal.entries() if e.action == "allocation.create" and e.kind.value == "outcome"]
    assert len(created) == 1
    assert turn.run.prove().complete


def test_machines_that_cannot_be_had_are_asked_for_again_and_the_failure_says_why(start: Callable[..., Turn]):
    turn = start(nodes=9, wait_s=0)
    assert turn.end() == "failed"
    assert turn.airflow.rest.task(DAG, turn.id, "provision")["try_number"] == 3
    log = turn.airflow.rest.task_log(DAG, turn.id, "provision", attempt=3)
    assert "could not get 9 x gpu.h200.8x" in log
    assert "mlops lease list" in log
    assert turn.run.prove().complete


def actions(turn: Turn) -> set[str]:
    return {entry.action for entry in turn.run.journal.entries()}


def pid_of(stack: Any, name: str) -> int:
    return next(s for s in control.status(stack.layout).services if s.name == name).pid
