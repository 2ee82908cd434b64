"""What is recorded about the code: the git state of a checkout and versions of installed packages."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Iterable
from pathlib import Path

from mlops_sdk.errors import RegistryError
from mlops_sdk.registry.lineage import GitState


def git_state(folder: Path) -> GitState:
    """The commit that is checked out in `folder`, and whether tracked files differ from it.

    Raises:
        RegistryError: `folder` is not in a git checkout with a commit.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    return GitState(commit=commit, dirty=bool(_git(folder, "status", "--porcelain", "--untracked-files=no")))


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed here."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(folder: Path, *args: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=False)
    except OSError as error:
        raise _no_git(folder, str(error)) from error
    if done.returncode != 0:
        raise _no_git(folder, done.stderr.strip())
    return done.stdout.strip()


def _no_git(folder: Path, seen: str) -> RegistryError:
    return RegistryError(
        f"the git state of {str(folder)!r} cannot be told",
        seen=seen,
        next_step="run from a checkout with at least one commit: a model's lineage names the code it came from",
    )
