"""Where a built file of data lies on a worker: one folder for each builder and its arguments. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from mlops_sdk.canonical import to_json


def build_folder(cache: Path, build: str, arguments: Mapping[str, JsonValue]) -> Path:
    """A folder that depends on what is built alone, so that it is found again and others do not build into it."""
    return cache / "built" / hashlib.sha256(to_json([build, dict(arguments)])).hexdigest()[:16]
