"""Is a commit worth a machine? Its own tests, run on it alone; the log is kept beside the runs."""

from __future__ import annotations

import hashlib
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from mlops_sdk import source
from mlops_sdk.canonical import to_json
from mlops_sdk.errors import RedCommit
from mlops_sdk.objects import ObjectStore
from mlops_sdk.source import SourceRef

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GreenCommit:
    """A commit whose tests passed.

    Attributes:
        repository: Clone URL.
        commit: Forty digits.
        summary: The last line of its tests.
        log: Address of their whole output.
    """

    repository: str
    commit: str
    summary: str
    log: str


def check_commit(
    store: ObjectStore,
    code: SourceRef,
    paths: Sequence[str],
    *,
    cache: Path | None = None,
    timeout_s: float = 1800.0,
    on_start: Callable[[int], None] = lambda _group: None,
) -> GreenCommit:
    """Run the tests of exactly this commit, in a copy of it that is thrown away.

    What was green stays green: the same commit, paths and installed packages are not tested again. What was red is.

    Args:
        store: Their output goes to ``tests/<commit>/<n>.log``, red or green.
        code: The commit.
        paths: What pytest is given.
        cache: Of checkouts; default `source.default_cache()`.
        timeout_s: They are ended after this time.
        on_start: Told the process group of the tests.

    Raises:
        RedCommit: they failed, took too long, or there are none.
        SourceError: there is no such commit.
        ServiceUnavailable: the repository, or S3, does not answer.
    """
    key = _green_key(code.commit, paths)
    found = store.get_json(key)
    if found is not None:
        _LOG.info("commit %s was found green before: %s", code.commit[:12], found["log"])
        return GreenCommit(
            repository=code.repository, commit=code.commit, summary=str(found["summary"]), log=str(found["log"])
        )
    with tempfile.TemporaryDirectory(prefix="mlops-tests-") as directory:
        log = Path(directory) / "tests.log"
        try:
            with source.throwaway(code, cache or source.default_cache()) as folder:
                summary = source.test_program(folder, paths, log, timeout_s=timeout_s, on_start=on_start)
        except RedCommit as red:
            uri = _keep(store, code.commit, log)
            raise RedCommit(
                f"commit {code.commit[:12]}: {red.what}",
                seen=red.seen,
                next_step=f"see {uri}; no machine was asked for",
            ) from None
        uri = _keep(store, code.commit, log)
    store.put_if_absent(key, to_json({"summary": summary, "log": uri}))
    _LOG.info("commit %s is green: %s; %s", code.commit[:12], summary, uri)
    return GreenCommit(repository=code.repository, commit=code.commit, summary=summary, log=uri)


def _green_key(commit: str, paths: Sequence[str]) -> str:
    """By the commit, and by all else on which the outcome depends."""
    packages = sorted(f"{package.name}=={package.version}" for package in distributions())
    environment = hashlib.sha256(to_json([sys.version, packages, list(paths)])).hexdigest()
    return f"tests-green/{commit}/{environment[:32]}.json"


def _keep(store: ObjectStore, commit: str, log: Path) -> str:
    body = log.read_bytes()
    number = 1 + sum(1 for _ in store.list(f"tests/{commit}/"))
    while not store.put_if_absent(f"tests/{commit}/{number}.log", body):
        number += 1
    return f"s3://{store.bucket}/tests/{commit}/{number}.log"
