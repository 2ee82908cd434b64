"""A job is told that its lease ends, writes a checkpoint, and goes on on the next lease: on machines of the stack."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from mlops_operators.capacity import ProvisionOperator, ReleaseOperator
from mlops_operators.training import TrainOperator
from mlops_sdk.capacity.lease import LeaseRequest, Priority
from mlops_sdk.capacity.lifecycle import EndReason
from mlops_sdk.checkpoint.resume import committed
from mlops_sdk.client import Client
from mlops_sdk.errors import LeaseEnding, Preempted
from mlops_sdk.names import run_id_for
from mlops_sdk.run import Lease, Run
from mlops_sdk.training.events import JobEvent, StepDone
from mlops_sdk.training.job import JobResult, run_job
from mlops_sdk.training.ordering import place_order
from mlops_sdk.training.site import Site
from mlops_sdk.training.spec import LaunchSpec
from support_airflow import Task, connections_of
from support_jobs import corpus_in_the_bucket

pytestmark = [
    pytest.mark.stack,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("nothing_is_held"),
]

NOTICE_S = 20.0


@pytest.fixture
def noticing(client: Client) -> Client:
    """A deployment that gives notice early enough to see it."""
    lease = client.settings.lease.model_copy(update={"notice_s": NOTICE_S})
    return Client(client.settings.model_copy(update={"lease": lease}))


@pytest.fixture
def endless(noticing: Client, checkout: Path, workdir: Path, job: Any) -> Callable[[Run], LaunchSpec]:
    """A training that ends by itself only after hours, and by itself commits nothing before."""

    def ordered(run: Run) -> LaunchSpec:
        arguments = {**job.spec.program.arguments, "steps": 100_000, "checkpoint_every": 100_000, "log_every": 1}
        program = job.spec.program.model_copy(update={"arguments": arguments})
        data = corpus_in_the_bucket(noticing, workdir / "data")
        wanted = place_order(
            noticing,
            run,
            model_name="code-lm",
            program=program,
            code=checkout,
            data=[data.ref()],
            data_revision=data.revision,
        )
        return wanted.launch

    return ordered


class Work:
    """A job, and the last step of it that was heard of."""

    def __init__(self, run: Run, lease: Lease, spec: LaunchSpec) -> None:
        self.run, self.lease, self.spec = run, lease, spec
        self.last_step = 0
        self.began = threading.Event()

    def __call__(self) -> JobResult:
        return run_job(
            Site.of(self.run), self.spec, self.lease.nodes, on_event=self._hear, check=self.run.raise_if_lost
        )

    def _hear(self, event: JobEvent) -> None:
        if isinstance(event, StepDone):
            self.last_step = event.step
            self.began.set()


def request(client: Client, nodes: int, *, lasts_s: float, **changes: Any) -> LeaseRequest:
    deadline = client.services.now() + timedelta(seconds=lasts_s)
    return LeaseRequest(nodes=nodes, resource_class="gpu.h200.8x", deadline=deadline, **changes)


def newest(run: Run) -> int:
    return max(committed(run.store, f"{run.prefix}/checkpoints"), default=0)


def goes_on_and_ends(client: Client, run: Run, spec: LaunchSpec) -> None:
    """The rest of the training, on the next lease, is three steps."""
    stopped_at = newest(run)
    lease = run.lease(request(client, 2, lasts_s=3600, wait_s=60.0))
    work = Work(run, lease, replace(spec, args={**spec.args, "steps": stopped_at + 3}))
    assert work().result["resumed_from"] == stopped_at
    assert work.last_step == stopped_at + 3


def test_a_job_longer_than_its_lease_ends_with_a_checkpoint_at_its_last_step(
    noticing: Client, endless: Callable[[Run], LaunchSpec]
):
    with noticing.start_run() as run:
        lease = run.lease(request(noticing, 2, lasts_s=75, wait_s=1.0))
        spec = endless(run)
        work = Work(run, lease, spec)
        with pytest.raises(LeaseEnding, match="checkpoint of step") as ended:
            work()
        assert not isinstance(ended.value, Preempted)
        assert newest(run) == work.last_step > 0
        assert f"step {work.last_step}" in ended.value.what
        left = (lease.deadline - noticing.services.now()).total_seconds()
        assert 0 < left < NOTICE_S
        assert run.history().generations[1].state.value == "before_end"
        run.release(EndReason.DEADLINE)
        run.next_generation()
        goes_on_and_ends(noticing, run, spec)
    assert run.prove().complete


def test_an_urgent_run_gets_the_machines_of_one_that_may_be_ended_and_that_one_goes_on_later(
    noticing: Client, endless: Callable[[Run], LaunchSpec]
):
    got: list[Lease] = []
    with noticing.start_run() as run, noticing.start_run() as urgent:
        lease = run.lease(request(noticing, 2, lasts_s=3600, wait_s=1.0, priority=Priority.BATCH, preemptible=True))
        spec = endless(run)
        work = Work(run, lease, spec)

        def want() -> None:
            assert work.began.wait(60)
            wanted = request(noticing, 4, lasts_s=3600, wait_s=120.0, priority=Priority.URGENT)
            got.append(urgent.lease(wanted))

        waiting = threading.Thread(target=want)
        waiting.start()
        with pytest.raises(Preempted, match="checkpoint of step"):
            work()
        assert newest(run) == work.last_step > 0
        notice = run.ending()
        assert notice is not None
        assert notice.by == urgent.key
        assert noticing.services.now() < notice.ends_at
        run.release(EndReason.PREEMPTED)
        run.next_generation()
        waiting.join(120)
        assert [len(lease.nodes) for lease in got] == [4]
        urgent.release()
        goes_on_and_ends(noticing, run, spec)
    assert run.prove().complete
    assert urgent.prove().complete


def test_in_airflow_a_lease_that_ends_fails_its_task_at_once_and_the_next_one_resumes(
    noticing: Client, checkout: Path, workdir: Path, job: Any, monkeypatch: pytest.MonkeyPatch
):
    for name, value in connections_of(noticing.settings).items():
        monkeypatch.setenv(name, value)
    run_name = f"retrain_lm/{uuid.uuid4()}"
    data = corpus_in_the_bucket(noticing, workdir / "data")

    def train(steps: int) -> Task:
        arguments = {**job.spec.program.arguments, "steps": steps, "checkpoint_every": 100_000, "log_every": 1}
        program = {"module": "mlops_pipelines.programs.code_lm.train", "arguments": arguments}
        values = {"model_name": "code-lm", "program": program, "code": str(checkout), "data": data.to_json()}
        return Task(TrainOperator(task_id="train", run_name=run_name, **values))

    values = {"nodes": 1, "resource_class": "gpu.h200.8x", "wait_s": 30.0}
    provision = Task(ProvisionOperator(task_id="provision", run_name=run_name, hours=60 / 3600, **values))
    assert provision.run()["generation"] == 1
    with pytest.raises(AirflowFailException, match="LeaseEnding: the job stopped on notice, with a checkpoint of step"):
        train(100_000).run()
    run = noticing.attach(run_id_for(noticing.settings.deployment_id, run_name))
    assert run.history().generations[1].state.value == "released"  # at once, without the teardown
    stopped_at = newest(run)
    provision.operator.hours = 1.0  # cleared, with more time
    assert provision.run()["generation"] == 2
    assert train(stopped_at + 3).run()["resumed_from"] == stopped_at
    release = Task(ReleaseOperator(task_id="release", run_name=run_name))
    assert set(release.run()["machines"].values()) == {"cleaned"}
