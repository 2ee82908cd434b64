"""A job in a running event loop: its errors and callbacks come out, and no cancellation cuts off its ending."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace

import pytest

from mlops_sdk.capacity.node import Node
from mlops_sdk.errors import JobFailed, LeaseLost, NodeFailed
from mlops_sdk.training import job as jobs
from mlops_sdk.training.events import Warned
from mlops_sdk.training.job import arun_job

EVENT = Warned(text="hello")


class Machines:
    """Stands for what happens on the machines: says one thing, runs until told, needs a while to end."""

    def __init__(self) -> None:
        self.began, self.finish, self.ended = asyncio.Event(), asyncio.Event(), False

    async def run(self, _site, _spec, _nodes, on_line, on_event):
        on_event(EVENT)
        on_line("a line")
        self.began.set()
        try:
            await self.finish.wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            self.ended = True
        return SimpleNamespace(result={"a": 1})


@pytest.fixture
def machines(monkeypatch) -> Machines:
    machines = Machines()
    monkeypatch.setattr(jobs, "_run", machines.run)
    monkeypatch.setattr(jobs, "_CHECK_S", 0.001)
    return machines


async def test_it_returns_what_the_job_returns_and_tells_what_it_hears(machines):
    heard = []
    machines.finish.set()
    done = await arun_job(None, None, (), on_line=heard.append, on_event=heard.append)
    assert done.result == {"a": 1}
    assert heard == [EVENT, "a line"]


async def test_however_often_it_is_cancelled_what_runs_is_ended_first(machines):
    task = asyncio.ensure_future(arun_job(None, None, ()))
    await machines.began.wait()
    while not task.done():
        task.cancel("user-action")
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError, match="user-action"):
        task.result()
    assert machines.ended


async def test_a_lost_lease_ends_it(machines):
    def check():
        raise LeaseLost("gone")

    with pytest.raises(LeaseLost, match="gone"):
        await arun_job(None, None, (), check=check)
    assert machines.ended


async def test_a_callback_that_raises_ends_it(machines):
    def broken(_event):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await arun_job(None, None, (), on_event=broken)
    assert machines.ended


async def test_its_own_error_comes_out(monkeypatch):
    async def fail(*_):
        raise JobFailed("rank 1 raised")

    monkeypatch.setattr(jobs, "_run", fail)
    with pytest.raises(JobFailed, match="rank 1"):
        await arun_job(None, None, ())


def node(name: str) -> Node:
    return Node(id=name, name=name, index=0, address=name, host_public_key="")


class Ssh:
    """Stands for logins: the machines that are away do not answer."""

    def __init__(self, *away: str) -> None:
        self.away, self.tried = set(away), []

    @asynccontextmanager
    async def connected(self, hosts, *, timeout_s):
        del timeout_s
        self.tried.append(list(hosts))
        if self.away & set(hosts):
            raise NodeFailed(f"no login on {sorted(self.away & set(hosts))}")
        yield hosts


async def reach(monkeypatch, ssh: Ssh, mended: list[Node]) -> list[str]:
    """The machines that a job goes on with which had `a` and `b`, where a repair gives these."""

    def mend(_nodes):
        yield 0.001
        return mended

    monkeypatch.setattr(jobs, "connected", ssh.connected)
    site = SimpleNamespace(host=lambda found: found.name, ssh_timeout_s=1, mend=mend)
    async with AsyncExitStack() as opened:
        placement, connections = await jobs._reach(
            opened, site, SimpleNamespace(processes_per_node=1), [node("a"), node("b")]
        )
        assert connections == [found.name for found in placement.nodes]
        return connections


async def test_machines_that_answer_are_not_looked_at(monkeypatch):
    assert await reach(monkeypatch, Ssh(), [node("c")]) == ["a", "b"]


async def test_a_machine_that_does_not_answer_is_replaced_before_the_attempt(monkeypatch):
    assert await reach(monkeypatch, Ssh("b"), [node("a"), node("c")]) == ["a", "c"]


async def test_one_that_cannot_be_replaced_ends_the_job_with_what_was_seen(monkeypatch):
    ssh = Ssh("b")
    with pytest.raises(NodeFailed, match="no login on"):
        await reach(monkeypatch, ssh, [node("a"), node("b")])
    assert ssh.tried == [["a", "b"]]
