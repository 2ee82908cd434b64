"""What is said about where a model comes from."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import pytest
from pydantic import ValidationError

from mlops_sdk.capacity.node import Node
from mlops_sdk.errors import RegistryError
from mlops_sdk.registry.lineage import (
    CheckpointRecord,
    CostRecord,
    GitState,
    LeaseRecord,
    Lineage,
    NodeRecord,
    metrics_of,
    params_of,
    tags_of,
)
from mlops_sdk.registry.provenance import git_state, package_versions

RUN = uuid.UUID(int=7)


def a_lineage() -> Lineage:
    nodes = [
        Node(
            id=f"id{i}",
            name=f"gpu-0{i}",
            index=i,
            address="10.0.0.1",
            host_public_key="ssh-ed25519 AAAA",
            image="train-1",
            driver="570.1",
            firmware=f"1.{i}",
        )
        for i in (1, 2)
    ]
    return Lineage(
        run_id=RUN,
        owner="ada",
        git=GitState(commit="c" * 40, dirty=False),
        data_sha256="1" * 64,
        model_sha256="2" * 64,
        lease=LeaseRecord(names=("ml-a-g2-0", "ml-a-g2-1"), generation=2),
        nodes=tuple(NodeRecord.of(node) for node in nodes),
        checkpoint=CheckpointRecord(key="k/manifest.json", sha256="3" * 64, step=240),
        packages={"torch": "2.13.0"},
        cost=CostRecord(node_seconds=240.0, amount=1.992, currency="EUR"),
        attempts=2,
        metrics={"bits_per_byte": 2.3},
        args={"steps": 240, "note": "x" * 9000},
    )


def test_lineage_reads_back_from_its_bytes():
    assert Lineage.model_validate_json(a_lineage().to_bytes()) == a_lineage()


def test_tags_say_run_code_data_machines_checkpoint_and_cost():
    tags = tags_of(a_lineage())
    assert tags["mlops.run_id"] == str(RUN)
    assert tags["mlops.generation"] == "2"
    assert tags["mlops.git_commit"] == "c" * 40
    assert tags["mlops.git_dirty"] == "false"
    assert tags["mlops.nodes"] == "gpu-01,gpu-02"
    assert tags["mlops.images"] == "train-1"
    assert tags["mlops.firmware"] == "1.1,1.2"
    assert tags["mlops.checkpoint_sha256"] == "3" * 64
    assert tags["mlops.cost"] == "1.9920 EUR"


def test_parameters_fit_what_mlflow_takes():
    params = params_of(a_lineage())
    assert params["steps"] == "240"
    assert params["version.torch"] == "2.13.0"
    assert len(params["note"]) == 500


def test_cost_is_a_metric():
    assert metrics_of(a_lineage()) == {
        "bits_per_byte": 2.3,
        "node_seconds": 240.0,
        "cost": 1.992,
        "checkpoint_step": 240.0,
    }


def test_a_hash_that_is_none_is_refused():
    with pytest.raises(ValidationError):
        CheckpointRecord(key="k", sha256="", step=1)


def test_no_address_or_key_of_a_machine_is_recorded():
    assert b"10.0.0.1" not in a_lineage().to_bytes()
    assert b"ssh-ed25519" not in a_lineage().to_bytes()


def test_git_state_of_a_checkout(tmp_path: Path):
    def git(*args: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *args], check=True)

    git("init", "-q")
    with pytest.raises(RegistryError, match="git state"):
        git_state(tmp_path)
    (tmp_path / "a.py").write_text("1\n")
    git("add", "a.py")
    git("commit", "-q", "-m", "one")
    clean = git_state(tmp_path)
    assert len(clean.commit) == 40
    assert not clean.dirty
    (tmp_path / "a.py").write_text("2\n")
    assert git_state(tmp_path) == GitState(commit=clean.commit, dirty=True)


def test_versions_of_what_is_installed():
    found = package_versions(["pydantic", "no-such-package-at-all"])
    assert list(found) == ["pydantic"]
