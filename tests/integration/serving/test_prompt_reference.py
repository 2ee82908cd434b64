"""Which reference of prompts belongs to a version is told by the version, on the real MLflow and S3."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from mlops_sdk.client import Client
from mlops_sdk.config import Settings
from mlops_sdk.drift.store import get_reference
from mlops_sdk.errors import RegistryError
from mlops_sdk.journal import EntryKind
from mlops_sdk.registry.lineage import CheckpointRecord, GitState
from mlops_sdk.registry.mlflow_api import MlflowApi
from mlops_sdk.registry.models import register
from mlops_sdk.registry.registration import registered_by
from mlops_sdk.run import Run
from mlops_sdk.serving.registered import REFERENCE_TAG, keep_reference, name_reference, registered_model
from mlops_sdk.training.program import ProgramSpec
from mlops_sdk.training.trained import Trained, lineage_of
from support_drift import reference

pytestmark = [pytest.mark.stack, pytest.mark.slow]


@pytest.fixture
def client(settings: Settings) -> Client:
    client = Client(settings)
    client.store.ensure_bucket()
    return client


def a_training(run: Run, model_name: str) -> Trained:
    """What a finished training leaves in the run's journal."""
    trained = Trained(
        model_name=model_name,
        program=ProgramSpec(module="any.program"),
        generation=1,
        attempts=1,
        git=GitState(commit="c" * 40, dirty=False),
        nodes=(),
        allocations=("ml-abc-g1-0",),
        bits_per_byte=2.5,
        held_out={"python": 2.4},
        parameters=7,
        resumed_from=0,
        tokens_per_s=10.0,
        data_sha256="d" * 64,
        model_prefix=f"{run.prefix}/model",
        model_sha256="e" * 64,
        checkpoint=CheckpointRecord(key="k", sha256="f" * 64, step=3),
        packages={},
    )
    run.journal.append(EntryKind.OUTCOME, "train", generation=1, trained=trained.model_dump(mode="json"))
    return trained


def test_the_version_names_the_reference_that_its_prompts_are_counted_over(client: Client, tmp_path: Path):
    name = f"model-{uuid.uuid4().hex[:8]}"
    run = client.start_run(f"reference of {name}")
    trained = a_training(run, name)
    with pytest.raises(RegistryError, match="has not registered a model"):
        registered_model(client, run)
    (tmp_path / "config.json").write_text("{}")
    register(client.mlflow, name, tmp_path, lineage_of(client, run, trained))

    sha256 = keep_reference(client, ["python"], lambda kinds: reference(*kinds))
    name_reference(client, registered_model(client, run), sha256)

    assert get_reference(client.store, sha256).trained == ("python",)
    version = registered_by(client, run)
    reply = MlflowApi(client.mlflow).get("model-versions/get", name=name, version=str(version.version))
    tags = {tag["key"]: tag["value"] for tag in reply["model_version"]["tags"]}
    assert tags[REFERENCE_TAG] == sha256
    assert keep_reference(client, ["python"], lambda kinds: reference(*kinds)) == sha256  # again changes nothing
