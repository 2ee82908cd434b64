"""Trigger rows in Airflow's database, by its own models: run with Airflow's environment.

    python -m benchmarks.waits_rows < spec.json     {"kind", "run_names", "wait_s", "figures"}

One DAG run with as many mapped instances of one deferred task as there are waits, each with a trigger of its own: what
the api-server writes when a task defers.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any, Final

from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.sdk import DAG
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy import select

from benchmarks.waits_triggers import LagTrigger, PerNodeTrigger, SharedTrigger
from mlops_operators.capacity import WaitForMachinesOperator

_BUNDLE: Final = "benchmark"
_CONNECTIONS: Final = {
    "openstack_conn_id": "mlops_openstack",
    "s3_conn_id": "mlops_s3",
    "mlflow_conn_id": "mlops_mlflow",
}
_KINDS: Final = {"shared": SharedTrigger, "per node": PerNodeTrigger}
_CHUNK: Final = 1000


def make(kind: str, run_names: list[str], wait_s: float, figures: str) -> None:
    """One waiting task for each of the runs, and one whose trigger measures the event loop."""
    with DAG("waits", schedule=None) as dag:
        task = WaitForMachinesOperator(task_id="wait", run_name="")
    lazy = LazyDeserializedDAG.from_dag(dag)
    with create_session() as session:
        session.add(DagBundleModel(name=_BUNDLE))
        session.flush()
        SerializedDAG.bulk_write_to_db(_BUNDLE, None, [lazy], session=session)
        SerializedDagModel.write_dag(lazy, bundle_name=_BUNDLE, session=session)
        session.flush()
        stored = session.scalars(select(SerializedDagModel)).one()
        run_id, now = "manual__waits", datetime.now(UTC)
        run = DagRun(
            dag_id=dag.dag_id,
            run_id=run_id,
            run_after=now,
            start_date=now,
            state=DagRunState.RUNNING,
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
        )
        run.created_dag_version_id = stored.dag_version_id
        session.add(run)
        session.flush()
        serialized_task = stored.dag.get_task(task.task_id)
        waits = [
            _KINDS[kind](generation=1, nodes=1, wait_s=wait_s, run_name=name, **_CONNECTIONS) for name in run_names
        ]
        lag = LagTrigger(figures=figures, run_name="", **_CONNECTIONS)
        for number, trigger in enumerate([lag, *waits], start=-1):
            row = Trigger.from_object(trigger)
            waiting = TaskInstance(
                serialized_task,
                stored.dag_version_id,
                run_id=run_id,
                state=TaskInstanceState.DEFERRED,
                map_index=len(waits) if number < 0 else number,
            )
            waiting.start_date = now
            waiting.next_method = "ready"
            waiting.trigger = row
            session.add(waiting)
            if number % _CHUNK == _CHUNK - 1:
                session.flush()


if __name__ == "__main__":
    spec: dict[str, Any] = json.load(sys.stdin)
    make(spec["kind"], spec["run_names"], spec["wait_s"], spec["figures"])
