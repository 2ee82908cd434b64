"""A run of a higher priority ends one of a lower, with notice: on a cloud in memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from click.testing import CliRunner

from mlops_sdk.capacity.lease import LeaseRequest, Priority
from mlops_sdk.capacity.lifecycle import EndReason
from mlops_sdk.cli.main import main
from mlops_sdk.errors import DamagedObject, LeaseLost, NoCapacity, Preempted, ServiceUnavailable
from mlops_sdk.keeper import Beat, Stop
from mlops_sdk.run import Lease, Run
from mlops_sdk.steps import Steps, drive
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.faults import Crash

NOTICE_S = 30.0


class ByHand:
    """Nobody beats but the test."""

    def keep(self, beat: Beat, every_s: float) -> Stop:
        del beat, every_s
        return lambda: None


@pytest.fixture
def cloud() -> FakeCloud:
    return noticing()


def noticing() -> FakeCloud:
    cloud = FakeCloud()
    lease = cloud.settings.lease.model_copy(update={"notice_s": NOTICE_S})
    cloud.settings = cloud.settings.model_copy(update={"lease": lease})
    return cloud


def start(cloud: FakeCloud, name: str) -> Run:
    return cloud.client(keeper=ByHand()).start_run(name=name)


def request(cloud: FakeCloud, nodes: int, **changes) -> LeaseRequest:
    deadline = cloud.clock.now() + timedelta(hours=1)
    return LeaseRequest(nodes=nodes, resource_class="gpu.h200.8x", deadline=deadline, **changes)


def batch(cloud: FakeCloud, nodes: int = 4, name: str = "batch", *, preemptible: bool = True) -> Run:
    run = start(cloud, name)
    run.lease(request(cloud, nodes, priority=Priority.BATCH, preemptible=preemptible))
    return run


def urgent(cloud: FakeCloud, nodes: int = 2) -> tuple[Run, Steps[Lease]]:
    run = start(cloud, "urgent")
    return run, run.leasing(request(cloud, nodes, wait_s=600, priority=Priority.URGENT))


def let_pass(cloud: FakeCloud, seconds: float, *alive: Run, waiting: Steps[Lease] | None = None) -> Lease | None:
    """Time passes; runs that live beat, and one waits. What that one gets."""
    end = cloud.clock.monotonic() + seconds
    while cloud.clock.monotonic() < end:
        cloud.clock.sleep(2)
        for run in alive:
            run._heartbeat._again()
        if waiting is not None:
            try:
                next(waiting)
            except StopIteration as got:
                return got.value
    return None


def reasons(run: Run, generation: int = 1) -> set[EndReason]:
    pieces = run.history().generations[generation].pieces.values()
    return {piece.evidence.reason for piece in pieces if piece.evidence}


def test_who_is_told_stops_and_the_urgent_one_gets_the_machines(cloud):
    low = batch(cloud)
    asked_for = low.deadline
    high, waiting = urgent(cloud)
    next(waiting)
    told_at = cloud.clock.now()
    low._heartbeat._again()
    notice = low.ending()
    assert notice is not None
    assert (notice.reason, notice.by) == (EndReason.PREEMPTED, high.key)
    assert notice.ends_at - told_at == timedelta(seconds=NOTICE_S)
    assert low.history().generations[1].state.value == "before_end"
    assert low.held is not None
    assert low.held.deadline == notice.ends_at
    let_pass(cloud, 10, low, waiting=waiting)
    with pytest.raises(Preempted), low:
        raise Preempted("the job stopped on notice, with a checkpoint of step 7")
    assert reasons(low) == {EndReason.PREEMPTED}
    assert cloud.client().summary(low.key).ended == "preempted"
    got = let_pass(cloud, 20, waiting=waiting)
    assert got is not None
    assert len(got.nodes) == 2
    assert high.history().generations[1].request.deadline == got.deadline
    assert low.history().generations[1].request.deadline == asked_for  # with which it may wait for the next
    high.release()
    assert not cloud.held
    assert not [key for key in cloud.s3.objects if key.startswith(("orders/", "queue/", "fence/"))]


def test_who_does_not_react_is_returned_by_the_reaper_when_its_notice_is_over(cloud):
    low = batch(cloud)
    high, waiting = urgent(cloud)
    for _ in range(7):
        let_pass(cloud, 4, low, high, waiting=waiting)
        assert not cloud.reaper().reap_once().due
    assert len(cloud.held) == 4
    let_pass(cloud, 6, low, high, waiting=waiting)
    due = cloud.reaper().reap_once().due
    assert {item.reason.value for item in due if item.kind == "allocation"} == {"preempted"}
    assert {item.resource.split("-")[1] for item in due if item.kind == "allocation"} == {low.key}
    with pytest.raises(LeaseLost):
        low.raise_if_lost()
    assert reasons(low) == {EndReason.PREEMPTED}
    assert let_pass(cloud, 20, high, waiting=waiting) is not None
    low.release()
    high.release()
    assert low.prove().complete


def test_who_was_told_and_then_finds_its_machines_gone_was_preempted(cloud):
    low = batch(cloud)
    high, waiting = urgent(cloud)
    next(waiting)
    let_pass(cloud, 2, low)
    assert low.ending() is not None
    low.next_generation()  # as whoever retries after LeaseLost does
    assert low.history().generations[1].reason is EndReason.PREEMPTED
    assert reasons(low) == {EndReason.PREEMPTED}
    low.release()
    waiting.close()
    high.release()


def test_a_run_that_died_does_not_live_longer_for_having_been_told(cloud):
    low = batch(cloud)
    low.close()
    _, waiting = urgent(cloud)
    let_pass(cloud, cloud.settings.lease.renew_for_s, waiting=waiting)
    cloud.clock.sleep(2)
    assert {due.reason.value for due in cloud.reaper().reap_once().due if due.kind == "allocation"} == {"not_renewed"}


def test_only_what_allows_it_and_is_lower_and_is_needed_is_told(cloud):
    held = [batch(cloud, 1, "kept", preemptible=False), batch(cloud, 2, "old"), batch(cloud, 1, "young")]
    high, waiting = urgent(cloud, nodes=1)
    let_pass(cloud, 10, *held, waiting=waiting)
    assert [run.name for run in held if run.ending()] == ["young"]
    held[2].release(EndReason.PREEMPTED)  # while its machine is cleaned nobody else is told
    assert let_pass(cloud, 20, *held[:2], high, waiting=waiting) is not None
    assert [run.name for run in held[:2] if run.ending()] == []
    for run in (*held, high):
        run.release()


def test_who_asks_once_or_would_be_over_by_then_tells_nobody(cloud):
    low = batch(cloud)
    once = start(cloud, "once")
    with pytest.raises(NoCapacity):
        once.lease(request(cloud, 2, priority=Priority.URGENT))
    short = request(cloud, 2, wait_s=600, priority=Priority.URGENT)
    over = start(cloud, "over").leasing(replace(short, deadline=cloud.clock.now() + timedelta(seconds=NOTICE_S - 1)))
    let_pass(cloud, 4, low, waiting=over)
    assert low.ending() is None


def test_who_tells_somebody_waits_for_the_machines_also_beyond_its_waiting_time(cloud):
    """With the defaults the notice is longer than the wait: 120 s and 60 s."""
    low = batch(cloud)
    high = start(cloud, "urgent")
    waiting = high.leasing(request(cloud, 2, wait_s=NOTICE_S / 2, priority=Priority.URGENT))
    let_pass(cloud, NOTICE_S - 6, low, high, waiting=waiting)
    assert low.ending() is not None
    low.release(EndReason.PREEMPTED)
    got = let_pass(cloud, 30, high, waiting=waiting)
    assert got is not None
    high.release()


def test_who_goes_on_for_one_that_told_somebody_waits_as_long(cloud):
    low = batch(cloud)
    wanted = request(cloud, 2, wait_s=NOTICE_S / 3, priority=Priority.URGENT)
    first = start(cloud, "urgent")
    begun = first.leasing(wanted)
    let_pass(cloud, 6, low, first, waiting=begun)
    begun.close()
    first.close()
    second = start(cloud, "urgent")
    waiting = second.leasing(wanted)
    let_pass(cloud, NOTICE_S - 10, low, second, waiting=waiting)
    low.release(EndReason.PREEMPTED)
    assert let_pass(cloud, 30, second, waiting=waiting) is not None
    second.release()


def test_who_waits_for_machines_that_do_not_come_back_gives_up(cloud):
    low = batch(cloud)
    high = start(cloud, "urgent")
    waiting = high.leasing(request(cloud, 2, wait_s=NOTICE_S / 2, priority=Priority.URGENT))
    clean_s = cloud.settings.lease.clean_timeout_s
    with pytest.raises(NoCapacity, match=f"within {NOTICE_S + clean_s:.0f} s"):
        let_pass(cloud, NOTICE_S + clean_s + 20, low, high, waiting=waiting)


def test_damaged_orders_of_one_run_stop_nobody_and_are_shown(cloud, monkeypatch):
    monkeypatch.setattr("mlops_sdk.cli.lease.Client", cloud.client)
    low = batch(cloud, 3)
    cloud.services().store.put(f"orders/{low.key}-g1.json", b"{}")
    high, waiting = urgent(cloud, nodes=1)
    assert len(drive(waiting, cloud.clock).nodes) == 1
    second = start(cloud, "another")
    next(second.leasing(request(cloud, 4, wait_s=600, priority=Priority.URGENT)))  # it cannot be told
    shown = CliRunner().invoke(main, ["lease", "list"], catch_exceptions=False).output
    assert f"object 'orders/{low.key}-g1.json' does not hold the orders about a lease" in shown
    with pytest.raises(DamagedObject):
        low._heartbeat.beat()
    low.raise_if_lost()  # it is renewed all the same
    for run in (low, high, second):
        run.release()
    assert not cloud.held


def test_who_cannot_be_told_now_is_told_at_the_next_look(cloud):
    low = batch(cloud)
    known = cloud.faults.calls.count("set_times")
    cloud.faults.fail_at("set_times", known + 1, error=ServiceUnavailable("no answer"))
    high, waiting = urgent(cloud)
    let_pass(cloud, 10, high, waiting=waiting)
    low._heartbeat._again()
    assert low.ending() is not None
    ends = {found.marker.deadline for found in cloud.allocations.values() if found.marker and found.name.endswith("-0")}
    assert low.held is not None
    assert low.held.deadline in ends


def test_what_was_promised_to_somebody_else_cannot_be_extended(cloud):
    low = batch(cloud)
    _, waiting = urgent(cloud)
    next(waiting)
    with pytest.raises(LeaseLost, match="given notice for run"):
        low.extend(low.deadline + timedelta(hours=1))


def test_told_while_its_machines_are_deployed(cloud):
    low = start(cloud, "batch")
    steps = low.leasing(request(cloud, 4, priority=Priority.BATCH, preemptible=True))
    next(steps)
    while low.history().generations[1].state.value != "pending":
        cloud.clock.sleep(next(steps))
    high, waiting = urgent(cloud)
    let_pass(cloud, 10, low, waiting=waiting)
    with suppress(StopIteration):
        while True:
            cloud.clock.sleep(next(steps))
    notice = low.ending()
    assert notice is not None
    assert notice.reason is EndReason.PREEMPTED
    low.release(EndReason.PREEMPTED)
    assert let_pass(cloud, 30, high, waiting=waiting) is not None
    high.release()


def telling_calls() -> int:
    cloud = noticing()
    batch(cloud)
    cloud.faults.clear()
    _, waiting = urgent(cloud)
    next(waiting)
    return len(cloud.faults.calls)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("k", range(1, telling_calls() + 1))
def test_a_crash_of_who_tells_leaves_no_machine_without_an_end(k, when):
    cloud = noticing()
    low = batch(cloud)
    cloud.faults.clear()
    cloud.faults.fail_at("*", k, error=Crash(), when=when)
    with suppress(Crash):
        high, waiting = urgent(cloud)
        next(waiting)
        high.close()
    cloud.faults.clear()
    let_pass(cloud, 10, low)
    ends = {found.marker.deadline for found in cloud.allocations.values() if found.marker}
    assert len(ends) == 1
    assert low.held is not None
    assert ends == {low.held.deadline}
    assert (low.ending() is None) == (low.held.deadline == low.history().generations[1].request.deadline)
    let_pass(cloud, NOTICE_S, low)
    cloud.reaper().reap_once()
    assert bool(cloud.held) == (low.ending() is None)
    low.release()
    assert low.prove().complete
