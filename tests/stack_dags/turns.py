"""A turn of the loop from its machines on: lease, train, give back, register, gate, roll out. All by `conf`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, chain, dag

from mlops_operators.capacity import ProvisionOperator, ReleaseOperator
from mlops_operators.registry import GateOperator, RegisterModelOperator
from mlops_operators.serving import DeployOperator
from mlops_operators.training import TrainOperator

COMMON: dict[str, Any] = {
    "retries": 5,
    "retry_delay": timedelta(seconds=2),
    "openstack_conn_id": "{{ params.openstack }}",
    "s3_conn_id": "{{ params.s3 }}",
    "mlflow_conn_id": "{{ params.mlflow }}",
}
PARAMS = {
    "nodes": Param(1, type="integer"),
    "wait_s": Param(5, type="number"),
    "model": Param("code-lm", type="string"),
    "program": Param({}, type="object"),
    "code": Param("", type="string"),
    "data": Param({}, type="object"),
    "openstack": Param("mlops_openstack", type="string"),
    "s3": Param("mlops_s3", type="string"),
    "mlflow": Param("mlops_mlflow", type="string"),
}


@dag(schedule=None, is_paused_upon_creation=False, params=PARAMS, render_template_as_native_obj=True)
def turns() -> None:
    provision = ProvisionOperator(
        task_id="provision",
        nodes="{{ params.nodes }}",
        resource_class="gpu.h200.8x",
        wait_s="{{ params.wait_s }}",
        **COMMON,
    ).as_setup()
    train = TrainOperator(
        task_id="train",
        model_name="{{ params.model }}",
        program="{{ params.program }}",
        code="{{ params.code }}",
        data="{{ params.data }}",
        **COMMON,
    )
    release = ReleaseOperator(task_id="release", **COMMON).as_teardown(setups=provision)
    chain(provision, train, release)
    register = RegisterModelOperator(task_id="register", **COMMON)
    gate = GateOperator(task_id="gate", **COMMON)
    chain(train, register, gate, DeployOperator(task_id="deploy", **COMMON))


turns()
