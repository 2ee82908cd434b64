"""The file that tells the ranks on a machine what to do: `/run/mlops/<run key>/job.json`, mode 0600, secrets inside.

It is sent over SSH standard input and lies in memory (tmpfs) only.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SecretStr, ValidationError

from mlops_sdk.canonical import to_json
from mlops_sdk.config import S3Settings
from mlops_sdk.errors import SettingsError
from mlops_sdk.training.plan import VARIABLE


class FileRef(BaseModel):
    """An object in the bucket and its SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    key: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int


class JobFile(BaseModel):
    """What one machine must know. `address` is that machine's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: uuid.UUID
    run_key: str
    attempt: int
    module: str
    args: dict[str, JsonValue]
    prefix: str
    address: str
    scratch: str
    s3: S3Settings
    secrets: dict[str, SecretStr] = Field(default_factory=dict[str, SecretStr])
    bundle: FileRef
    data: tuple[FileRef, ...] = ()

    def to_bytes(self) -> bytes:
        """The file's content, secrets in clear: only for standard input of SSH.

        What has its default is left out: an image's older library reads the file as long as nothing newer is in it.
        """
        return to_json(_reveal(self.model_dump(mode="python", exclude_defaults=True)))

    @classmethod
    def load(cls) -> JobFile:
        """Read the file that the environment names.

        Raises:
            SettingsError: not inside a job, or the file is unreadable.
        """
        path = os.environ.get(VARIABLE, "")
        if not path:
            raise SettingsError(
                "this process is not part of a job",
                seen=f"{VARIABLE} is not set",
                next_step="start the program through a launch",
            )
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except (OSError, ValidationError) as error:
            seen = str(error) if isinstance(error, OSError) else f"{error.error_count()} fields are wrong"
            raise SettingsError(f"job file {path!r} cannot be used", seen=seen, next_step="launch again") from None


def _reveal(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {str(k): _reveal(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_reveal(v) for v in value]
    return str(value) if isinstance(value, uuid.UUID) else value
