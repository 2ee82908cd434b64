"""The operator that runs a commit's tests, and the plugin that mounts the receiver."""

import subprocess
from types import SimpleNamespace

import pytest
from airflow.plugins_manager import AirflowPlugin
from airflow.sdk.exceptions import AirflowFailException
from fastapi import FastAPI
from fastapi.testclient import TestClient

from mlops_operators.base import MlopsOperator
from mlops_operators.plugin import MlopsPlugin
from mlops_operators.tests import RunTestsOperator
from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.objects import ObjectStore
from mlops_sdk.testing.memory_s3 import MemoryS3


@pytest.fixture
def store(monkeypatch):
    made = ObjectStore(MemoryS3(), "bucket")
    client = SimpleNamespace(store=made)
    monkeypatch.setattr(MlopsOperator, "hook", SimpleNamespace(client=lambda: client))
    return made


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_SOURCE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "code"
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    return folder


def committed(folder, test):
    (folder / "test_it.py").write_text(test)
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "a test"], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def operator(folder, commit):
    return RunTestsOperator(task_id="run_tests", repository=str(folder), commit=commit, paths=["test_it.py"])


@pytest.mark.slow
def test_a_green_commit_is_pushed_back_with_its_log(store, repository):
    commit = committed(repository, "def test_it():\n    pass\n")
    result = operator(repository, commit).execute({})
    assert result == {
        "repository": str(repository),
        "commit": commit,
        "summary": result["summary"],
        "log": f"s3://bucket/tests/{commit}/1.log",
    }
    assert result["summary"].startswith("1 passed")


def test_a_red_commit_fails_at_once_and_says_why(store, repository):
    commit = committed(repository, "def test_it():\n    assert 'what it is' == 'what it should be'\n")
    with pytest.raises(AirflowFailException, match="what it should be") as failed:
        operator(repository, commit).execute({})
    assert f"s3://bucket/tests/{commit}/1.log" in str(failed.value)


def test_a_repository_that_does_not_answer_is_tried_again_and_a_commit_that_is_not_there_is_not(store, repository):
    committed(repository, "")
    with pytest.raises(ServiceUnavailable):
        operator(repository.with_name("elsewhere"), "1" * 40).execute({})
    with pytest.raises(AirflowFailException, match="is not in"):
        operator(repository, "1" * 40).execute({})
    with pytest.raises(AirflowFailException, match="not a commit"):
        operator(repository, "main").execute({})


def test_what_says_which_code_is_templated():
    assert {"repository", "commit", "paths"} <= set(RunTestsOperator.template_fields)


def test_the_plugin_mounts_a_receiver_that_refuses_while_it_has_no_settings(monkeypatch):
    for name in ("MLOPS_WEBHOOK_CONFIG", "MLOPS_WEBHOOK_INBOX_URL", "MLOPS_WEBHOOK_SECRETS"):
        monkeypatch.delenv(name, raising=False)
    assert issubclass(MlopsPlugin, AirflowPlugin)
    app = FastAPI()
    for mounted in MlopsPlugin.fastapi_apps:
        app.mount(mounted["url_prefix"], mounted["app"])
    assert TestClient(app).post("/webhooks/github", content=b"{}").status_code == 503
