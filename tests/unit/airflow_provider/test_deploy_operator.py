"""Deploying as Airflow drives it: what the trigger's row holds, what fails at once, what is tried again."""

from __future__ import annotations

import json

import pytest
from airflow.sdk.exceptions import AirflowFailException

from mlops_hooks.deployment import DeploymentHook
from mlops_operators.failures import error_to_json
from mlops_operators.serving import DeployOperator
from mlops_operators.triggers.serving import DeployTrigger
from mlops_sdk.errors import RolledBack, ServingError
from mlops_sdk.testing.cloud import FakeCloud
from support_airflow import Task

NAME = "retrain_lm/r1"
ROW = {
    "run_name": NAME,
    "openstack_conn_id": "mlops_openstack",
    "s3_conn_id": "mlops_s3",
    "mlflow_conn_id": "mlops_mlflow",
    "vllm_conn_id": "mlops_vllm",
    "reference": "ab" * 32,
}


@pytest.fixture
def cloud(monkeypatch) -> FakeCloud:
    cloud = FakeCloud()
    monkeypatch.setattr(DeploymentHook, "client", lambda _hook: cloud.client())
    return cloud


def deploy() -> Task:
    return Task(DeployOperator(task_id="deploy", run_name=NAME))


@pytest.mark.parametrize("began", [False, True])
def test_without_a_registered_model_it_fails_at_once(cloud, began):
    if began:
        cloud.client().start_run(NAME)
    expected = "has not finished a training" if began else f"there is no run '{NAME}'"
    task = deploy()
    with pytest.raises(AirflowFailException, match=expected):
        task.operator.execute(task.context())


def test_the_row_of_its_trigger_holds_names_only_and_makes_it_again():
    path, arguments = DeployTrigger(**ROW).serialize()
    assert path == "mlops_operators.triggers.serving.DeployTrigger"
    assert json.loads(json.dumps(arguments)) == ROW
    assert DeployTrigger(**arguments).serialize() == (path, arguments)


def test_a_version_that_was_taken_back_is_not_tried_again_but_a_host_that_was_away_is():
    task = deploy()
    refused = error_to_json(
        RolledBack("version '2' was not rolled out; version '1' still serves", seen="exit status 1")
    )
    with pytest.raises(AirflowFailException, match="version '1' still serves; seen: exit status 1"):
        task.operator.deployed(task.context(), {"error": refused})
    away = error_to_json(ServingError("another roll-out is at work on 'serve-1'"))
    with pytest.raises(ServingError, match="another roll-out"):
        task.operator.deployed(task.context(), {"error": away})


def test_it_pushes_where_the_model_is_served():
    task = deploy()
    event = {"endpoint": "http://10.0.0.5:8000/v1", "model": "code-lm", "version": "2", "slot": "green"}
    assert task.operator.deployed(task.context(), event) == event
