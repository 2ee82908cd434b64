"""One turn of the loop as this project ships it (`dags/retrain_lm.py`), with the benchmark's small workload."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import dag

from benchmarks.loop_workload import DAGS, MODEL, LoopSpec
from mlops_operators.drift import drift_asset
from mlops_pipelines.groups import params_of, turn_of_the_loop


@dag(
    dag_id=DAGS["ours"],
    schedule=[drift_asset(MODEL)],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    params=params_of(LoopSpec),
)
def loop_ours() -> None:
    """One turn."""
    turn_of_the_loop(MODEL, data_repository="{{ conn.mlops_data.host }}")


loop_ours()
