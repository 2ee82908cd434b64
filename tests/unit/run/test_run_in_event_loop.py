"""A run whose waiting an event loop drives: the same decisions, no thread that blocks, stops between two steps."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.errors import LeaseLost, NodeFailed, ServiceUnavailable
from mlops_sdk.keeper import LoopKeeper
from mlops_sdk.steps import adrive, drive, settled
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.cloud import FakeBaremetal, FakeCloud


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


def request(cloud: FakeCloud, nodes: int = 2) -> LeaseRequest:
    return LeaseRequest(nodes=nodes, resource_class="gpu.h200.8x", deadline=cloud.clock.now() + timedelta(hours=1))


async def test_lease_and_release_in_an_event_loop(cloud):
    run = cloud.client().start_run("nightly")
    lease = await adrive(run.leasing(request(cloud)), cloud.clock)
    assert sorted(cloud.held) == [node.name for node in lease.nodes] == ["gpu-01", "gpu-02"]
    evidence = await adrive(run.releasing(), cloud.clock)
    assert len(evidence) == 2
    assert not cloud.held
    assert run.prove().complete


async def test_the_loop_is_free_while_a_service_is_slow(cloud, monkeypatch):
    ticks = 0
    slow = threading.Event()
    now = FakeBaremetal.get_allocation

    def wait(self, ident):
        slow.wait(0.05)
        return now(self, ident)

    monkeypatch.setattr(FakeBaremetal, "get_allocation", wait)
    run = cloud.client().start_run("nightly")
    task = asyncio.ensure_future(adrive(run.leasing(request(cloud)), cloud.clock))
    while not task.done():
        ticks += 1
        await asyncio.sleep(0.001)
    assert ticks > 50
    await adrive(run.releasing(), cloud.clock)


@pytest.mark.parametrize("pause", range(1, 7))
async def test_cancelled_at_any_pause_it_leaves_what_it_got_and_another_process_goes_on(cloud, pause):
    run = cloud.client().start_run("nightly")
    gone = FakeClock()  # whose pauses are counted, and at one of which the task is cancelled
    count = 0

    async def asleep(seconds: float) -> None:
        nonlocal count
        count += 1
        cloud.clock.sleep(seconds)
        if count == pause:
            raise asyncio.CancelledError

    gone.asleep = asleep
    with pytest.raises(asyncio.CancelledError):
        await adrive(run.leasing(request(cloud)), gone)
    run.close()
    before = set(cloud.held.values())
    assert not run.history().generations[1].over

    other = cloud.client().start_run("nightly")
    lease = await adrive(other.leasing(request(cloud)), cloud.clock)
    assert before <= set(cloud.held.values())
    assert lease.generation == 1
    assert len(cloud.held) == 2
    other.release()
    assert other.prove().complete


async def test_cancelled_within_a_step_the_step_ends_first(cloud):
    """A call that was sent is journalled with its outcome before anybody else looks."""
    began, go_on = threading.Event(), threading.Event()
    run = cloud.client().start_run("nightly")

    def hold(step, phase, _detail):
        if (step, phase) == ("allocation.create", "before") and not began.is_set():
            began.set()
            go_on.wait(5)

    run.on_event(hold)
    task = asyncio.ensure_future(adrive(run.leasing(request(cloud)), cloud.clock))
    await asyncio.to_thread(began.wait, 5)
    for _ in range(3):  # the triggerer cancels again and again
        task.cancel("user-action")
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError, match="user-action"):
        await task
    assert len(cloud.allocations) == 2
    run.release()
    assert not cloud.held


async def test_adopting_makes_nothing_and_gives_nothing_back(cloud):
    run = cloud.client().start_run("nightly")
    with pytest.raises(LeaseLost, match="holds no machines"):
        await adrive(run.adopting(), cloud.clock)
    nodes = run.lease(request(cloud)).nodes
    run.close()

    other = cloud.client().start_run("nightly")
    assert (await adrive(other.adopting(), cloud.clock)).nodes == nodes
    other.raise_if_lost()
    other.close()

    away = cloud.client().start_run("nightly")
    cloud.faults.fail_at(
        "find_credential", 1 + cloud.faults.calls.count("find_credential"), error=ServiceUnavailable("")
    )
    with pytest.raises(ServiceUnavailable):
        await adrive(away.adopting(), cloud.clock)
    assert len(cloud.held) == 2
    assert (await adrive(away.adopting(), cloud.clock)).nodes == nodes

    broken = next(m for m in cloud.machines.values() if m.shown.allocation_id)
    cloud.change(broken, to="deleting", after_s=100, then="deleted")
    with pytest.raises(NodeFailed):
        await adrive(away.adopting(), cloud.clock)
    assert len(cloud.held) == 2
    away.close()


async def test_one_keeper_renews_all_runs_of_its_loop_without_a_thread_each(cloud):
    lease = cloud.settings.lease.model_copy(update={"renew_for_s": 0.2})
    cloud.settings = cloud.settings.model_copy(update={"lease": lease})
    threads = set(threading.enumerate())
    keeper = LoopKeeper(asyncio.get_running_loop())
    runs = [cloud.client(keeper=keeper).start_run(f"run-{number}") for number in range(4)]
    for run in runs:
        await adrive(run.leasing(request(cloud, nodes=1)), cloud.clock)
    assert keeper.beats == 4
    assert not [thread for thread in set(threading.enumerate()) - threads if thread.name == "mlops-heartbeat"]
    calls = cloud.faults.calls.count("set_times")
    while cloud.faults.calls.count("set_times") < calls + 8:  # noqa: ASYNC110 - they come from other threads
        await asyncio.sleep(0.01)
    for run in runs:
        await asyncio.to_thread(run.close)
    await asyncio.sleep(0)
    assert keeper.beats == 0
    for run in runs:
        run.release()


def test_what_interrupts_a_pause_is_raised_within_the_work():
    class Interrupted(FakeClock):
        def sleep(self, seconds: float) -> None:
            raise KeyboardInterrupt

    seen = []

    def work():
        try:
            yield 1.0
        except KeyboardInterrupt:
            seen.append("clean-up")
            raise

    with pytest.raises(KeyboardInterrupt):
        drive(work(), Interrupted())
    assert seen == ["clean-up"]


async def test_settled_waits_through_any_number_of_cancellations():
    done = asyncio.get_running_loop().create_future()
    waiter = asyncio.ensure_future(settled(done))
    await asyncio.sleep(0)
    for word in ("first", "second"):
        waiter.cancel(word)
        await asyncio.sleep(0)
    assert not waiter.done()
    done.set_result(1)
    with pytest.raises(asyncio.CancelledError, match="first"):
        await waiter
