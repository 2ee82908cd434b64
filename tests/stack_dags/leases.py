"""One lease and one training on it, given back by a teardown: provision, train, release. All by `conf`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag

from mlops_operators.capacity import ProvisionOperator, ReleaseOperator
from mlops_operators.training import TrainOperator

COMMON: dict[str, Any] = {
    "retries": 2,
    "retry_delay": timedelta(seconds=1),
    "openstack_conn_id": "{{ params.openstack }}",
}
PARAMS = {
    "openstack": Param("mlops_openstack", type="string"),
    "nodes": Param(1, type="integer"),
    "wait_s": Param(5, type="number"),
    "priority": Param("normal", type="string"),
    "preemptible": Param(False, type="boolean"),
    "program": Param({}, type="object"),
    "code": Param("", type="string"),
    "data": Param({}, type="object"),
}


@dag(schedule=None, is_paused_upon_creation=False, params=PARAMS, render_template_as_native_obj=True)
def leases() -> None:
    provision = ProvisionOperator(
        task_id="provision",
        nodes="{{ params.nodes }}",
        resource_class="gpu.h200.8x",
        wait_s="{{ params.wait_s }}",
        priority="{{ params.priority }}",
        preemptible="{{ params.preemptible }}",
        **COMMON,
    ).as_setup()
    train = TrainOperator(
        task_id="train",
        model_name="code-lm",
        program="{{ params.program }}",
        code="{{ params.code }}",
        data="{{ params.data }}",
        **COMMON,
    )
    release = ReleaseOperator(task_id="release", **COMMON).as_teardown(setups=provision)
    provision >> train >> release


leases()
