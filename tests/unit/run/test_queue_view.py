"""Many runs of one process that wait in one queue: everybody's tickets are read once for all of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from mlops_sdk.capacity.lease import EndReason, LeaseRequest
from mlops_sdk.capacity.queue_view import QueueView
from mlops_sdk.objects import ObjectInfo
from mlops_sdk.pollers import Pollers
from mlops_sdk.steps import adrive
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.settings import fake_settings
from support_waiting import FastClock

WAITING = 8


@pytest.fixture
def cloud() -> FakeCloud:
    settings = fake_settings()
    lease = settings.lease.model_copy(update={"renew_for_s": 400.0, "poll_s": 4.0})
    cloud = FakeCloud(machines=1, settings=settings.model_copy(update={"lease": lease}))
    cloud.clock = FastClock()
    return cloud


async def test_those_who_wait_read_the_queue_once_for_all_and_each_gets_its_turn(cloud):
    services, pollers = cloud.services(), Pollers()
    client = cloud.client().with_services(services)
    deadline = cloud.clock.now() + timedelta(hours=1)
    request = LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=deadline, wait_s=3000)
    first = client.start_run("first")
    first.lease(request)
    runs = [client.start_run(f"r{number}") for number in range(WAITING)]
    tasks = [asyncio.ensure_future(adrive(r.leasing(request), cloud.clock, pollers.pause(services))) for r in runs]
    while len([key for key in cloud.s3.objects if "queue/" in str(key)]) < WAITING:  # noqa: ASYNC110 - from threads
        await asyncio.sleep(0.001)
    before, began = Counter(cloud.faults.calls), cloud.clock.monotonic()
    await asyncio.sleep(0.8)  # ten polls
    since = Counter(cloud.faults.calls) - before
    polls = (cloud.clock.monotonic() - began) / cloud.settings.lease.poll_s
    assert polls >= 8
    assert 1 <= since["list_machines"] <= polls * 5  # a plan serves all for a quarter of a poll; alone it is 8 a poll
    assert since["put_object"] <= 2 * WAITING  # tickets are renewed, not written at each look
    assert not [task for task in tasks if task.done()]
    first.release()
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    assert len(done) == 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for run in runs:
        await asyncio.to_thread(run.release, EndReason.CANCELLED)
    assert not cloud.held


def test_a_plan_serves_whoever_asked_before_it_was_begun_and_nobody_who_asked_later():
    clock, made = FakeClock(), []
    view = QueueView(clock)

    def make() -> tuple:
        made.append(clock.monotonic())
        return ()

    clock.sleep(10)
    view.turns(9.0, make)
    view.turns(10.0, make)
    assert made == [10.0]
    clock.sleep(1)
    view.turns(10.5, make)
    assert made == [10.0, 11.0]
    assert view.plans == 2


def test_a_plan_that_failed_is_made_again():
    view = QueueView(FakeClock())

    def fail() -> tuple:
        raise RuntimeError("S3 is away")

    with pytest.raises(RuntimeError):
        view.turns(0.0, fail)
    view.turns(0.0, lambda: ())
    assert view.plans == 1


def test_only_tickets_that_were_written_since_are_fetched_again():
    view, fetched = QueueView(FakeClock()), []

    def get(key: str) -> str:
        fetched.append(key)
        return f"content of {key}"

    def listed(**etags: str) -> list[ObjectInfo]:
        return [ObjectInfo(key=key, size=1, etag=etag) for key, etag in etags.items()]

    assert dict(view.read(listed(a="1", b="1"), get)) == {"a": "content of a", "b": "content of b"}
    assert [key for key, _ in view.read(listed(a="1", b="2", c="1"), get)] == ["a", "b", "c"]
    assert fetched == ["a", "b", "b", "c"]
    list(view.read(listed(b="2"), get))
    list(view.read(listed(a="1", b="2"), get))
    assert fetched == ["a", "b", "b", "c", "a"]  # what was gone is forgotten
