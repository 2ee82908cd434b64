"""The champion: the model version that serves. In MLflow it is the version under the alias of our environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mlops_sdk.config import MlflowSettings
from mlops_sdk.errors import RegistryError
from mlops_sdk.registry.mlflow_api import MlflowApi
from mlops_sdk.registry.models import tags_of_version, trying

_HELD_OUT = TypeAdapter(dict[str, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """The version that serves.

    Attributes:
        name: Of the registered model.
        version: Its number.
        model_prefix: Where its files are in the bucket.
        model_sha256: Hash of their manifest.
        repository: Clone URL of the code that it was trained from, empty if none was recorded.
        commit: Of that code.
        held_out: Bits per byte per kind, as measured when it was trained; its kinds are those it was trained on.
    """

    name: str
    version: int
    model_prefix: str
    model_sha256: str
    repository: str = ""
    commit: str = ""
    held_out: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it was trained on."""
        return tuple(sorted(self.held_out))

    def argument(self) -> dict[str, str]:
        """What a training program needs to evaluate it beside its own model."""
        return {"prefix": self.model_prefix, "sha256": self.model_sha256}


def read_champion(settings: MlflowSettings, name: str) -> Champion | None:
    """The champion of a model, or None while nothing serves.

    Raises:
        ServiceUnavailable: no answer after some tries.
        AccessDenied: wrong user or password.
        RegistryError: MLflow refused, or the version does not say what it is.
    """
    found = trying(name, lambda: _aliased(MlflowApi(settings), name, settings.alias))
    return None if found is None else _champion(found, settings.alias)


def set_champion(settings: MlflowSettings, name: str, version: int) -> None:
    """Make a version the champion: after its roll-out, never before. Doing it again changes nothing.

    Raises:
        ServiceUnavailable: no answer after some tries.
        RegistryError: there is no such version.
    """
    api = MlflowApi(settings)
    trying(name, lambda: api.post("registered-models/alias", name=name, alias=settings.alias, version=str(version)))


def tag_version(settings: MlflowSettings, name: str, version: int, tags: Mapping[str, str]) -> None:
    """Write on a version what became of it, for people who look at it in MLflow."""
    api = MlflowApi(settings)

    def write() -> None:
        for key, value in tags.items():
            api.post("model-versions/set-tag", name=name, version=str(version), key=key, value=value)

    trying(name, write)


def _aliased(api: MlflowApi, name: str, alias: str) -> dict[str, Any] | None:
    """Through the search: asked for the alias of a model that does not exist, MLflow says that we lack a permission."""
    quoted = name.replace("'", "''")
    found = api.get("registered-models/search", filter=f"name='{quoted}'").get("registered_models", [])
    versions = [a["version"] for model in found for a in model.get("aliases", []) if a["alias"] == alias]
    if not versions:
        return None
    return dict(api.get("model-versions/get", name=name, version=str(versions[0]))["model_version"])


def _champion(version: Mapping[str, Any], alias: str) -> Champion:
    tags = tags_of_version(version)
    try:
        return Champion(
            name=str(version["name"]),
            version=int(version["version"]),
            model_prefix=tags["mlops.model_prefix"],
            model_sha256=tags["mlops.model_sha256"],
            repository=tags.get("mlops.git_repository", ""),
            commit=tags["mlops.git_commit"],
            held_out=_HELD_OUT.validate_json(tags["mlops.held_out"]),
        )
    except (KeyError, ValidationError, json.JSONDecodeError) as error:
        raise RegistryError(
            f"version {version.get('version')!r} of model {version.get('name')!r} is the {alias}, but says too little",
            seen=f"tag {error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0],
            next_step=f"give the alias {alias!r} to a version that this library registered, or remove it",
        ) from error
