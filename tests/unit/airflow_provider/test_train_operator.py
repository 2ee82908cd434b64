"""A training as Airflow drives it: ordered once, adopted by any triggerer, remembered for ever."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import pytest
import stamina
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from mlops_hooks.deployment import DeploymentHook
from mlops_operators import training
from mlops_operators.capacity import ProvisionOperator, ReleaseOperator
from mlops_operators.training import TrainOperator
from mlops_operators.triggers import training as triggers
from mlops_operators.triggers.keeping import Caretaker, Progress, progress_of
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.lifecycle import EndReason
from mlops_sdk.capacity.order_book import OrderBook
from mlops_sdk.capacity.orders import Notice, noticed
from mlops_sdk.errors import (
    AccessDenied,
    JobFailed,
    LeaseEnding,
    LeaseLost,
    NodeFailed,
    Preempted,
    ServiceUnavailable,
)
from mlops_sdk.registry.lineage import GitState
from mlops_sdk.run import Run
from mlops_sdk.source import SourceRef
from mlops_sdk.testing.cloud import FakeBaremetal, FakeCloud
from mlops_sdk.training.events import AttemptEnded, StepDone
from mlops_sdk.training.job import JobResult
from mlops_sdk.training.launch import Cause
from mlops_sdk.training.spec import BundleRef, LaunchSpec
from mlops_sdk.training.trained import TrainingOrder, order, remembered
from support_airflow import Task, event_of, stored

NAME = "retrain_lm/r1"
PROGRAM = {"module": "a.program", "arguments": {"steps": 3}}
DATA = {"name": "x", "sha256": "d" * 64, "md5": "ab" * 16, "size": 5, "revision": "r" * 40}
REPORTED = {
    "bits_per_byte": 2.5,
    "held_out": {"python": 2.4},
    "parameters": 7,
    "resumed_from": 2,
    "tokens_per_s": 10.0,
    "data_sha256": "d" * 64,
    "model": {"prefix": "runs/x/model", "manifest_sha256": "e" * 64},
    "checkpoint": {"key": "k", "step": 3, "sha256": "f" * 64},
    "packages": {},
}


class Job:
    """Stands for `arun_job`: what the machines do."""

    def __init__(self) -> None:
        self.calls: list[tuple[LaunchSpec, tuple[str, ...]]] = []
        self.error: Exception | None = None

    async def __call__(self, site, spec, nodes, *, on_event, check):
        self.calls.append((spec, tuple(node.name for node in nodes)))
        on_event(StepDone(attempt=1, step=1, metrics={"loss": 2.0}))
        check()
        if self.error is not None:
            raise self.error
        end = AttemptEnded(attempt=1, cause=Cause.SUCCEEDED, what="", seen="", seconds=1, retry=False)
        return JobResult(attempts=(end,), seconds=1, result=REPORTED, log_uri="s3://logs")


@pytest.fixture
def cloud(monkeypatch) -> FakeCloud:
    cloud = FakeCloud()

    async def aclient(_hook, *, keeper=None, earlier=None):
        return cloud.client(keeper=keeper)

    def place_order(client, run, *, model_name, program, code, data, data_revision):
        wanted = TrainingOrder(
            model_name=model_name,
            program=program,
            bundle=BundleRef(sha256="b" * 64, size=1),
            data=tuple(data),
            git=GitState(commit="c" * 40, dirty=False, repository=getattr(code, "repository", "")),
            data_revision=data_revision,
            tracking_url="http://mlflow/#/run",
        )
        order(run, wanted)
        return wanted

    monkeypatch.setattr(DeploymentHook, "client", lambda _hook: cloud.client())
    monkeypatch.setattr(DeploymentHook, "aclient", aclient)
    monkeypatch.setattr(training, "place_order", place_order)
    return cloud


@pytest.fixture
def job(monkeypatch) -> Job:
    job = Job()
    monkeypatch.setattr(triggers, "arun_job", job)
    return job


@pytest.fixture
def leased(cloud) -> Run:
    run = cloud.client().start_run(NAME)
    deadline = cloud.clock.now() + timedelta(hours=1)
    run.lease(LeaseRequest(nodes=2, resource_class="gpu.h200.8x", deadline=deadline))
    yield run
    run.release()


def train(**changes) -> Task:
    values = {"model_name": "lm", "program": PROGRAM, "code": "/a/checkout", "data": DATA, **changes}
    return Task(TrainOperator(task_id="train", run_name=NAME, **values))


def test_it_trains_on_the_leased_machines_and_pushes_back_little(leased, job):
    task = train(code={"repository": "https://example.org/code.git", "commit": "c" * 40, "summary": "3 passed"})
    result = task.run()
    assert result == {
        "run": leased.key,
        "model_name": "lm",
        "bits_per_byte": 2.5,
        "held_out": {"python": 2.4},
        "attempts": 1,
        "resumed_from": 2,
    }
    ((spec, nodes),) = job.calls
    assert nodes == ("gpu-01", "gpu-02")
    assert spec.data[0].key.endswith(f"files/md5/ab/{'ab' * 15}")
    assert remembered(leased).git.repository == "https://example.org/code.git"
    assert task.ti.pushed == {"_link_MlflowRunLink": "http://mlflow/#/run"}


def test_what_is_trained_is_not_trained_again(leased, job):
    task = train()
    first = task.run()
    task.ti.pushed.clear()
    assert task.operator.execute(task.context()) == first
    assert len(job.calls) == 1
    assert task.ti.pushed == {"_link_MlflowRunLink": "http://mlflow/#/run"}
    with pytest.raises(AirflowFailException, match="trained already, as something else"):
        train(program={**PROGRAM, "arguments": {"steps": 4}}).run()


def test_a_trigger_that_is_made_again_after_the_end_tells_the_same(leased, job):
    deferred = train().defer()
    first = asyncio.run(event_of(stored(deferred)))
    assert asyncio.run(event_of(stored(deferred))) == first
    assert len(job.calls) == 1


def test_the_trigger_row_holds_no_arguments_of_the_program(leased):
    deferred = train(program={**PROGRAM, "arguments": {"steps": 3, "note": "private"}}).defer()
    assert "private" not in json.dumps(deferred.trigger.serialize()[1])
    assert "private" not in repr(deferred.trigger)


def test_a_program_that_fails_fails_the_task_at_once_in_its_own_words(leased, job):
    job.error = JobFailed("rank 1 on gpu-02 raised", seen="ZeroDivisionError", next_step="log: s3://x")
    with pytest.raises(AirflowFailException, match=r"rank 1 on gpu-02 raised; seen: ZeroDivisionError; next: log"):
        train().run()


@pytest.mark.parametrize("error", [NodeFailed("gpu-02 came not back"), ServiceUnavailable("S3 stayed away")])
def test_what_may_pass_is_left_to_the_tasks_retries(leased, job, error):
    job.error = error
    with pytest.raises(type(error)):
        train().run()
    job.error = None
    assert train().run()["bits_per_byte"] == 2.5


def test_without_machines_no_retry_helps(cloud, job):
    with pytest.raises(AirflowFailException, match="holds no machines"):
        train().run()
    run = cloud.client().start_run(NAME)
    order_task = train()
    with pytest.raises(AirflowFailException, match="holds no machines"):
        order_task.run()
    assert run.generation == 1
    assert job.calls == []


def test_a_lost_lease_ends_it_and_no_retry_of_this_task_helps(leased, job, cloud):
    deferred = train().defer()
    leased.close()
    cloud.clock.sleep(60)
    cloud.reaper().reap_once()
    event = asyncio.run(event_of(stored(deferred)))
    with pytest.raises(AirflowFailException, match="LeaseLost"):
        train().resume(deferred, event)


def test_a_service_that_is_away_for_a_moment_does_not_cost_the_machines(leased, job, cloud):
    deferred = train().defer()
    known = cloud.faults.calls.count("find_credential")
    cloud.faults.fail_at("find_credential", known + 1, error=ServiceUnavailable("Keystone is away"))
    with stamina.set_testing(True, attempts=3):
        event = asyncio.run(event_of(stored(deferred)))
    assert event["run"] == leased.key
    assert len(cloud.held) == 2


def test_a_lease_that_ends_fails_the_task_at_once_and_is_given_back(leased, job, cloud):
    job.error = LeaseEnding("the job stopped on notice, with a checkpoint of step 7", seen="the deadline")
    with pytest.raises(AirflowFailException, match="checkpoint of step 7"):
        train().run()
    assert not cloud.held
    assert reasons(leased, 1) == {"deadline"}


def test_a_lease_that_ends_for_somebody_else_waits_in_the_queue_and_goes_on(leased, job, cloud):
    job.error = Preempted("the job stopped on notice, with a checkpoint of step 7")
    task = train()
    deferred = task.defer()
    event = asyncio.run(event_of(stored(deferred)))
    assert not cloud.held
    urgent = cloud.client().start_run("urgent")
    urgent.lease(LeaseRequest(nodes=4, resource_class="gpu.h200.8x", deadline=later(cloud, 100)))
    with pytest.raises(TaskDeferred) as again:
        task.resume(deferred, event)
    _, arguments = again.value.trigger.serialize()
    assert (arguments["generation"], arguments["nodes"]) == (2, 2)
    urgent.release()
    job.error = None
    assert task.finish(again.value)["bits_per_byte"] == 2.5
    run = cloud.client().attach(leased.key)
    assert reasons(run, 1) == {"preempted"}
    assert run.history().generations[2].request.deadline <= run.history().generations[1].request.deadline
    assert len(job.calls) == 2
    cloud.client().attach(leased.key).release()


def test_machines_that_were_lost_to_somebody_else_before_the_job_could_stop_are_waited_for_too(leased, job, cloud):
    task = train()
    deferred = task.defer()
    leased.close()
    book = OrderBook(cloud.services().store, leased.key, 1)
    notice = Notice(ends_at=later(cloud, 1), reason=EndReason.PREEMPTED, by="aaaaaaaaaaaa")
    book.change(lambda orders: noticed(orders, notice))
    for name in list(cloud.allocations):
        FakeBaremetal(cloud).set_times(name, renewed_until=later(cloud, 20), deadline=notice.ends_at)
    cloud.clock.sleep(5)
    cloud.reaper().reap_once()
    assert reasons(leased, 1) == {"preempted"}
    event = asyncio.run(event_of(stored(deferred)))
    with pytest.raises(TaskDeferred) as again:
        task.resume(deferred, event)
    assert task.finish(again.value)["bits_per_byte"] == 2.5
    cloud.client().attach(leased.key).release()


def test_a_failed_job_leaves_its_machines_to_a_person_if_that_was_asked_for(cloud, job):
    values = {"nodes": 1, "resource_class": "gpu.h200.8x", "hold_on_failure_s": 300}
    Task(ProvisionOperator(task_id="provision", run_name=NAME, **values)).run()
    job.error = JobFailed("rank 0 on gpu-01 raised")
    with pytest.raises(AirflowFailException, match="rank 0"):
        train().run()
    given = Task(ReleaseOperator(task_id="release", run_name=NAME)).run()
    assert given["machines"] == {"gpu-01": "held_for_debug"}
    assert given["until"].startswith("2026-01-01T00:05:")
    assert list(cloud.held) == ["gpu-01"]
    cloud.clock.sleep(302)
    cloud.reaper().reap_once()
    assert not cloud.held
    run = cloud.client().start_run(NAME)
    assert reasons(run, 1) == {"work_failed"}
    assert run.prove().complete


def test_no_time_is_left_after_a_preemption(leased, job, cloud):
    job.error = Preempted("the job stopped on notice")
    task = train()
    deferred = task.defer()
    event = asyncio.run(event_of(stored(deferred)))
    cloud.clock.sleep(3600)
    with pytest.raises(AirflowFailException, match="stopped on notice"):
        task.resume(deferred, event)


def later(cloud, seconds: float):
    return cloud.clock.now() + timedelta(seconds=seconds)


def reasons(run: Run, generation: int) -> set[str]:
    pieces = run.history().generations[generation].pieces.values()
    return {piece.evidence.reason.value for piece in pieces if piece.evidence}


def test_code_must_be_named(leased):
    with pytest.raises(AirflowFailException, match="code to train is not named"):
        train(code={"repository": "https://example.org/code.git"}).run()
    assert training._code("/a") == Path("/a")
    assert isinstance(training._code({"repository": "/a", "commit": "c" * 40}), SourceRef)


@pytest.mark.parametrize(
    ("states", "progress"),
    [
        (["success", "running", None], Progress.WORKING),
        (["success", "deferred", "up_for_retry"], Progress.WORKING),
        (["queued"], Progress.WORKING),
        (["success", "scheduled", None], Progress.WAITING),  # paused, or no slot is free
        (["up_for_retry", None], Progress.WAITING),
        (["up_for_reschedule", "success"], Progress.WAITING),
        (["success", "failed", "upstream_failed", "skipped", "removed"], Progress.ENDED),
        ([], Progress.ENDED),
    ],
)
def test_what_a_dag_run_does_follows_from_its_tasks(states, progress):
    assert progress_of(states) is progress


class Between:
    """A lease between two tasks; what the DAG run does is what the test says."""

    def __init__(self, cloud, *, renew_for_s: float = 0.2) -> None:
        lease = cloud.settings.lease.model_copy(update={"renew_for_s": renew_for_s})
        cloud.settings = cloud.settings.model_copy(update={"lease": lease})
        self.cloud = cloud
        self.caretaker = Caretaker(asyncio.get_running_loop())
        self.run = cloud.client(keeper=self.caretaker.keeper).start_run(NAME)
        self.progress = Progress.WORKING
        self.looks = 0

    async def hand_over(self) -> None:
        deadline = self.cloud.clock.now() + timedelta(hours=1)
        await asyncio.to_thread(self.run.lease, LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=deadline))
        self.run._heartbeat.beat()  # deploying took the fake clock longer than one renewal
        self.caretaker.hand_over(self.run, self.look)

    async def look(self) -> Progress:
        self.looks += 1
        return self.progress

    async def more_looks(self, count: int = 3) -> None:
        until = self.looks + count
        while self.looks < until:  # noqa: ASYNC110 - another task looks
            await asyncio.sleep(0.01)

    @property
    def beats(self) -> int:
        return self.cloud.faults.calls.count("set_times")

    async def let_go(self) -> None:
        while self.caretaker.kept or self.caretaker.keeper.beats:  # noqa: ASYNC110 - other threads end it
            await asyncio.sleep(0.01)


async def test_between_two_tasks_the_lease_is_renewed_while_the_dag_run_works(cloud):
    between = Between(cloud)
    await between.hand_over()
    before = between.beats
    await between.more_looks()
    while between.beats < before + 3:  # noqa: ASYNC110 - other threads call it
        await asyncio.sleep(0.01)
    assert between.caretaker.kept == {between.run.key}
    between.progress = Progress.ENDED
    await between.let_go()
    await asyncio.to_thread(between.run.release)


async def test_while_the_dag_run_waits_nothing_is_renewed_and_then_at_once(cloud):
    between = Between(cloud, renew_for_s=1.0)  # four beats in a renewal, eight looks
    await between.hand_over()
    between.progress = Progress.WAITING
    await between.more_looks()
    resting = between.beats
    await between.more_looks(6)  # three beats later
    assert between.beats == resting
    between.progress = Progress.WORKING
    await between.more_looks(2)
    assert between.beats > resting
    between.progress = Progress.ENDED
    await between.let_go()
    await asyncio.to_thread(between.run.release)


async def test_a_dag_run_that_waits_for_longer_than_a_renewal_loses_its_lease(cloud):
    between = Between(cloud)
    await between.hand_over()
    between.progress = Progress.WAITING
    await between.more_looks()
    cloud.clock.sleep(cloud.settings.lease.renew_for_s + 1)
    await between.let_go()
    with pytest.raises(LeaseLost, match="not renewed for"):
        between.run.raise_if_lost()
    await asyncio.to_thread(between.run.release)


async def test_who_takes_over_ends_what_was_handed_over(cloud):
    caretaker = Caretaker(asyncio.get_running_loop())
    run = cloud.client(keeper=caretaker.keeper).start_run(NAME)
    request = LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=cloud.clock.now() + timedelta(hours=1))
    await asyncio.to_thread(run.lease, request)

    async def look() -> Progress:
        return Progress.WORKING

    caretaker.hand_over(run, look)
    await asyncio.sleep(0)
    caretaker.take_over(run.key)
    assert not caretaker.kept
    while caretaker.keeper.beats:  # noqa: ASYNC110 - other threads end it
        await asyncio.sleep(0.01)
    await asyncio.to_thread(run.release)


async def test_a_lease_that_was_given_back_elsewhere_is_not_renewed(cloud):
    caretaker = Caretaker(asyncio.get_running_loop())
    run = cloud.client(keeper=caretaker.keeper).start_run(NAME)
    request = LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=cloud.clock.now() + timedelta(hours=1))
    await asyncio.to_thread(run.lease, request)
    await asyncio.to_thread(cloud.client().start_run(NAME).release)
    with pytest.raises(AccessDenied):  # the next beat sees it: the credential is revoked
        await asyncio.to_thread(run._heartbeat.beat)
    cloud.clock.sleep(cloud.settings.lease.renew_for_s + 1)

    async def look() -> Progress:
        return Progress.WORKING

    caretaker.hand_over(run, look)
    while caretaker.kept:  # noqa: ASYNC110 - other threads end it
        await asyncio.sleep(0.01)
