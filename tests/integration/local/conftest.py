"""Fixtures of tests that start stacks of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Short: Unix sockets below it have paths of at most 108 bytes."""
    path = Path(f"/tmp/mlops-test-{os.getpid()}")  # noqa: S108 - named by our own process id, removed below
    yield path
    shutil.rmtree(path, ignore_errors=True)
