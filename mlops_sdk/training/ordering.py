"""Prepare a training so that any process can start it: code sent, MLflow run made, all written into the journal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_sdk.registry.models import ensure_run
from mlops_sdk.registry.provenance import git_state
from mlops_sdk.source import SourceRef, checkout, default_cache
from mlops_sdk.training.bundle import put_bundle
from mlops_sdk.training.program import ProgramSpec
from mlops_sdk.training.spec import DataRef
from mlops_sdk.training.trained import TrainingOrder, order

if TYPE_CHECKING:
    from mlops_sdk.client import Client
    from mlops_sdk.run import Run


def place_order(
    client: Client,
    run: Run,
    *,
    model_name: str,
    program: ProgramSpec,
    code: SourceRef | Path,
    data: Sequence[DataRef] = (),
    data_revision: str = "",
    cache: Path | None = None,
) -> TrainingOrder:
    """Order a training. Idempotent: everything is look-up-or-create; the newest order counts.

    Args:
        client: The deployment.
        run: Whose training it is.
        model_name: Of the model that it is for; also MLflow's experiment.
        program: What runs.
        code: One commit of a repository, or a checkout on this machine.
        data: The inputs.
        data_revision: The commit that pins the data.
        cache: Of checkouts; default `source.default_cache()`.

    Raises:
        SourceError: there is no such commit.
        BundleError, SettingsError: the code cannot be sent.
        ServiceUnavailable: S3, MLflow or the repository does not answer.
    """
    folder = checkout(code, cache or default_cache()) if isinstance(code, SourceRef) else code
    git = git_state(folder)
    if isinstance(code, SourceRef):
        git = git.model_copy(update={"repository": code.repository})
    tracking = ensure_run(client.mlflow, run.id, run.generation, experiment=model_name, name=run.name)
    wanted = TrainingOrder(
        model_name=model_name,
        program=program,
        bundle=put_bundle(run.store, source=folder),
        data=tuple(data),
        git=git,
        data_revision=data_revision,
        tracking_run_id=tracking.id,
        tracking_url=tracking.page(client.mlflow),
    )
    order(run, wanted)
    return wanted
