"""What a run has trained already: registered, judged, rolled out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import chain, dag

from mlops_operators.registry import GateOperator, RegisterModelOperator
from mlops_operators.serving import DeployOperator

AGAIN: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(seconds=1)}


@dag(schedule=None, is_paused_upon_creation=False)
def served() -> None:
    register = RegisterModelOperator(task_id="register", **AGAIN)
    chain(register, GateOperator(task_id="gate", **AGAIN), DeployOperator(task_id="deploy", **AGAIN))


served()
