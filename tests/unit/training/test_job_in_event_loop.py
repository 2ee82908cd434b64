"""A job in a running event loop: its errors and callbacks come out, and no cancellation cuts off its ending."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from mlops_sdk.errors import JobFailed, LeaseLost
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
