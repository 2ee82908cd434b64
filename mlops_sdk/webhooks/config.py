"""The settings of receiver and dispatcher.

Read, later over earlier: defaults, the TOML file that ``MLOPS_WEBHOOK_CONFIG`` names, environment variables
``MLOPS_WEBHOOK_<FIELD>`` (lists and mappings as JSON).
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariable

from mlops_sdk.errors import SettingsError, SourceError
from mlops_sdk.invalid import wrong_fields
from mlops_sdk.layered import LayeredSettings, read_toml
from mlops_sdk.source import check_clone_url
from mlops_sdk.webhooks.entry import Retention
from mlops_sdk.webhooks.routing import Route

CONFIG_VARIABLE: Final = "MLOPS_WEBHOOK_CONFIG"
_SHORTEST_SECRET: Final = 16


class AirflowAccess(BaseModel):
    """Where the dispatcher starts runs, and as whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://")
    username: str
    password: SecretStr


class WebhookSettings(LayeredSettings):
    """What receiver, dispatcher and `mlops webhooks` share.

    Attributes:
        inbox_url: SQLAlchemy URL of the inbox; may hold a password.
        secrets: Those that sign deliveries: one, or two while one replaces the other.
        max_bytes: A larger body is refused before it is read.
        read_timeout_s: A body that takes longer to arrive is refused.
        keep_ignored_days: How long an event that started nothing is remembered.
        keep_pushes_days: How long a push that was started or failed is remembered (see `Retention`).
        routes: Repository full name -> what its pushes start.
        airflow: For the dispatcher only.
    """

    model_config = SettingsConfigDict(
        env_prefix="MLOPS_WEBHOOK_", env_nested_delimiter="__", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    inbox_url: SecretStr
    secrets: tuple[SecretStr, ...] = Field(default=(), max_length=2)
    max_bytes: int = Field(default=5 * 1024 * 1024, gt=0)
    read_timeout_s: float = Field(default=10.0, gt=0)
    keep_ignored_days: float = Field(default=30.0, gt=0)
    keep_pushes_days: float = Field(default=365.0, gt=0)
    routes: dict[str, Route] = Field(default_factory=dict[str, Route])
    airflow: AirflowAccess | None = None

    @field_validator("secrets")
    @classmethod
    def _long_enough(cls, secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(secret.get_secret_value()) < _SHORTEST_SECRET for secret in secrets):
            raise ValueError(f"a secret has fewer than {_SHORTEST_SECRET} characters")
        return secrets

    @field_validator("routes")
    @classmethod
    def _clonable(cls, routes: dict[str, Route]) -> dict[str, Route]:
        for name, route in routes.items():
            try:
                check_clone_url(route.clone_url)
            except SourceError as error:
                raise ValueError(f"{name}: {error}") from None
        return routes

    @classmethod
    def load(cls, path: Path | None = None) -> WebhookSettings:
        """Read the settings.

        Raises:
            SettingsError: naming file and field; no value is repeated.
        """
        named = path or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
        data = read_toml(named, next_step=f"correct the file, or {CONFIG_VARIABLE}") if named is not None else {}
        try:
            return cls(**data)
        except ValidationError as error:
            seen = wrong_fields(error)
        except UnreadableVariable as error:
            seen = str(error)
        raise SettingsError(
            f"the webhook settings ({str(named) if named else 'no file'}, MLOPS_WEBHOOK_* variables) cannot be used",
            seen=seen,
            next_step=f"set the named fields in the environment or in the file that {CONFIG_VARIABLE} names",
        )

    @property
    def retention(self) -> Retention:
        """How long the inbox remembers what is settled."""
        return Retention(ignored=timedelta(days=self.keep_ignored_days), pushes=timedelta(days=self.keep_pushes_days))

    def live_secrets(self) -> tuple[bytes, ...]:
        """The secrets that are valid now, as the signature scheme takes them.

        Raises:
            SettingsError: there is none: without one anybody could start a run.
        """
        if not self.secrets:
            raise SettingsError(
                "the webhook receiver has no secret", next_step="set MLOPS_WEBHOOK_SECRETS to a JSON list of one or two"
            )
        return tuple(secret.get_secret_value().encode() for secret in self.secrets)
