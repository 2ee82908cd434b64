"""The files of an exported model in the bucket: ``<prefix>/manifest.json`` lists each with length and SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from mlops_sdk.errors import RegistryError
from mlops_sdk.objects import ObjectStore, to_json

MANIFEST = "manifest.json"


class FileRecord(BaseModel):
    """Length and hash of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ModelManifest(BaseModel):
    """What an exported model consists of; `about` is what the program says of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    files: dict[str, FileRecord]
    about: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A verified model on disk; `sha256` is the hash of its manifest."""

    folder: Path
    manifest: ModelManifest
    sha256: str


def upload_model(store: ObjectStore, prefix: str, folder: Path, about: Mapping[str, JsonValue] | None = None) -> str:
    """Store all files of `folder` below `prefix`, the manifest last; returns the manifest's SHA-256."""
    files: dict[str, FileRecord] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST:
            continue
        files[name] = FileRecord(bytes=path.stat().st_size, sha256=_sha256(path))
        store.upload(f"{prefix}/{name}", path)
    body = to_json(ModelManifest(files=files, about=dict(about or {})).model_dump(mode="json"))
    store.put(f"{prefix}/{MANIFEST}", body)
    return hashlib.sha256(body).hexdigest()


def fetch_model(store: ObjectStore, prefix: str, folder: Path, *, sha256: str = "") -> ModelFolder:
    """Bring an exported model into `folder` and verify every file.

    Args:
        store: The bucket.
        prefix: ``runs/<run key>/model``.
        folder: Where to; made if missing.
        sha256: What the manifest's hash has to be, if known.

    Raises:
        RegistryError: the manifest or a file is missing or is not what was exported.
    """
    manifest, digest = read_manifest(store, prefix, sha256=sha256)
    for name, record in manifest.files.items():
        _fetch(store, f"{prefix}/{name}", folder / name, record)
    return ModelFolder(folder=folder, manifest=manifest, sha256=digest)


def read_manifest(store: ObjectStore, prefix: str, *, sha256: str = "") -> tuple[ModelManifest, str]:
    """The manifest of an exported model, and its hash.

    Raises:
        RegistryError: it is missing, is not what was exported, or names a file outside its folder.
    """
    key = f"{prefix}/{MANIFEST}"
    body = store.get(key)
    if body is None:
        raise RegistryError(f"there is no exported model: {key!r}", next_step="see whether the job finished its export")
    digest = hashlib.sha256(body).hexdigest()
    if sha256 and digest != sha256:
        raise _damaged(key, sha256, digest)
    try:
        manifest = ModelManifest.model_validate_json(body)
    except ValidationError as error:
        raise RegistryError(
            f"model manifest {key!r} cannot be read",
            seen=f"{error.error_count()} fields are wrong",
            next_step="export the model again",
        ) from error
    for name in manifest.files:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise RegistryError(f"model manifest {key!r} names {name!r}", next_step="export the model again")
    return manifest, digest


def _fetch(store: ObjectStore, key: str, path: Path, record: FileRecord) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    store.download(key, path)
    digest = _sha256(path)
    if digest != record.sha256:
        raise _damaged(key, record.sha256, digest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(key: str, expected: str, seen: str) -> RegistryError:
    return RegistryError(
        f"model file {key!r} is not what was exported",
        seen=f"expected SHA-256 {expected}, got {seen}",
        next_step="export the model again",
    )
