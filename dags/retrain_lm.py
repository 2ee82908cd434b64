"""One turn of the loop: from a commit, or from drift, to a code model that serves. A push starts it, or a person."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import dag

from mlops_operators.drift import drift_asset
from mlops_pipelines.groups import params_of, turn_of_the_loop
from mlops_pipelines.specs import RetrainSpec

MODEL = "code-lm"


@dag(
    schedule=[drift_asset(MODEL)],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    params=params_of(RetrainSpec),
    tags=["mlops"],
    doc_md=__doc__,
)
def retrain_lm() -> None:
    """One turn."""
    turn_of_the_loop(MODEL, data_repository="{{ conn.mlops_data.host }}")


retrain_lm()
