"""Provision, train and release as Airflow's worker and triggerer drive them, on machines of the embedded stack."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from mlops_hooks.ssh import SshHook
from mlops_operators.capacity import ProvisionOperator, ReleaseOperator
from mlops_operators.training import TrainOperator
from mlops_operators.triggers.capacity import ProvisionTrigger
from mlops_sdk.checkpoint.resume import committed
from mlops_sdk.client import Client
from mlops_sdk.data.versioning import DataVersion
from mlops_sdk.names import run_id_for
from mlops_sdk.run import Run
from support import eventually
from support_airflow import Task, connections_of, event_of, stored
from support_jobs import corpus_in_the_bucket

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300), pytest.mark.usefixtures("nothing_is_held")]

TRIGGERER = Path(__file__).parent / "triggerer.py"


class Dag:
    """Three tasks of one DAG run."""

    def __init__(self, client: Client, checkout: Path, data: DataVersion, arguments: dict[str, Any]) -> None:
        self.client = client
        self.name = f"retrain_lm/{uuid.uuid4()}"
        self.provision = Task(
            ProvisionOperator(
                task_id="provision", run_name=self.name, nodes=1, resource_class="gpu.h200.8x", wait_s=1.0
            )
        )
        program = {"module": "mlops_pipelines.programs.code_lm.train", "arguments": arguments}
        self.train = Task(
            TrainOperator(
                task_id="train",
                run_name=self.name,
                model_name="code-lm",
                program=program,
                code=str(checkout),
                data=data.to_json(),
            )
        )
        self.release = Task(ReleaseOperator(task_id="release", run_name=self.name))

    @property
    def run(self) -> Run:
        return self.client.attach(run_id_for(self.client.settings.deployment_id, self.name))

    def step(self) -> int:
        """The newest committed step."""
        return max(committed(self.client.store, f"{self.run.prefix}/checkpoints"), default=0)


@pytest.fixture
def data(client: Client, workdir: Path) -> DataVersion:
    """The corpus, in the bucket where DVC would have put it."""
    return corpus_in_the_bucket(client, workdir / "data")


@pytest.fixture
def dag(
    client: Client, checkout: Path, data: DataVersion, job: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Dag]:
    for name, value in connections_of(client.settings).items():
        monkeypatch.setenv(name, value)

    def make(**arguments: Any) -> Dag:
        return Dag(client, checkout, data, {**job.spec.program.arguments, **arguments})

    return make


def test_machines_are_leased_a_model_is_trained_and_all_is_given_back(
    dag: Callable[..., Dag], monkeypatch: pytest.MonkeyPatch
):
    tasks = dag()
    leased = tasks.provision.run()
    assert len(leased["nodes"]) == 1
    assert tasks.provision.ti.pushed["_link_NodeLink"].startswith("http")
    assert_ssh_is_tested(tasks.run, monkeypatch)

    deferred = tasks.train.defer()
    _, arguments = deferred.trigger.serialize()
    assert set(arguments) == {"run_name", "openstack_conn_id", "s3_conn_id", "mlflow_conn_id"}
    trained = tasks.train.resume(deferred, asyncio.run(event_of(stored(deferred))))
    assert trained["attempts"] == 1
    assert 0 < trained["bits_per_byte"] < 16
    assert len(json.dumps(trained)) < 1000
    assert "/runs/" in tasks.train.ti.pushed["_link_MlflowRunLink"]
    assert tasks.train.run() == trained  # cleared: it is trained already

    back = tasks.release.run()
    assert back["machines"] == {leased["nodes"][0]: "cleaned"}
    assert tasks.run.prove().complete
    with pytest.raises(AirflowFailException, match="holds no machines"):
        dag().train.run()


@pytest.mark.slow
def test_a_triggerer_that_is_killed_costs_an_attempt_and_no_commit(dag: Callable[..., Dag], stack: Any):
    tasks = dag(steps=600, checkpoint_every=10)
    tasks.provision.run()
    deferred = tasks.train.defer()
    path, arguments = deferred.trigger.serialize()
    process = subprocess.Popen([sys.executable, str(TRIGGERER), path, json.dumps(arguments)], env=dict(os.environ))
    try:
        eventually(lambda: tasks.step() >= 20, within_s=90, what="commits")
    finally:
        process.kill()
        process.wait()
    committed = tasks.step()
    trained = tasks.train.resume(deferred, asyncio.run(event_of(stored(deferred))))
    assert trained["attempts"] == 2
    assert trained["resumed_from"] >= committed
    tasks.release.run()


@pytest.mark.slow
def test_a_triggerer_that_stops_ends_the_job_and_the_next_one_goes_on(dag: Callable[..., Dag]):
    tasks = dag(steps=600, checkpoint_every=10)
    tasks.provision.run()
    deferred = tasks.train.defer()

    async def stopped() -> None:
        async with running(stored(deferred)) as task:
            while tasks.step() < 20:  # noqa: ASYNC110 - the machines write it
                await asyncio.sleep(0.2)
            assert not task.done()

    asyncio.run(stopped())
    trained = tasks.train.resume(deferred, asyncio.run(event_of(stored(deferred))))
    assert trained["attempts"] == 2
    assert trained["resumed_from"] >= 20
    tasks.release.run()


@pytest.mark.slow
@pytest.mark.parametrize("seen", ["allocation.create", "machine.deploy"])
def test_a_provision_that_a_person_kills_gives_back_what_it_got(dag: Callable[..., Dag], seen: str):
    tasks = dag()
    trigger: ProvisionTrigger = stored(tasks.provision.defer())

    async def killed() -> None:
        async with running(trigger):
            while not any(e.action == seen for e in tasks.run.journal.entries()):  # noqa: ASYNC110 - threads write it
                await asyncio.sleep(0.05)
        await trigger.on_kill()

    asyncio.run(killed())
    assert tasks.run.prove().complete
    assert tasks.provision.run()["generation"] == 2
    tasks.release.run()


def assert_ssh_is_tested(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An SSH connection to a leased machine: its key is pinned, another one is refused."""
    node = run.lease().nodes[0]
    run.close()
    pinned = {"private_key": run.client_key.private, "host_public_key": node.host_public_key}
    for extra, works in ((pinned, True), ({**pinned, "host_public_key": run.peer_key.public}, False)):
        connection = {"conn_type": "mlops_ssh", "host": node.address, "login": "root", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_A_MACHINE", json.dumps(connection))
        answer = SshHook("a_machine").test_connection()
        assert answer[0] is works, answer
        assert ("holds the pinned key" in answer[1]) is works
        assert "PRIVATE KEY" not in answer[1]


@asynccontextmanager
async def running(trigger: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """A trigger in the triggerer; at the end it is cancelled as the triggerer does: every second until it ended."""
    task = asyncio.ensure_future(event_of(trigger))
    yield task
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1)
    with pytest.raises(asyncio.CancelledError):
        task.result()
