"""Serve what a run has registered: the last step of a turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from mlops_sdk.client import Client
from mlops_sdk.drift.on_host import prompt_profiler
from mlops_sdk.drift.profile import Reference
from mlops_sdk.drift.store import get_reference, put_reference
from mlops_sdk.journal import EntryKind
from mlops_sdk.registry.champion import set_champion, tag_version
from mlops_sdk.registry.registration import registered_by, trained_by
from mlops_sdk.run import Run
from mlops_sdk.serving.deploy import OnStep, Options, roll_out
from mlops_sdk.serving.target import Deployed, ServedModel, VllmTarget

REFERENCE_TAG = "mlops.prompt_reference"


def registered_model(client: Client, run: Run) -> ServedModel:
    """The model version that a run has registered, as a roll-out wants it.

    Raises:
        RegistryError: it has registered none.
    """
    trained, version = trained_by(run), registered_by(client, run)
    return ServedModel(
        name=version.name,
        version=str(version.version),
        prefix=trained.model_prefix,
        sha256=trained.model_sha256,
    )


def keep_reference(client: Client, kinds: Iterable[str], reference: Callable[[Iterable[str]], Reference]) -> str:
    """Make and store what is normal for the prompts of a model that is trained on these kinds of text; its hash.

    The model need not be there yet: this takes seconds, and can be done while machines train.

    Args:
        client: The deployment.
        kinds: Of text.
        reference: Makes it from them.
    """
    return put_reference(client.store, reference(sorted(kinds)))


def name_reference(client: Client, model: ServedModel, sha256: str) -> None:
    """Say on a version in MLflow which reference its prompts are counted over: tag ``mlops.prompt_reference``."""
    tag_version(client.mlflow, model.name, int(model.version), {REFERENCE_TAG: sha256})


async def deploy_registered(
    client: Client, run: Run, target: VllmTarget, *, reference: str = "", tell: OnStep | None = None
) -> Deployed:
    """Roll out what a run has registered; when it serves, it is the champion. Idempotent; does not block the loop.

    Args:
        client: The deployment.
        run: Whose model.
        target: Where to.
        reference: Hash of the stored reference by which served prompts are profiled; empty: they are not. The version
            says it in MLflow, tag ``mlops.prompt_reference``.
        tell: As for `roll_out`.

    Raises:
        RolledBack, ServingError: as `roll_out`; the champion stays who it was.
        RegistryError: the run has registered no model.
    """
    model = await asyncio.to_thread(registered_model, client, run)
    options = Options()
    if reference:
        options = Options(middleware=prompt_profiler(await asyncio.to_thread(get_reference, client.store, reference)))
        await asyncio.to_thread(name_reference, client, model, reference)
    deployed = await roll_out(target, model, client.settings.s3, options, tell=tell)
    await asyncio.to_thread(_crown, client, run, deployed)
    return deployed


def _crown(client: Client, run: Run, deployed: Deployed) -> None:
    set_champion(client.mlflow, deployed.model, int(deployed.version))
    generation = trained_by(run).generation
    run.journal.note(EntryKind.OUTCOME, "deploy", deployed.endpoint, generation=generation, version=deployed.version)
