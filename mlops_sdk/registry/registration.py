"""From a finished training to a registered version, and from that to a candidate for serving."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mlops_sdk.capacity.accounts import cost_of_run, tag_versions
from mlops_sdk.client import Client
from mlops_sdk.errors import GateRefused, RegistryError
from mlops_sdk.journal import EntryKind
from mlops_sdk.registry.admission import Candidate, admit
from mlops_sdk.registry.gate import GateBounds, Verdict
from mlops_sdk.registry.model_files import fetch_model
from mlops_sdk.registry.models import RegisteredModel, find_version, register
from mlops_sdk.run import Run
from mlops_sdk.training.trained import Trained, lineage_of, remembered


def register_trained(client: Client, run: Run) -> RegisteredModel:
    """Register what a run has trained, with its lineage and what it cost so far; once, however often it is tried.

    Raises:
        RegistryError: nothing was trained, the model is damaged, or MLflow refused.
        ServiceUnavailable: S3 or MLflow gives no answer.
    """
    trained = trained_by(run)
    with tempfile.TemporaryDirectory(prefix="mlops-model-") as folder:
        model = fetch_model(run.store, trained.model_prefix, Path(folder), sha256=trained.model_sha256)
        lineage = lineage_of(client, run, trained)
        registered = register(client.mlflow, trained.model_name, model.folder, lineage)
    run.journal.note(EntryKind.OUTCOME, "register", registered.uri, generation=trained.generation)
    tag_versions(client, cost_of_run(client, run.key))
    return registered


def admit_trained(client: Client, run: Run, bounds: GateBounds) -> Verdict:
    """Let the gate decide on what a run has registered; the verdict goes into the run's journal and onto the version.

    Raises:
        GateRefused: it may not serve; with the table of figures.
        RegistryError: nothing was registered, or MLflow refused.
        ServiceUnavailable: S3 or MLflow gives no answer.
    """
    trained = trained_by(run)
    version = registered_by(client, run)
    try:
        verdict = admit(client.mlflow, candidate_of(trained, version), bounds)
    except GateRefused as refusal:
        run.journal.note(EntryKind.OUTCOME, "gate", version.uri, generation=trained.generation, refused=refusal.seen)
        raise
    run.journal.note(EntryKind.OUTCOME, "gate", version.uri, generation=trained.generation, passed=verdict.reasons)
    return verdict


def candidate_of(trained: Trained, version: RegisteredModel) -> Candidate:
    """A registered version with the losses that its training measured."""
    champion = trained.program.arguments.get("champion")
    return Candidate(
        name=version.name,
        version=version.version,
        held_out=trained.held_out,
        baseline_held_out=trained.baseline_held_out,
        champion_held_out=trained.champion_held_out,
        champion_sha256=str(champion["sha256"]) if isinstance(champion, dict) else "",
    )


def run_named(client: Client, name: str) -> Run:
    """The run by this name.

    Raises:
        RegistryError: it never began.
    """
    run = client.find(name)
    if run is None:
        raise RegistryError(f"there is no run {name!r}", next_step="train before registering")
    return run


def registered_by(client: Client, run: Run) -> RegisteredModel:
    """The model version that a run has registered.

    Raises:
        RegistryError: it has registered none.
    """
    trained = trained_by(run)
    version = find_version(client.mlflow, trained.model_name, run.id, trained.generation)
    if version is None:
        raise RegistryError(
            f"run {run.key!r} has not registered a model", next_step="register it before the gate and the roll-out"
        )
    return version


def trained_by(run: Run) -> Trained:
    """The finished training of a run.

    Raises:
        RegistryError: there is none.
    """
    trained = remembered(run)
    if trained is None:
        raise RegistryError(f"run {run.key!r} has not finished a training", next_step="train before registering")
    return trained
