"""Register a model in MLflow, once, however often it is tried.

A registration is one MLflow run and one model version, both found by the tags ``mlops.run_id`` and
``mlops.generation``. Everything is looked up before it is made, so a crash at any point is repaired by trying again.
"""

from __future__ import annotations

import time
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import stamina

from mlops_sdk.config import MlflowSettings
from mlops_sdk.errors import RegistryError, ServiceUnavailable
from mlops_sdk.registry.lineage import Lineage, identity_tags, metrics_of, params_of, tags_of
from mlops_sdk.registry.mlflow_api import MlflowApi, MlflowFailure, tag_list

T = TypeVar("T")
_ATTEMPTS = 5
_MODEL = "model"
_LINEAGE = "lineage.json"
_EXISTS = "RESOURCE_ALREADY_EXISTS"


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowRun:
    """A run in MLflow. `artifacts` is where its artifacts are (``mlflow-artifacts:/...``)."""

    id: str
    experiment_id: str
    artifacts: str
    started_ms: int

    def page(self, settings: MlflowSettings) -> str:
        """Where a person looks at it."""
        return f"{settings.tracking_uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredModel:
    """A registered model version. `source` is where its files are, `uri` how to ask MLflow for it."""

    name: str
    version: int
    mlflow_run_id: str
    source: str

    @property
    def uri(self) -> str:
        """As the mlflow package and its users write it."""
        return f"models:/{self.name}/{self.version}"

    def page(self, settings: MlflowSettings) -> str:
        """Where a person looks at it."""
        name = urllib.parse.quote(self.name, safe="")
        return f"{settings.tracking_uri.rstrip('/')}/#/models/{name}/versions/{self.version}"


def ensure_run(
    settings: MlflowSettings, run_id: uuid.UUID, generation: int, *, experiment: str, name: str = ""
) -> MlflowRun:
    """The MLflow run of a generation of a run; made if there is none. Metrics of the training may go to it meanwhile.

    Raises:
        ServiceUnavailable: no answer after some tries.
        AccessDenied: wrong user or password.
        RegistryError: MLflow refused.
    """
    api = MlflowApi(settings)
    tags = identity_tags(run_id, generation)
    return trying(experiment, lambda: _ensure_run(api, tags, experiment, name or str(run_id)))


def register(
    settings: MlflowSettings, name: str, model_dir: Path, lineage: Lineage, *, experiment: str = ""
) -> RegisteredModel:
    """Register the model in `model_dir` under `name` with its lineage.

    Files become artifacts of the MLflow run below ``model/``, beside ``lineage.json``; the version's source is that
    folder. Idempotent per run id and generation.

    Args:
        settings: The MLflow server.
        name: Of the registered model.
        model_dir: A model in Hugging Face layout (see `fetch_model` for one in the bucket).
        lineage: Where it comes from.
        experiment: Of the MLflow run; default: `name`.

    Raises:
        ServiceUnavailable: no answer after some tries.
        AccessDenied: wrong user or password.
        RegistryError: MLflow refused, or the folder has no files.
    """
    files = sorted(path for path in model_dir.rglob("*") if path.is_file())
    if not files:
        raise RegistryError(f"{str(model_dir)!r} has no files to register", next_step="export the model first")
    api = MlflowApi(settings)
    tags = identity_tags(lineage.run_id, lineage.lease.generation)

    def once() -> RegisteredModel:
        run = _ensure_run(api, tags, experiment or name, f"{name} {lineage.run_id}")
        _put_artifacts(api, run, model_dir, files, lineage)
        _log(api, run, lineage)
        model = _ensure_version(api, name, run, lineage)
        api.post("runs/update", run_id=run.id, status="FINISHED", end_time=_now_ms())
        return model

    return trying(name, once)


def find_version(settings: MlflowSettings, name: str, run_id: uuid.UUID, generation: int) -> RegisteredModel | None:
    """The model version that a generation of a run registered, if it did."""
    api = MlflowApi(settings)
    wanted = identity_tags(run_id, generation)
    found = trying(name, lambda: [v for v in _versions(api, name) if wanted.items() <= tags_of_version(v).items()])
    return _model(found[0]) if found else None


def tags_of_version(version: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a model version, as the API gives it."""
    return {str(tag["key"]): str(tag["value"]) for tag in version.get("tags", [])}


def trying(name: str, step: Callable[[], T]) -> T:
    """Do a step that may be repeated as a whole, until MLflow answers or the attempts are used up."""
    try:
        for attempt in stamina.retry_context(on=ServiceUnavailable, attempts=_ATTEMPTS, timeout=None, wait_initial=0.5):
            with attempt:
                return step()
    except MlflowFailure as failure:
        raise RegistryError(
            f"model {name!r} could not be registered: {failure.action}",
            seen=f"{failure.status} {failure.code} {failure.message}".strip(),
            next_step="see the MLflow server's log; registering again continues where it stopped",
        ) from failure
    raise RegistryError(f"model {name!r} was not registered", next_step="register it again")


def _ensure_run(api: MlflowApi, tags: Mapping[str, str], experiment: str, name: str) -> MlflowRun:
    experiment_id = _ensure_experiment(api, experiment)
    if not _find_runs(api, experiment_id, tags):
        api.post("runs/create", experiment_id=experiment_id, run_name=name, start_time=_now_ms(), tags=tag_list(tags))
    first, *others = _find_runs(api, experiment_id, tags)
    for other in others:  # a lost reply, or two at once: all keep the oldest
        api.post("runs/delete", run_id=other.id)
    return first


def _ensure_experiment(api: MlflowApi, name: str) -> str:
    try:
        api.post("experiments/create", name=name)
    except MlflowFailure as failure:
        if failure.code != _EXISTS:
            raise
    return str(api.get("experiments/get-by-name", experiment_name=name)["experiment"]["experiment_id"])


def _find_runs(api: MlflowApi, experiment_id: str, tags: Mapping[str, str]) -> list[MlflowRun]:
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = api.post("runs/search", experiment_ids=[experiment_id], filter=query, max_results=100).get("runs", [])
    runs = [
        MlflowRun(
            id=str(run["info"]["run_id"]),
            experiment_id=experiment_id,
            artifacts=str(run["info"]["artifact_uri"]),
            started_ms=int(run["info"]["start_time"]),
        )
        for run in found
    ]
    return sorted(runs, key=lambda run: (run.started_ms, run.id))


def _put_artifacts(api: MlflowApi, run: MlflowRun, folder: Path, files: list[Path], lineage: Lineage) -> None:
    for path in files:
        api.put_artifact(run.artifacts, f"{_MODEL}/{path.relative_to(folder).as_posix()}", path)
    api.put_artifact(run.artifacts, _LINEAGE, lineage.to_bytes())


def _log(api: MlflowApi, run: MlflowRun, lineage: Lineage) -> None:
    now = _now_ms()
    step = lineage.checkpoint.step
    metrics = [{"key": k, "value": v, "timestamp": now, "step": step} for k, v in metrics_of(lineage).items()]
    api.post(
        "runs/log-batch",
        run_id=run.id,
        tags=tag_list(tags_of(lineage)),
        params=tag_list(params_of(lineage)),
        metrics=metrics,
    )


def _ensure_version(api: MlflowApi, name: str, run: MlflowRun, lineage: Lineage) -> RegisteredModel:
    try:
        api.post("registered-models/create", name=name)
    except MlflowFailure as failure:
        if failure.code != _EXISTS:
            raise
    tags = tags_of(lineage)
    if not _versions_of(api, name, run):
        source = f"{run.artifacts}/{_MODEL}"
        api.post("model-versions/create", name=name, source=source, run_id=run.id, tags=tag_list(tags))
    first, *others = _versions_of(api, name, run)
    for other in others:  # as with runs
        api.delete("model-versions/delete", name=name, version=other["version"])
    for key, value in tags.items():
        if tags_of_version(first).get(key) != value:
            api.post("model-versions/set-tag", name=name, version=first["version"], key=key, value=value)
    return _model(first)


def _versions_of(api: MlflowApi, name: str, run: MlflowRun) -> list[dict[str, Any]]:
    found = [version for version in _versions(api, name) if version.get("run_id") == run.id]
    return sorted(found, key=lambda version: int(version["version"]))


def _versions(api: MlflowApi, name: str) -> list[dict[str, Any]]:
    quoted = name.replace("'", "''")
    found: list[dict[str, Any]] = []
    token = ""
    while True:
        reply = api.get("model-versions/search", filter=f"name='{quoted}'", max_results="200", page_token=token)
        found.extend(reply.get("model_versions", []))
        token = str(reply.get("next_page_token", ""))
        if not token:
            return found


def _model(version: Mapping[str, Any]) -> RegisteredModel:
    return RegisteredModel(
        name=str(version["name"]),
        version=int(version["version"]),
        mlflow_run_id=str(version["run_id"]),
        source=str(version["source"]),
    )


def _now_ms() -> int:
    return int(time.time() * 1000)
