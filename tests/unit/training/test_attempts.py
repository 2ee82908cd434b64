"""Attempts: numbered in order, never the same for two controllers, and written down with how they ended."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from mlops_sdk.capacity.lifecycle import EndReason
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.orders import Notice
from mlops_sdk.config import S3Settings
from mlops_sdk.errors import JobFailed, LeaseEnding, NodeFailed, Preempted, ServiceUnavailable
from mlops_sdk.identity.ssh_keys import SshKey
from mlops_sdk.journal import Journal
from mlops_sdk.testing.memory_s3 import memory_store
from mlops_sdk.training import job as jobs
from mlops_sdk.training.job import JobResult, claim_attempt
from mlops_sdk.training.launch import Cause, Verdict
from mlops_sdk.training.logs import AttemptLogs
from mlops_sdk.training.site import Site
from mlops_sdk.training.spec import BundleRef, LaunchSpec

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


class Attempts:
    """What becomes of each attempt of a job, one after the other, and the notice that its lease has after that."""

    def __init__(self, *outcomes: tuple[Verdict, Notice | None]) -> None:
        self._outcomes = list(outcomes)
        self.notice: Notice | None = None

    def __call__(self, *_args: object, number: int, **_more: object) -> Attempts:
        self.number = number
        self.logs = AttemptLogs(memory_store(), "logs")
        return self

    async def run(self) -> Verdict:
        verdict, self.notice = self._outcomes.pop(0)
        return verdict


@asynccontextmanager
async def nobody(*_args: object, **_more: object) -> AsyncIterator[list[object]]:
    yield []


STOPPED = Verdict(cause=Cause.STOPPED, what="the job stopped on notice, with a checkpoint of step 7")
KILLED = Verdict(cause=Cause.KILLED, what="rank 0 was killed")
SUCCEEDED = Verdict(cause=Cause.SUCCEEDED)
DEADLINE = Notice(ends_at=datetime(2026, 5, 1, tzinfo=UTC), reason=EndReason.DEADLINE)
PREEMPTED = Notice(ends_at=datetime(2026, 5, 1, tzinfo=UTC), reason=EndReason.PREEMPTED, by="aaaaaaaaaaaa")


async def carry_out(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> JobResult:
    monkeypatch.setattr(jobs, "Attempt", attempts)
    monkeypatch.setattr(jobs, "connected", nobody)
    node = Node(id="1", name="gpu-01", index=0, address="10.0.0.1", host_public_key="ssh-ed25519 A")
    site = replace(a_site(), ending=lambda: attempts.notice)
    spec = LaunchSpec(module="a", bundle=BundleRef(sha256="b" * 64, size=1), max_attempts=2)
    return await jobs.arun_job(site, spec, [node])


@pytest.mark.parametrize(
    ("verdict", "notice", "error", "words"),
    [
        (STOPPED, DEADLINE, LeaseEnding, "checkpoint of step 7"),
        (STOPPED, PREEMPTED, Preempted, "checkpoint of step 7"),
        (KILLED, DEADLINE, LeaseEnding, "rank 0 was killed"),  # no time is left for another attempt
    ],
)
async def test_no_attempt_is_made_after_notice(verdict, notice, error, words, monkeypatch) -> None:
    with pytest.raises(error, match=words) as caught:
        await carry_out(Attempts((verdict, notice)), monkeypatch)
    assert type(caught.value) is error
    assert "it ends at 2026-05-01" in caught.value.seen


async def test_a_program_that_raises_has_failed_whatever_the_lease_does(monkeypatch) -> None:
    raised = Verdict(cause=Cause.RAISED, what="the program raised ValueError")
    with pytest.raises(JobFailed, match="ValueError"):
        await carry_out(Attempts((raised, DEADLINE)), monkeypatch)


async def test_a_job_that_stopped_for_a_lease_that_was_extended_goes_on(monkeypatch) -> None:
    attempts = Attempts((STOPPED, None), (STOPPED, None), (KILLED, None), (SUCCEEDED, DEADLINE))
    with pytest.raises(JobFailed, match="killed"):  # stopping is no failed attempt, but it is one
        await carry_out(attempts, monkeypatch)
    done = await carry_out(Attempts((STOPPED, None), (SUCCEEDED, DEADLINE)), monkeypatch)
    assert [attempt.cause for attempt in done.attempts] == [Cause.STOPPED, Cause.SUCCEEDED]
