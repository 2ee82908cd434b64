"""The three chains of `benchmarks.loop`: each is started by a push and then by a drift, and the moments are noted."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.loop_marks import Interval, Round, Span, Task, deployments, tasks_of
from benchmarks.loop_serving import FirstAnswer, LoadWatch, end_stock_serving
from benchmarks.loop_stage import Stage
from benchmarks.loop_workload import DAGS, FLOOR_ASSET, MODEL, OURS_ASSET, WARM_UP_STEPS
from mlops_sdk.errors import MlopsError
from mlops_sdk.objects import connect_s3
from mlops_sdk.registry.mlflow_api import MlflowApi
from mlops_sdk.serving.deploy import withdraw
from mlops_sdk.training.context import result_key

DRIFT_EVENT: Final = {
    "alert": "benchmark",
    "report": "",
    "model": MODEL,
    "model_version": "",
    "closest": "python",
    "widen_to": ["python"],
}


def warm_up(stage: Stage) -> None:
    """A first model that is better than the 3-gram, and every cache of the stack filled; then nothing serves."""
    conf: dict[str, Any] = {
        "repository": str(stage.repository),
        "commit": stage.commit(),
        "program_arguments": {"steps": WARM_UP_STEPS, "evaluate_bytes": 100_000},
    }
    run_id = f"warm-up-{uuid.uuid4().hex[:8]}"
    stage.airflow.trigger(DAGS["ours"], run_id, conf)
    stage.finished("ours", run_id)
    asyncio.run(withdraw(stage.target))


def ours(stage: Stage) -> Round:
    """The loop as it is shipped: the webhook, then the asset event."""
    with LoadWatch(stage.target) as watch:
        run_id, received = stage.deliver_push("ours")
        stage.finished("ours", run_id)
        push = _pushed(stage, "ours", run_id, received)
        before = stage.champion()
        answer = FirstAnswer(stage.target.base_url, before=before)
        second, told = stage.emit("ours", OURS_ASSET, DRIFT_EVENT)
        stage.finished("ours", second)
        drift = Interval(began=told, ended=answer.wait(), parts=_drift_parts(stage, "ours", second, watch))
    asyncio.run(withdraw(stage.target))
    return Round(chain="ours", push=push, drift=drift, tasks=_tasks(stage, "ours", run_id, second))


def floor(stage: Stage) -> Round:
    """Empty tasks: the push's interval ends when `train` begins, the drift's when `deploy` has ended."""
    run_id, received = stage.deliver_push("floor")
    stage.finished("floor", run_id)
    second, told = stage.emit("floor", FLOOR_ASSET, DRIFT_EVENT)
    stage.finished("floor", second)
    tasks = _tasks(stage, "floor", run_id, second)
    train = next(task for task in tasks["push"] if task.name == "train")
    deploy = next(task for task in tasks["drift"] if task.name == "deploy")
    return Round(
        chain="floor",
        push=Interval(began=received, ended=train.began),
        drift=Interval(began=told, ended=deploy.ended),
        tasks=tasks,
    )


def stock(stage: Stage) -> Round:
    """Stock operators and sensors; whoever wants a turn posts a DAG run, as a CI system does."""
    with LoadWatch(stage.target) as watch:
        commit = stage.commit()
        run_id, asked = _post(stage, {"repository": str(stage.repository), "commit": commit})
        stage.finished("stock", run_id)
        push = _pushed(stage, "stock", run_id, asked)
        answer = FirstAnswer(stage.target.base_url, before=stage.champion())
        second, told = _post(stage, {})
        stage.finished("stock", second)
        drift = Interval(began=told, ended=answer.wait(), parts=_drift_parts(stage, "stock", second, watch))
    end_stock_serving(stage.target)
    asyncio.run(withdraw(stage.target))
    return Round(chain="stock", push=push, drift=drift, tasks=_tasks(stage, "stock", run_id, second))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    first_step: float
    ended: float


def _pushed(stage: Stage, chain: str, run_id: str, began: float) -> Interval:
    """From the push to the end of the first training step; Ironic's deployments are parts of it."""
    trained = _trained(stage, chain, run_id)
    return Interval(began=began, ended=trained.first_step, parts=deployments(stage.ironic_log()))


def _drift_parts(stage: Stage, chain: str, run_id: str, watch: LoadWatch) -> tuple[Span, ...]:
    """Ironic's deployments, the training and the load of the model."""
    trained = _trained(stage, chain, run_id)
    training = Span(what="training", began=trained.first_step, ended=trained.ended)
    return (*deployments(stage.ironic_log()), training, *watch.loads)


def _trained(stage: Stage, chain: str, run_id: str) -> _Trained:
    """The program's own first step (time of its metric in MLflow) and end (time of its result in S3)."""
    registered: dict[str, Any] = stage.airflow.xcom(DAGS[chain], run_id, "register")
    history = MlflowApi(stage.settings.mlflow).get(
        "metrics/get-history", run_id=str(registered["mlflow_run_id"]), metric_key="loss"
    )
    first = min(history["metrics"], key=lambda metric: int(metric["step"]))
    s3 = stage.settings.s3
    key = result_key(f"runs/{registered['run']}", 1)
    found = connect_s3(s3).list_objects_v2(Bucket=s3.bucket, Prefix=key).get("Contents", [])
    if not found:
        raise MlopsError(f"no result {key!r}", next_step="did the training need a second attempt?")
    ended = found[0].get("LastModified")
    return _Trained(first_step=int(first["timestamp"]) / 1000, ended=ended.timestamp() if ended else 0.0)


def _tasks(stage: Stage, chain: str, push: str, drift: str) -> dict[str, tuple[Task, ...]]:
    dag = DAGS[chain]
    return {
        "push": tasks_of(stage.airflow.tasks(dag, push)),
        "drift": tasks_of(stage.airflow.tasks(dag, drift)),
    }


def _post(stage: Stage, conf: dict[str, Any]) -> tuple[str, float]:
    run_id = f"ci-{uuid.uuid4().hex[:8]}"
    stage.airflow.dag_runs(DAGS["stock"])  # logged in
    asked = time.time()
    stage.airflow.trigger(DAGS["stock"], run_id, conf)
    return run_id, asked
