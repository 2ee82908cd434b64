"""Machines for data that is as expected: validate, lease, give back. The table by `conf`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, chain, dag

from mlops_operators.capacity import ProvisionOperator, ReleaseOperator
from mlops_operators.data import ValidateDataOperator

TABLE = "mlops_pipelines.programs.code_lm.table"
AGAIN: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(seconds=1)}


@dag(
    schedule=None,
    is_paused_upon_creation=False,
    params={"table": Param({}, type="object")},
    render_template_as_native_obj=True,
)
def validated() -> None:
    validate = ValidateDataOperator(
        task_id="validate_data", rows=f"{TABLE}:rows", suite=f"{TABLE}:SUITE", arguments="{{ params.table }}", **AGAIN
    )
    provision = ProvisionOperator(task_id="provision", nodes=1, resource_class="gpu.h200.8x", **AGAIN).as_setup()
    release = ReleaseOperator(task_id="release", **AGAIN).as_teardown(setups=provision)
    chain(validate, provision, release)


validated()
