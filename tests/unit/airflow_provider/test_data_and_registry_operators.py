"""Validate, pin, register and gate as Airflow drives them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from mlops_hooks.deployment import DeploymentHook
from mlops_operators import registry as registry_operators
from mlops_operators.data import PinDataOperator, ValidateDataOperator
from mlops_operators.registry import GateOperator, RegisterModelOperator
from mlops_operators.tests import RunTestsOperator
from mlops_sdk.data import validation
from mlops_sdk.errors import GateRefused, ServiceUnavailable
from mlops_sdk.registry.gate import GateBounds, decide
from mlops_sdk.registry.models import RegisteredModel
from mlops_sdk.testing.cloud import FakeCloud
from support_airflow import Task

TABLE = "mlops_pipelines.programs.code_lm.table"
NAME = "retrain_lm/r1"


@pytest.fixture
def cloud(monkeypatch) -> FakeCloud:
    cloud = FakeCloud()
    monkeypatch.setattr(DeploymentHook, "client", lambda _hook: cloud.client())
    return cloud


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, object]:
    for number in range(3):
        (tmp_path / f"m{number}.py").write_text(f"x = {number}\n")
    return {"kinds": ["python"], "roots": {"python": str(tmp_path)}}


def a_result(*, good: bool) -> dict[str, object]:
    config = {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "sha256"}}
    seen = {"unexpected_count": 2, "partial_unexpected_list": ["ab", "ab"]}
    return {"success": good, "results": [{"success": good, "expectation_config": config, "result": seen}]}


def test_what_an_upstream_task_pushes_can_be_an_argument():
    with DAG("d", schedule=None):
        upstream = RunTestsOperator(task_id="t", repository="r", commit="c", paths=())
        validate = ValidateDataOperator(task_id="v", rows="m:r", suite="m:s", arguments=upstream.output)
        pin = PinDataOperator(task_id="p", build="m:b", repository="r", arguments={"kinds": upstream.output["x"]})
    assert validate.upstream_task_ids == pin.upstream_task_ids == {"t"}


def test_a_result_is_a_reference_to_what_is_in_the_bucket(cloud, corpus, monkeypatch):
    monkeypatch.setattr(validation, "check", lambda _rows, _suite: a_result(good=True))
    task = ValidateDataOperator(task_id="v", rows=f"{TABLE}:rows", suite=f"{TABLE}:SUITE", arguments=corpus)
    told = task.execute({})
    assert set(told) == {"uri", "sha256", "bytes", "kind", "success"}
    body = cloud.client().store.get(f"validations/{told['sha256']}.json")
    assert hashlib.sha256(body).hexdigest() == told["sha256"]
    assert json.loads(body)["rows"] == 3


def test_bad_data_fails_the_task_at_once_in_words(cloud, corpus, monkeypatch):
    monkeypatch.setattr(validation, "check", lambda _rows, _suite: a_result(good=False))
    task = ValidateDataOperator(task_id="v", rows=f"{TABLE}:rows", suite=f"{TABLE}:SUITE", arguments=corpus)
    with pytest.raises(AirflowFailException, match=r"DataRejected: .*unique of 'sha256': 2 wrong, such as 'ab'"):
        task.execute({})


def test_a_builder_that_does_not_exist_is_named_and_not_tried_again(cloud):
    task = ValidateDataOperator(task_id="v", rows="nothing.here:rows", suite=f"{TABLE}:SUITE")
    with pytest.raises(AirflowFailException, match=r"'nothing\.here:rows' cannot be found"):
        task.execute({})


@pytest.mark.parametrize("operator", [RegisterModelOperator, GateOperator])
def test_without_a_run_there_is_nothing_to_register_or_judge(cloud, operator):
    with pytest.raises(AirflowFailException, match=r"there is no run 'retrain_lm/r1'"):
        operator(task_id="t", run_name=NAME).execute({})
    cloud.client().start_run(NAME)
    with pytest.raises(AirflowFailException, match="has not finished a training"):
        operator(task_id="t", run_name=NAME).execute({})


def test_what_is_registered_is_told_in_plain_values(cloud, monkeypatch):
    run = cloud.client().start_run(NAME)
    model = RegisteredModel(name="code-lm", version=3, mlflow_run_id="ab", source="mlflow-artifacts:/x")
    monkeypatch.setattr(registry_operators, "register_trained", lambda _client, _run: model)
    task = Task(RegisterModelOperator(task_id="t", run_name=NAME))
    assert task.operator.execute(task.context()) == {
        "name": "code-lm",
        "version": 3,
        "uri": "models:/code-lm/3",
        "mlflow_run_id": "ab",
        "run": run.key,
    }
    address = f"{cloud.client().mlflow.tracking_uri}/#/models/code-lm/versions/3"
    assert task.ti.pushed == {"_link_ModelVersionLink": address}


def test_the_gates_bound_may_be_a_template_and_its_answers_are_final(cloud, monkeypatch):
    cloud.client().start_run(NAME)
    asked: list[float] = []

    def answer(_client, _run, bounds: GateBounds):
        asked.append(bounds.worse_by)
        if len(asked) == 2:
            raise GateRefused("no", seen="python: worse")
        if len(asked) == 3:
            raise ServiceUnavailable("MLflow is down")
        return decide({"python": 2.0}, {"python": 2.1}, bounds, knows=["python"])

    monkeypatch.setattr(registry_operators, "admit_trained", answer)
    gate = GateOperator(task_id="t", run_name=NAME, worse_by="0.1")
    verdict = gate.execute({})
    assert verdict["passed"] is True
    assert json.loads(json.dumps(verdict)) == verdict
    with pytest.raises(AirflowFailException, match="GateRefused: no; seen: python: worse"):
        gate.execute({})
    with pytest.raises(ServiceUnavailable):  # tried again
        gate.execute({})
    assert asked == [0.1] * 3
