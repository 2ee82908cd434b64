"""When things go wrong inside a DAG run: services away, processes killed, a pause, wrong secrets, bad data."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from mlops_pipelines.programs.code_lm import corpus
from mlops_pipelines.programs.code_lm.export import write_model
from mlops_pipelines.programs.code_lm.model import Llama, Shape
from mlops_sdk.client import Client
from mlops_sdk.journal import EntryKind
from mlops_sdk.names import run_key
from mlops_sdk.registry.champion import Champion, read_champion, set_champion
from mlops_sdk.registry.lineage import CheckpointRecord, CostRecord, GitState, LeaseRecord, Lineage
from mlops_sdk.registry.model_files import upload_model
from mlops_sdk.registry.models import register
from mlops_sdk.run import Run
from mlops_sdk.serving.target import ServedModel, VllmTarget
from mlops_sdk.training.program import ProgramSpec
from mlops_sdk.training.trained import Trained
from support import eventually
from support_airflow import connections_of
from support_models import stored_model
from support_turns import Turn, processes_of, service

pytestmark = [
    pytest.mark.stack,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("nothing_is_held"),
]

LONG = {"steps": 900, "checkpoint_every": 10}
Start = Callable[..., Turn]


@pytest.fixture
def connection(airflow: Any, client: Client) -> Iterator[Callable[..., str]]:
    """Make a connection like the stack's own of that type, but for some fields; gives its id."""
    made: list[str] = []

    def make(conn_type: str, **changes: Any) -> str:
        fields = {**json.loads(connections_of(client.settings)[f"AIRFLOW_CONN_{conn_type.upper()}"]), **changes}
        conn_id = f"{conn_type}_{uuid.uuid4().hex[:8]}"
        body = {**fields, "connection_id": conn_id, "extra": json.dumps(fields["extra"])}
        airflow.rest._call("POST", "/api/v2/connections", body)
        made.append(conn_id)
        return conn_id

    yield make
    for conn_id in made:
        airflow.rest._call("DELETE", f"/api/v2/connections/{conn_id}")


def test_with_mlflow_down_machines_go_back_and_the_model_is_registered_later(start: Start, stack: Any):
    turn = start("turns", {"model": f"model-{uuid.uuid4().hex[:8]}"}, learning_rate=1e-6)
    turn.wait_for("train", "deferred")
    with stack.held("mlflow"):
        turn.wait_for("train", "success")
        turn.wait_for("release", "success")
        assert turn.run.prove().complete
        turn.wait_for_try("register", 2)
    turn.end()  # at the gate: it has learned nothing
    assert (turn.state("register"), turn.state("gate")) == ("success", "failed")
    assert turn.xcom("train")["attempts"] == 1
    log = turn.log("register")
    assert "ServiceUnavailable" in log
    assert "MLflow" in log


def test_with_s3_down_a_training_ends_and_goes_on_with_the_same_machines(start: Start, stack: Any):
    turn = start(steps=300, checkpoint_every=10)
    turn.wait_for("train", "deferred")
    step = turn.wait_for_commits()
    with stack.held("ceph-rgw"):
        eventually(lambda: "trying again" in turn.log("train"), within_s=60, what="the attempt has ended")
    assert turn.end() == "success"
    trained = turn.xcom("train")
    assert trained["attempts"] >= 2
    assert trained["resumed_from"] >= step
    assert "S3" in turn.log("train")
    assert turn.asked_for() == 1
    assert turn.run.prove().complete


def test_a_paused_dag_keeps_machines_only_while_they_work(start: Start, connection: Callable[..., str], airflow: Any):
    """One run is paused while it trains, another while it waits for its machines."""
    brief = connection("mlops_openstack")  # as the stack's own, but for a shorter renewal
    renew_for_s = json.loads(airflow.rest.connection(brief)["extra"])["lease"]["renew_for_s"]
    training = start(conf={"openstack": brief}, **LONG)
    training.wait_for("train", "deferred")
    training.wait_for_commits()
    waiting = start(conf={"openstack": brief})
    waiting.wait_for("provision", "deferred")
    airflow.rest.pause("leases")
    try:
        for turn, task in ((waiting, "provision"), (training, "train")):
            turn.wait_for(task, "scheduled")  # what it waited for is there, and nobody goes on
            turn.wait_until_back(renew_for_s=renew_for_s)
    finally:
        airflow.rest.unpause("leases")
    assert training.end() == "success"  # what is trained is trained
    assert waiting.end() == "failed"
    assert waiting.tries("train") == 1
    assert "LeaseLost" in waiting.log("train")
    assert [turn.asked_for() for turn in (training, waiting)] == [1, 1]
    airflow.rest.clear("leases", waiting.id, ["provision"])  # with all that comes after it
    assert waiting.end() == "success"
    assert waiting.asked_for() == 2


def test_a_killed_dag_processor_is_started_again_and_the_run_goes_on(start: Start, stack: Any):
    turn = start(steps=200, checkpoint_every=10)
    turn.wait_for("train", "deferred")
    turn.wait_for_commits()
    before = service(stack, "airflow-dag-processor")
    os.kill(before.pid, signal.SIGKILL)
    assert turn.end() == "success"
    assert (turn.xcom("train")["attempts"], turn.asked_for()) == (1, 1)

    def is_back() -> bool:
        now = service(stack, "airflow-dag-processor")
        return now.state == "ready" and now.restarts == before.restarts + 1

    eventually(is_back, within_s=60, what="the dag-processor is back")


def test_a_killed_task_process_costs_a_try_and_no_machine(start: Start, stack: Any):
    with stack.held("mlflow"):  # which the task asks for before it defers
        turn = start()
        running = turn.wait_for("train", "running")
        os.kill(processes_of(stack, running["id"])["task"], signal.SIGKILL)
        turn.wait_for_try("train", 2)
    assert turn.end() == "success"
    assert "SIGKILL" in turn.log("train", 1)
    assert turn.asked_for() == 1
    assert set(turn.run.history().generations) == {1}
    assert turn.run.prove().complete


def test_data_that_is_not_as_expected_fails_at_once_and_costs_no_machine(start: Start, tmp_path: Path):
    for number in range(24):
        (tmp_path / f"module_{number}.py").write_text(f"number = {number}\n")
    (tmp_path / "latin.py").write_bytes("name = 'Müller'\n".encode("latin-1"))
    turn = start("validated", {"table": {"kinds": ["python"], "roots": {"python": str(tmp_path)}}})
    assert turn.end() == "failed"
    assert turn.tries("validate_data") == 1
    log = turn.log("validate_data")
    assert "DataRejected" in log
    assert "expect_column_values_to_be_in_set of 'encoding': 1 wrong" in log
    assert "latin.py" in log
    assert turn.state("provision") == "upstream_failed"
    assert not turn.began


def test_a_worse_model_is_refused_and_the_champion_serves_on(start: Start, champion: Champion, client: Client):
    conf = {"model": champion.name}
    turn = start("turns", conf, learning_rate=1e-6, champion=champion.argument())  # it learns nothing
    assert turn.end() == "failed"
    assert (turn.state("gate"), turn.tries("gate"), turn.state("deploy")) == ("failed", 1, "upstream_failed")
    log = turn.log("gate")
    assert "GateRefused" in log
    assert f"may not take the place of {champion.name}/{champion.version}" in log
    assert "beyond the 5.0% that is allowed" in log
    assert read_champion(client.mlflow, champion.name) == champion
    assert turn.run.prove().complete


def test_a_version_that_never_gets_ready_fails_at_once_and_is_no_champion(
    airflow: Any, client: Client, serving: VllmTarget, tmp_path: Path
):
    name, run_id = f"model-{uuid.uuid4().hex[:8]}", f"test-{uuid.uuid4()}"
    model = stored_model(client.store, tmp_path, name=name, version=1, broken=True)
    turn = Turn(airflow, client, "served", run_id)
    remember_a_training(client.start_run(turn.name), model)
    airflow.rest.trigger("served", run_id, {})
    assert turn.end() == "failed"
    assert [turn.state(task) for task in ("register", "gate", "deploy")] == ["success", "success", "failed"]
    assert turn.tries("deploy") == 1
    log = turn.log("deploy")
    assert "RolledBack" in log
    assert "ended with exit status 1; its last words" in log
    assert read_champion(client.mlflow, name) is None


def remember_a_training(run: Run, model: ServedModel) -> None:
    """As if this run had trained the model: well enough for the gate."""
    trained = Trained(
        model_name=model.name,
        program=ProgramSpec(module="none"),
        generation=1,
        attempts=1,
        git=GitState(commit="0" * 40, dirty=False),
        nodes=(),
        allocations=(),
        bits_per_byte=2.0,
        held_out={"python": 2.0},
        baseline_held_out={"python": 2.9},
        parameters=1,
        resumed_from=0,
        tokens_per_s=1.0,
        data_sha256="1" * 64,
        model_prefix=model.prefix,
        model_sha256=model.sha256,
        checkpoint=CheckpointRecord(key="k", sha256="3" * 64, step=1),
        packages={},
    )
    run.journal.append(EntryKind.OUTCOME, "train", generation=1, trained=trained.model_dump(mode="json"))


@pytest.mark.parametrize("kind", ["openstack", "s3"])
def test_a_connection_with_a_wrong_secret_fails_at_once_and_is_named(
    start: Start, connection: Callable[..., str], kind: str
):
    wrong = connection(f"mlops_{kind}", password="wrong-secret-0002")
    turn = start("turns", {kind: wrong})
    assert turn.end() == "failed"
    assert turn.tries("provision") == 1
    log = turn.log("provision")
    assert "AccessDenied" in log
    assert wrong in log
    assert "wrong-secret-0002" not in log
    assert not turn.began


def test_a_wrong_secret_for_mlflow_is_told_and_the_machines_go_back(start: Start, connection: Callable[..., str]):
    wrong = connection("mlops_mlflow", password="wrong-secret-0002")
    turn = start("turns", {"mlflow": wrong})
    assert turn.end() == "failed"
    assert (turn.tries("train"), turn.state("release")) == (1, "success")
    log = turn.log("train")
    assert "AccessDenied" in log
    assert wrong in log
    assert "wrong-secret-0002" not in log
    assert turn.run.prove().complete


@pytest.fixture
def champion(client: Client, workdir: Path, tmp_path: Path) -> Champion:
    """A model that was trained for a moment, under a name of its own: better than one that has learned nothing."""
    name, data = f"model-{uuid.uuid4().hex[:8]}", corpus.prepared(workdir / "data", vocabulary=4096)
    shape = Shape(vocabulary=4096, hidden=16, layers=1, heads=2, intermediate=24, context=32)
    write_model(trained(Llama(shape), data), data.tokenizer_json(), tmp_path)
    run_id = uuid.uuid4()
    prefix = f"runs/{run_key(run_id)}/model"  # where models are, and so what later runs may be allowed to read
    lineage = Lineage(
        run_id=run_id,
        owner="ada",
        git=GitState(commit="0" * 40, dirty=False),
        data_sha256=data.sha256,
        model_sha256=upload_model(client.store, prefix, tmp_path),
        model_prefix=prefix,
        lease=LeaseRecord(names=("ml-abc-g1-0",), generation=1),
        nodes=(),
        checkpoint=CheckpointRecord(key="k", sha256="3" * 64, step=0),
        packages={},
        cost=CostRecord(node_seconds=1.0, amount=0.1, currency="EUR"),
        attempts=1,
        metrics={},
        held_out={"python": 4.0},
        baseline_held_out={"python": 2.9},
    )
    set_champion(client.mlflow, name, register(client.mlflow, name, tmp_path, lineage).version)
    found = read_champion(client.mlflow, name)
    assert found is not None
    return found


def trained(model: Llama, data: corpus.PreparedData) -> Llama:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for ids in torch.from_numpy(data.stream("train")[: 50 * 8 * 33].astype("int64")).view(50, 8, 33):
        loss = functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model
