"""What our settings have in common: environment variables over a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, ClassVar

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from mlops_sdk.errors import SettingsError


class LayeredSettings(BaseSettings):
    """Environment variables over what the constructor is given (a file's content); nothing else is read.

    Attributes:
        reads_environment: Whether environment variables count.
    """

    reads_environment: ClassVar[bool] = True

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """As `pydantic_settings` asks for it: the first source that has a field counts."""
        del settings_cls, dotenv_settings, file_secret_settings
        return (env_settings, init_settings) if cls.reads_environment else (init_settings,)


def read_toml(path: Path, *, next_step: str) -> dict[str, Any]:
    """The content of a settings file.

    Raises:
        SettingsError: it cannot be read, or is not TOML; nothing of its content is repeated.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        seen = error.strerror or type(error).__name__
    except ValueError:
        seen = "it is not TOML"
    raise SettingsError(f"the settings file {str(path)!r} cannot be read", seen=seen, next_step=next_step)
