"""What a ``module:name`` refers to: how operators are told of builders that live in packages above them."""

from __future__ import annotations

import importlib
from typing import Any

from mlops_sdk.errors import SettingsError


def resolve(reference: str) -> Any:
    """The object; its module is imported now and not before.

    Never pass on what comes from outside: whoever chooses the reference chooses what runs.

    Raises:
        SettingsError: there is no such module or name.

    Example:
        >>> resolve("math:pi")
        3.141592653589793
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SettingsError(
            f"{reference!r} cannot be found",
            seen=str(error),
            next_step="name an importable module and something in it, as module:name",
        ) from error
