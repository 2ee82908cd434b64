"""Registration against the real MLflow server."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stamina
from pydantic import SecretStr

from mlops_sdk.config import MlflowSettings
from mlops_sdk.errors import AccessDenied, RegistryError, ServiceUnavailable
from mlops_sdk.registry import models
from mlops_sdk.registry.lineage import (
    CheckpointRecord,
    CostRecord,
    GitState,
    LeaseRecord,
    Lineage,
    NodeRecord,
    identity_tags,
    tags_of,
)
from mlops_sdk.registry.mlflow_api import MlflowApi
from mlops_sdk.registry.models import ensure_run, find_version, register

pytestmark = pytest.mark.stack


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    return folder


@pytest.fixture
def name() -> str:
    return f"model-{uuid.uuid4().hex[:8]}"


def a_lineage(run_id: uuid.UUID | None = None, *, generation: int = 1, node_seconds: float = 120.0) -> Lineage:
    node = NodeRecord(
        id="n1", name="gpu-01", resource_class="gpu.h200.8x", image="train-1", driver="570.1", firmware="1.2"
    )
    return Lineage(
        run_id=run_id or uuid.uuid4(),
        owner="ada",
        git=GitState(commit="0" * 40, dirty=True),
        data_sha256="1" * 64,
        model_sha256="2" * 64,
        lease=LeaseRecord(names=("ml-abc-g1-0",), generation=generation),
        nodes=(node,),
        checkpoint=CheckpointRecord(key="runs/abc/checkpoints/step-00000240/manifest.json", sha256="3" * 64, step=240),
        packages={"torch": "2.13.0"},
        cost=CostRecord(node_seconds=node_seconds, amount=1.5, currency="EUR"),
        attempts=2,
        metrics={"bits_per_byte": 2.3, "baseline_bits_per_byte": 2.7},
        args={"steps": 240, "learning_rate": 0.003},
    )


def all_runs(settings: MlflowSettings, lineage: Lineage) -> list[models.MlflowRun]:
    api = MlflowApi(settings)
    experiments = api.post("experiments/search", max_results=1000)["experiments"]
    tags = identity_tags(lineage.run_id, lineage.lease.generation)
    return [run for e in experiments for run in models._find_runs(api, e["experiment_id"], tags)]


def download(settings: MlflowSettings, root: str, name: str) -> bytes:
    folder = root.removeprefix("mlflow-artifacts:").strip("/")
    return MlflowApi(settings)._send("GET", f"/api/2.0/mlflow-artifacts/artifacts/{folder}/{name}", None, None, "")


def test_a_model_is_registered_with_its_files_and_lineage(stack, model_dir: Path, name: str):
    lineage = a_lineage()
    model = register(stack.settings.mlflow, name, model_dir, lineage)
    assert (model.name, model.version, model.uri) == (name, 1, f"models:/{name}/1")
    for path in model_dir.iterdir():
        assert download(stack.settings.mlflow, model.source, path.name) == path.read_bytes()
    assert find_version(stack.settings.mlflow, name, lineage.run_id, 1) == model

    api = MlflowApi(stack.settings.mlflow)
    run = api.get("runs/get", run_id=model.mlflow_run_id)["run"]
    root = run["info"]["artifact_uri"]
    assert Lineage.model_validate_json(download(stack.settings.mlflow, root, "lineage.json")) == lineage
    assert run["info"]["status"] == "FINISHED"
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert tags_of(lineage).items() <= tags.items()
    assert {m["key"]: m["value"] for m in run["data"]["metrics"]}["bits_per_byte"] == 2.3
    assert {p["key"]: p["value"] for p in run["data"]["params"]}["version.torch"] == "2.13.0"


def test_registering_again_changes_nothing_but_what_is_new(stack, model_dir: Path, name: str):
    lineage = a_lineage()
    first = register(stack.settings.mlflow, name, model_dir, lineage)
    again = register(stack.settings.mlflow, name, model_dir, a_lineage(lineage.run_id, node_seconds=180.0))
    assert again == first
    assert len(all_runs(stack.settings.mlflow, lineage)) == 1
    reply = MlflowApi(stack.settings.mlflow).get("model-versions/get", name=name, version="1")
    assert {t["key"]: t["value"] for t in reply["model_version"]["tags"]}["mlops.node_seconds"] == "180.0"


def test_a_later_generation_is_another_version(stack, model_dir: Path, name: str):
    lineage = a_lineage()
    register(stack.settings.mlflow, name, model_dir, lineage)
    later = register(stack.settings.mlflow, name, model_dir, a_lineage(lineage.run_id, generation=2))
    assert later.version == 2


def test_the_run_that_took_the_metrics_of_the_training_is_used(stack, model_dir: Path, name: str):
    lineage = a_lineage()
    early = ensure_run(stack.settings.mlflow, lineage.run_id, 1, experiment=name)
    assert register(stack.settings.mlflow, name, model_dir, lineage).mlflow_run_id == early.id


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.slow), "after"])
def test_a_crash_at_any_request_and_a_retry_give_one_run_and_one_version(
    stack, model_dir: Path, name: str, when: str, monkeypatch: pytest.MonkeyPatch
):
    send = MlflowApi._send
    count = 0

    def dying(k: int) -> Callable[..., bytes]:
        def send_or_die(api: MlflowApi, *args: Any) -> bytes:
            nonlocal count
            count += 1
            if count == k and when == "before":
                raise Killed
            reply = send(api, *args)
            if count == k:
                raise Killed
            return reply

        return send_or_die

    k = 0
    while True:
        k += 1
        count = 0
        lineage = a_lineage()
        monkeypatch.setattr(MlflowApi, "_send", dying(k))
        try:
            register(stack.settings.mlflow, f"{name}-{k}", model_dir, lineage, experiment=name)
        except Killed:
            monkeypatch.setattr(MlflowApi, "_send", send)
        else:
            break
        model = register(stack.settings.mlflow, f"{name}-{k}", model_dir, lineage, experiment=name)
        assert len(all_runs(stack.settings.mlflow, lineage)) == 1
        assert len(models._versions(MlflowApi(stack.settings.mlflow), f"{name}-{k}")) == 1
        assert model.version == 1
    assert k > 8


def test_a_server_that_is_down_is_a_clear_error_and_the_next_try_succeeds(stack, model_dir: Path, name: str):
    lineage = a_lineage()
    with stack.held("mlflow"):
        started = time.monotonic()
        with stamina.set_testing(True, attempts=2), pytest.raises(ServiceUnavailable, match="MLflow") as caught:
            register(stack.settings.mlflow, name, model_dir, lineage)
        assert time.monotonic() - started < 20
        assert stack.settings.mlflow.password.get_secret_value() not in str(caught.value)
    assert register(stack.settings.mlflow, name, model_dir, lineage).version == 1


def test_a_server_that_comes_back_in_time_is_waited_for(
    stack, model_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    send = MlflowApi._send
    failures = iter([True, True])

    def flaky(api: MlflowApi, *args: Any) -> bytes:
        if next(failures, False):
            raise ServiceUnavailable("MLflow is starting")
        return send(api, *args)

    monkeypatch.setattr(MlflowApi, "_send", flaky)
    assert register(stack.settings.mlflow, name, model_dir, a_lineage()).version == 1


def test_a_wrong_password_is_access_denied(stack, model_dir: Path, name: str):
    wrong = stack.settings.mlflow.model_copy(update={"password": SecretStr("not-the-password")})
    with pytest.raises(AccessDenied, match=r"mlflow\.username"):
        register(wrong, name, model_dir, a_lineage())


def test_what_mlflow_refuses_is_said_in_its_words(stack, model_dir: Path):
    with pytest.raises(RegistryError, match="INVALID_PARAMETER_VALUE"):
        register(stack.settings.mlflow, "a/b:c", model_dir, a_lineage(), experiment=f"e-{uuid.uuid4().hex[:6]}")
