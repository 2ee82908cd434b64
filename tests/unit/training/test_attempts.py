"""Attempts: numbered in order, never the same for two controllers, and written down with how they ended."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from mlops_sdk.config import S3Settings
from mlops_sdk.errors import NodeFailed, ServiceUnavailable
from mlops_sdk.identity.ssh_keys import SshKey
from mlops_sdk.journal import Journal
from mlops_sdk.testing.memory_s3 import memory_store
from mlops_sdk.training import job as jobs
from mlops_sdk.training.job import claim_attempt
from mlops_sdk.training.launch import Cause, Verdict
from mlops_sdk.training.site import Site

KEY = SshKey(private="hush", public="ssh-ed25519 A")


def a_site() -> Site:
    return Site(
        run_id=uuid.UUID(int=7),
        client_key=KEY,
        peer_key=KEY,
        store=memory_store(),
        node_s3=S3Settings(endpoint="http://s3", access_key_id="id", secret_access_key=SecretStr("hush")),
    )


def test_two_controllers_of_one_run_never_make_the_same_attempt() -> None:
    site = a_site()
    assert [claim_attempt(site) for _ in range(3)] == [1, 2, 3]
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(claim_attempt, [site] * 8)) == list(range(4, 12))
    assert "hush" not in repr(site)


class Attempt:
    """Stands for one that ends like this."""

    number = 3

    def __init__(self, outcome: Verdict | Exception) -> None:
        self._outcome = outcome

    async def run(self) -> Verdict:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [
        (Verdict(cause=Cause.SUCCEEDED), "succeeded"),
        (Verdict(cause=Cause.KILLED), "killed"),
        (ServiceUnavailable("S3 is away"), "service failed"),
        (NodeFailed("gpu-01 is full"), "NodeFailed"),
    ],
)
async def test_begin_and_end_of_an_attempt_are_in_the_journal(outcome, cause) -> None:
    site = a_site()
    journal = Journal(site.store, site.run_key, now=lambda: datetime(2026, 5, 1, tzinfo=UTC))
    site = replace(site, journal=journal, generation=2)
    with suppress(NodeFailed):  # comes out of it, like all that trying again cannot cure
        await jobs._noted(site, Attempt(outcome))
    begin, end = journal.entries()
    assert (begin.kind.value, begin.action, begin.generation, begin.data) == ("intent", "attempt", 2, {"attempt": 3})
    assert (end.kind.value, end.data) == ("outcome", {"attempt": 3, "cause": cause})
    assert "hush" not in repr(site)
