"""What is normal for prompts is made before the model is there, and the same again is the same."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowFailException

from mlops_hooks.deployment import DeploymentHook
from mlops_operators import drift
from mlops_operators.drift import KeepReferenceOperator
from mlops_sdk.drift.store import get_reference
from mlops_sdk.testing.cloud import FakeCloud
from support_airflow import Task
from support_drift import reference


@pytest.fixture
def cloud(monkeypatch) -> FakeCloud:
    cloud = FakeCloud()
    monkeypatch.setattr(DeploymentHook, "client", lambda _hook: cloud.client())
    return cloud


def keep(named: str) -> Task:
    return Task(KeepReferenceOperator(task_id="keep_reference", reference=named, kinds=["python", "cpp"]))


def test_it_is_stored_under_its_hash_and_the_same_again_is_the_same(cloud, monkeypatch):
    monkeypatch.setattr(drift, "resolve", lambda _name: lambda kinds: reference(*kinds))
    task = keep("any.module:function")
    pushed = task.operator.execute(task.context())
    assert pushed["kinds"] == ["cpp", "python"]
    assert get_reference(cloud.client().store, pushed["sha256"]).trained == ("cpp", "python")
    assert task.operator.execute(task.context()) == pushed


def test_code_that_is_not_there_fails_at_once_and_is_named(cloud):
    task = keep("no_such_module:function")
    with pytest.raises(AirflowFailException, match="no_such_module"):
        task.operator.execute(task.context())
