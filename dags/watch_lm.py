"""Looks once a minute at what users send to the code model; a drift sets off `retrain_lm`."""

from __future__ import annotations

import datetime as dt

from airflow.sdk import dag

from mlops_operators.drift import DetectDriftOperator


@dag(
    schedule=dt.timedelta(minutes=1),
    start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    dagrun_timeout=dt.timedelta(minutes=10),
    tags=["mlops"],
    doc_md=__doc__,
)
def watch_lm() -> None:
    """One look."""
    DetectDriftOperator(
        task_id="detect_drift",
        model="code-lm",
        retries=2,
        retry_delay=dt.timedelta(seconds=15),
        execution_timeout=dt.timedelta(minutes=2),
    )


watch_lm()
