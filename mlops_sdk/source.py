"""The code that a run is about: exactly one commit of one repository, checked out once, tested as itself."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from mlops_sdk.errors import RedCommit, ServiceUnavailable, SourceError

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_HTTPS: Final = re.compile(r"https://[A-Za-z0-9.-]+(:[0-9]+)?/[^\s@]+")
_SSH: Final = re.compile(r"ssh://([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9.][A-Za-z0-9.-]*(:[0-9]+)?/[^\s]+")
_SCP: Final = re.compile(r"git@[A-Za-z0-9.][A-Za-z0-9.-]*:[^\s-][^\s]*")
_FILE: Final = re.compile(r"(file://)?/[^\s]*")
_GIT_TIMEOUT_S: Final = 600.0
_LAST_LINES: Final = 12
_LAST_CHARACTERS: Final = 500
# What a test needs of its surroundings. Everything else, and so every secret of the deployment, stays outside.
_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "SSL_CERT_FILE")

# pytest, in a process that ends with the one that started it (PR_SET_PDEATHSIG), however that ends.
_TESTS: Final = """\
import ctypes, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRef:
    """One commit of one repository.

    Args:
        repository: Clone URL: https, ssh, ``git@host:path``, or an absolute local path. Without a password in it.
        commit: Forty hexadecimal digits.

    Raises:
        SourceError: one of them is something else.
    """

    repository: str
    commit: str

    def __post_init__(self) -> None:
        check_clone_url(self.repository)
        if _COMMIT.fullmatch(self.commit) is None:
            raise SourceError(
                f"{self.commit!r} is not a commit", next_step="give all forty digits of it, not a branch or a tag"
            )


def check_clone_url(url: str) -> None:
    """Refuse what is not a plain address of a repository.

    Raises:
        SourceError: another scheme, an option, or a URL with a password in it.
    """
    if not any(form.fullmatch(url) for form in (_HTTPS, _SSH, _SCP, _FILE)):
        raise SourceError(
            "this is not a clone URL that is allowed",
            seen=repr(re.sub(r"//[^/]*@", "//...@", url)[:200]),
            next_step="give https://, ssh://, git@host:path or an absolute path; leave passwords to git's helpers",
        )


def checkout(source: SourceRef, cache: Path) -> Path:
    """The folder with exactly that commit; fetched at most once, and shared: nobody may write into it.

    Any number of processes may ask at once. A folder that no longer equals its commit is replaced.

    Args:
        source: What to check out.
        cache: One bare clone per repository and one folder per commit are kept here.

    Raises:
        ServiceUnavailable: the repository cannot be read.
        SourceError: it has no such commit.
    """
    repository = cache.resolve() / _slug(source.repository)
    folder = repository / source.commit
    if _is_exactly(folder, source.commit):
        return folder
    repository.mkdir(parents=True, exist_ok=True)
    with _locked(repository / "lock"):
        if _is_exactly(folder, source.commit):
            return folder
        bare = _fetched(source, repository / "bare.git")
        if folder.exists():
            folder.rename(repository / f"replaced-{uuid.uuid4().hex}")
        _materialise(bare, source.commit, folder)
    return folder


def default_cache() -> Path:
    """Where checkouts are kept: `MLOPS_SOURCE_CACHE`, else below the user's cache folder."""
    return Path(os.environ.get("MLOPS_SOURCE_CACHE") or Path.home() / ".cache" / "mlops" / "source")


@contextmanager
def throwaway(source: SourceRef, cache: Path) -> Generator[Path]:
    """A copy of the commit that may be written into, for the time of a block: for programs that are run in it."""
    shared = checkout(source, cache)
    with tempfile.TemporaryDirectory(prefix="mlops-source-") as directory:
        folder = Path(directory) / "code"
        _materialise(shared, source.commit, folder)
        yield folder


def test_program(
    folder: Path,
    paths: Sequence[str],
    log: Path,
    *,
    timeout_s: float = 1800.0,  # noqa: PT028 - not a test
    on_start: Callable[[int], None] = lambda _group: None,  # noqa: PT028 - as above
) -> str:
    """Run the tests of a checkout with pytest, importing the checkout's own packages, and not those installed here.

    The tests get a minimal environment: no variable of the deployment, a home of their own. That keeps its secrets out
    of their sight, not out of the reach of somebody who means harm: what is pushed runs as this user.

    Args:
        folder: The source tree.
        paths: What pytest is given, relative to it.
        log: All output is appended here.
        timeout_s: They are ended after this time.
        on_start: Told the process group of the tests: whoever kills it ends them.

    Returns:
        pytest's last line, for example ``37 passed in 19.43s``.

    Raises:
        RedCommit: they failed, took too long, or there are none.
        SourceError: a path is an option, or leaves the tree.
    """
    for path in paths:
        if path.startswith("-") or not (folder / path.partition("::")[0]).resolve().is_relative_to(folder.resolve()):
            raise SourceError(f"{path!r} is not a path inside the source tree", next_step="give relative paths")
    argv = [sys.executable, "-c", _TESTS, "-q", "-p", "no:cacheprovider", *paths]
    with log.open("a") as stream, tempfile.TemporaryDirectory(prefix="mlops-home-") as home:
        status = _run(
            argv, folder, _environment(folder, Path(home)), log=stream, timeout_s=timeout_s, on_start=on_start
        )
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if status != 0:
        why = f"exit status {status}" if status is not None else f"not done after {timeout_s:.0f} s"
        raise RedCommit(
            f"the tests of the program failed ({why})",
            seen=" | ".join(lines[-_LAST_LINES:]),
            next_step=f"see {log}; no machine was asked for",
        )
    return lines[-1].strip("= ") if lines else ""


def _run(
    argv: list[str],
    folder: Path,
    environment: dict[str, str],
    *,
    log: IO[str],
    timeout_s: float,
    on_start: Callable[[int], None],
) -> int | None:
    """The exit status, None when it took too long. However this ends, no process of it is left."""
    process = subprocess.Popen(
        argv,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        on_start(process.pid)
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(folder: Path, home: Path) -> dict[str, str]:
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        **passed_on,
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join(str(root) for root in source_roots(folder)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def source_roots(folder: Path) -> list[Path]:
    """The folders of a source tree that packages are imported from, by its pyproject.toml; else itself and `src`."""
    project = folder / "pyproject.toml"
    names: list[str] = [".", "src"]
    if project.is_file():
        try:
            hatch = tomllib.loads(project.read_text()).get("tool", {}).get("hatch", {})
        except ValueError as error:
            raise SourceError(
                f"{str(project)!r} is not TOML", seen=str(error), next_step="correct it and push again"
            ) from error
        names = hatch.get("build", {}).get("dev-mode-dirs") or names
    return [root for name in names if (root := (folder / name).resolve()).is_dir()]


def _fetched(source: SourceRef, bare: Path) -> Path:
    """The bare clone of a repository, with the commit in it."""
    if not (bare / "HEAD").exists():
        shutil.rmtree(bare, ignore_errors=True)
        new = bare.with_name(f"new-{uuid.uuid4().hex}")
        _git("init", "--quiet", "--bare", str(new))
        _git("-C", str(new), "config", "gc.auto", "0")  # folders borrow its objects
        new.rename(bare)
    if not _has(bare, source.commit):
        done = _fetch(bare, source.repository, "--prune", "--force", refs="+refs/heads/*:refs/heads/*")
        if done.returncode != 0:
            raise ServiceUnavailable(
                f"the repository {source.repository!r} cannot be read",
                seen=done.stderr.strip()[-_LAST_CHARACTERS:],
                next_step="can this user read it with git?",
            )
    if not _has(bare, source.commit):  # no branch leads to it any more: some servers give it all the same
        _fetch(bare, source.repository, refs=source.commit)
    if not _has(bare, source.commit):
        raise SourceError(
            f"commit {source.commit!r} is not in {source.repository!r}",
            seen="all branches were fetched; none leads to it",
            next_step="push it, or name a commit that is there",
        )
    return bare


def _fetch(bare: Path, repository: str, *options: str, refs: str) -> subprocess.CompletedProcess[str]:
    return _try("-C", str(bare), "fetch", "--quiet", "--no-tags", *options, "--", repository, refs)


def _has(bare: Path, commit: str) -> bool:
    return _try("-C", str(bare), "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0


def _materialise(repository: Path, commit: str, folder: Path) -> None:
    """A work tree of one commit that borrows its objects from `repository`; it appears whole or not at all."""
    new = folder.with_name(f"new-{uuid.uuid4().hex}")
    try:
        _git("clone", "--quiet", "--shared", "--no-checkout", "--no-tags", "--", str(repository), str(new))
        _git("-C", str(new), "checkout", "--quiet", "--detach", commit, "--")
        if not _is_exactly(new, commit):
            raise SourceError(
                f"the checkout of {commit!r} does not equal the commit",
                seen=_try("-C", str(new), "status", "--short").stdout[:500],
                next_step="remove the cache and look for filters in .gitattributes",
            )
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _is_exactly(folder: Path, commit: str) -> bool:
    """Whether that commit is checked out there, with no file changed, missing or added."""
    if not (folder / ".git").is_dir():
        return False
    head = _try("-C", str(folder), "rev-parse", "--verify", "HEAD")
    status = _try("-C", str(folder), "status", "--porcelain", "--untracked-files=all")
    return head.stdout.strip() == commit and status.returncode == 0 and not status.stdout.strip()


def _git(*args: str) -> None:
    done = _try(*args)
    if done.returncode != 0:
        raise SourceError(
            f"`git {' '.join(args)}` failed",
            seen=done.stderr.strip()[-_LAST_CHARACTERS:],
            next_step="is there room in the cache of sources?",
        )


def _try(*args: str) -> subprocess.CompletedProcess[str]:
    """Run git without hooks, submodules, prompts or schemes that run commands."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {
        "GIT_ALLOW_PROTOCOL": "https:ssh:file",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh -oBatchMode=yes"),
    }
    options = ("-c", "core.hooksPath=/dev/null", "-c", "submodule.recurse=false", "-c", "advice.detachedHead=false")
    try:
        return subprocess.run(
            ["git", *options, *args],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError("git could not be run", seen=str(error), next_step="is git installed?") from error


@contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _slug(repository: str) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", repository.rstrip("/").rpartition("/")[2].removesuffix(".git")).strip("-")
    return f"{name[:40] or 'code'}-{hashlib.sha256(repository.encode()).hexdigest()[:12]}"
