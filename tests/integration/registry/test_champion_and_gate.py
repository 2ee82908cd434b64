"""The champion's alias and the gate, on the real MLflow."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from mlops_sdk.errors import GateRefused, RegistryError
from mlops_sdk.registry.admission import Candidate, admit
from mlops_sdk.registry.champion import Champion, read_champion, set_champion, tag_version
from mlops_sdk.registry.gate import GateBounds, Verdict
from mlops_sdk.registry.lineage import CheckpointRecord, CostRecord, GitState, LeaseRecord, Lineage
from mlops_sdk.registry.mlflow_api import MlflowApi
from mlops_sdk.registry.models import RegisteredModel, register

pytestmark = pytest.mark.stack

BASELINE = {"python": 2.9, "cpp": 2.6}


@pytest.fixture
def name() -> str:
    return f"model-{uuid.uuid4().hex[:8]}"


def registered(stack: Any, folder: Path, name: str, sha256: str, held_out: dict[str, float]) -> RegisteredModel:
    (folder / "config.json").write_text("{}")
    run_id = uuid.uuid4()
    lineage = Lineage(
        run_id=run_id,
        owner="ada",
        git=GitState(commit="0" * 40, dirty=False, repository="https://example.org/code.git"),
        data_sha256="1" * 64,
        data_revision="4" * 40,
        model_sha256=sha256,
        model_prefix=f"runs/{run_id}/model",
        lease=LeaseRecord(names=("ml-abc-g1-0",), generation=1),
        nodes=(),
        checkpoint=CheckpointRecord(key="k", sha256="3" * 64, step=240),
        packages={},
        cost=CostRecord(node_seconds=1.0, amount=0.1, currency="EUR"),
        attempts=1,
        metrics={},
        held_out=held_out,
        baseline_held_out=BASELINE,
    )
    return register(stack.settings.mlflow, name, folder, lineage)


def a_candidate(model: RegisteredModel, held_out: dict[str, float], champion: Champion | None) -> Candidate:
    return Candidate(
        name=model.name,
        version=model.version,
        held_out=held_out,
        baseline_held_out={kind: BASELINE[kind] for kind in held_out},
        champion_held_out={"python": 2.0, "cpp": 3.5} if champion else {},
        champion_sha256=champion.model_sha256 if champion else "",
    )


def tags(stack: Any, model: RegisteredModel) -> dict[str, str]:
    reply = MlflowApi(stack.settings.mlflow).get("model-versions/get", name=model.name, version=str(model.version))
    return {tag["key"]: tag["value"] for tag in reply["model_version"]["tags"]}


def test_a_worse_candidate_is_refused_and_the_champion_stays(stack: Any, name: str, tmp_path: Path):
    mlflow, bounds = stack.settings.mlflow, GateBounds(worse_by=0.05)
    assert read_champion(mlflow, name) is None  # no such model
    first = registered(stack, tmp_path, name, "a" * 64, {"python": 2.0})
    assert read_champion(mlflow, name) is None  # no alias
    assert admit(mlflow, a_candidate(first, {"python": 2.0}, None), bounds).reference == "baseline"
    assert read_champion(mlflow, name) is None  # the gate moves nothing
    set_champion(mlflow, name, first.version)
    champion = read_champion(mlflow, name)
    assert champion is not None
    assert (champion.version, champion.kinds, champion.commit) == (1, ("python",), "0" * 40)
    assert champion.repository == "https://example.org/code.git"
    assert champion.argument() == {"prefix": champion.model_prefix, "sha256": "a" * 64}

    worse_figures = {"python": 2.2, "cpp": 2.4}  # good at what is new, and forgot some of what it knew
    worse = registered(stack, tmp_path, name, "b" * 64, worse_figures)
    with pytest.raises(GateRefused) as caught:
        admit(mlflow, a_candidate(worse, worse_figures, champion), bounds)
    assert "python: 10.0% worse (2.200 against 2.000); beyond the 5.0% that is allowed" in caught.value.seen
    assert "refused" in caught.value.seen.splitlines()[-1]
    assert read_champion(mlflow, name) == champion
    assert tags(stack, worse)["mlops.gate"] == "refused"
    assert not Verdict.model_validate_json(tags(stack, worse)["mlops.gate_verdict"]).passed

    better_figures = {"python": 2.05, "cpp": 2.4}
    better = registered(stack, tmp_path, name, "c" * 64, better_figures)
    assert admit(mlflow, a_candidate(better, better_figures, champion), bounds).against == f"{name}/1"
    assert tags(stack, better)["mlops.gate"] == "passed"
    set_champion(mlflow, name, better.version)
    set_champion(mlflow, name, better.version)
    now = read_champion(mlflow, name)
    assert now is not None
    assert (now.version, now.kinds) == (3, ("cpp", "python"))


def test_a_champion_that_says_too_little_is_an_error_not_a_guess(stack: Any, name: str, tmp_path: Path):
    model = registered(stack, tmp_path, name, "a" * 64, {"python": 2.0})
    tag_version(stack.settings.mlflow, name, model.version, {"mlops.held_out": "?"})
    set_champion(stack.settings.mlflow, name, model.version)
    with pytest.raises(RegistryError, match="champion"):
        read_champion(stack.settings.mlflow, name)
    with pytest.raises(RegistryError, match="RESOURCE_DOES_NOT_EXIST"):
        set_champion(stack.settings.mlflow, name, 99)
