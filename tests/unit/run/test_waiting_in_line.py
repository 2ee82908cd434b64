"""Runs that wait for the same machines: in which order, and what becomes of a place. On a cloud in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from mlops_sdk.capacity.lease import LeaseRequest, Priority
from mlops_sdk.errors import NoCapacity
from mlops_sdk.names import run_id_for, run_key
from mlops_sdk.steps import drive
from mlops_sdk.testing.cloud import FakeCloud

NAMES = ("first", "second", "third", "again", "modest", "urgent")


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


def request(cloud: FakeCloud, nodes: int, **changes) -> LeaseRequest:
    deadline = cloud.clock.now() + timedelta(hours=1)
    return LeaseRequest(nodes=nodes, resource_class="gpu.h200.8x", deadline=deadline, **changes)


def nothing_is_left(cloud: FakeCloud) -> bool:
    left = [key for key in cloud.s3.objects if key.startswith(("fence/", "queue/"))]
    return not cloud.held and not cloud.credentials and not left


def test_the_state_of_a_lease_that_waits_and_then_gets_its_machines(cloud):
    def state(run) -> str:
        return run.history().generations[1].state.value

    with cloud.client().start_run(name="first") as first, cloud.client().start_run(name="second") as second:
        first.lease(request(cloud, nodes=4))
        waiting = second.leasing(request(cloud, nodes=1, wait_s=600))
        seen = [state(first)]
        for _ in range(3):
            cloud.clock.sleep(next(waiting))
        seen.append(state(second))
        assert len([entry for entry in second.journal.entries() if entry.action == "lease.queue"]) == 1
        first.release()
        while state(second) == "waiting":
            cloud.clock.sleep(next(waiting))
        seen.append(state(second))
        drive(waiting, cloud.clock)
        seen.append(state(second))
    assert [*seen, state(second)] == ["active", "waiting", "pending", "active", "released"]


def test_who_waited_longer_gets_what_becomes_free(cloud):
    with cloud.client().start_run(name="first") as first:
        first.lease(request(cloud, nodes=4))
        second, third = (cloud.client().start_run(name=name) for name in ("second", "third"))
        steps = {run: run.leasing(request(cloud, nodes=3, wait_s=600)) for run in (second, third)}
        for run in (second, third, second, third):
            cloud.clock.sleep(next(steps[run]))
        first.release()
        cloud.clock.sleep(next(steps[third]))
        assert not cloud.held  # it may not pass
        second_has = drive(steps[second], cloud.clock)
        assert len(second_has.nodes) == 3
        second.release()
        assert len(drive(steps[third], cloud.clock).nodes) == 3
        third.release()
    assert nothing_is_left(cloud)


def test_a_waiting_run_that_died_holds_nobody_up(cloud):
    with cloud.client().start_run(name="first") as first:
        first.lease(request(cloud, nodes=4))
        dead = cloud.client().start_run(name="dead")
        next(dead.leasing(request(cloud, nodes=4, wait_s=600)))
        dead.close()
    with cloud.client().start_run(name="third") as third:
        began = cloud.clock.monotonic()
        assert len(third.lease(request(cloud, nodes=4, wait_s=600)).nodes) == 4
        assert cloud.clock.monotonic() - began < 2 * cloud.settings.lease.renew_for_s


def test_a_place_in_the_queue_outlives_the_process_that_waits(cloud):
    with cloud.client().start_run(name="first") as first:
        first.lease(request(cloud, nodes=4))
        steps = cloud.client().start_run(name="second").leasing(request(cloud, nodes=4, wait_s=600))
        next(steps)
        steps.close()  # as a triggerer that stops
        cloud.clock.sleep(5)
        third = cloud.client().start_run(name="third")
        next(third.leasing(request(cloud, nodes=4, wait_s=600)))
        next(cloud.client().start_run(name="second").leasing(request(cloud, nodes=4, wait_s=600)))
        assert queued(cloud) == ["second", "third"]


def test_a_quote_says_who_is_before_you(cloud):
    with cloud.client().start_run(name="first") as first:
        first.lease(request(cloud, nodes=4))
        second = cloud.client().start_run(name="second")
        next(second.leasing(request(cloud, nodes=4, wait_s=600)))
        quote = cloud.client().quote(request(cloud, nodes=1))
        assert not quote.available_now
        assert "number 2 in the queue: others are before it" in str(quote)
        second.release()
    assert "now; 4 free" in str(cloud.client().quote(request(cloud, nodes=1)))


def test_who_used_less_goes_first(cloud):
    with cloud.client().start_run(name="greedy", owner="greedy") as greedy:
        greedy.lease(request(cloud, nodes=4))
        cloud.clock.sleep(1000)
    with cloud.client().start_run(name="first", owner="somebody") as first:
        first.lease(request(cloud, nodes=4))
        again = cloud.client().start_run(name="again", owner="greedy")
        modest = cloud.client().start_run(name="modest", owner="modest")
        for run in (again, modest):
            next(run.leasing(request(cloud, nodes=4, wait_s=600)))
        assert queued(cloud) == ["modest", "again"]


def test_urgent_work_goes_before_what_asked_earlier(cloud):
    with cloud.client().start_run(name="first") as first:
        first.lease(request(cloud, nodes=4))
        next(cloud.client().start_run(name="second").leasing(request(cloud, nodes=4, wait_s=600)))
        urgent = request(cloud, nodes=4, wait_s=600, priority=Priority.URGENT)
        next(cloud.client().start_run(name="urgent").leasing(urgent))
        assert queued(cloud) == ["urgent", "second"]


def test_who_gives_up_leaves_the_queue_and_is_told_its_place(cloud):
    with cloud.client().start_run(name="first") as first:
        first.lease(request(cloud, nodes=4))
        with pytest.raises(NoCapacity, match=r"number 1 in the queue: 0 of 2 are free; expected at 2026-01-01 01:00"):
            cloud.client().start_run(name="second").lease(request(cloud, nodes=2, wait_s=30))
    assert nothing_is_left(cloud)


def test_a_damaged_ticket_and_an_unknown_priority_stop_nobody(cloud):
    cloud.services().store.put("queue/ironic/aaaaaaaaaaaa-g1.json", b"{}")
    with cloud.client().start_run(name="first") as first:
        assert len(first.lease(request(cloud, nodes=4)).nodes) == 4


def queued(cloud) -> list[str]:
    """Names of the runs that wait, in the order of the queue."""
    names = {run_key(run_id_for(cloud.settings.deployment_id, name)): name for name in NAMES}
    return [names[turn.ticket.run_key] for turn in cloud.services().line("ironic").turns()]


def test_a_spare_is_not_taken_of_what_somebody_of_a_higher_priority_waits_for(cloud):
    """Not at once, and not by who goes on with a lease that was begun."""
    with cloud.client().start_run(name="first") as first, cloud.client().start_run(name="second") as second:
        first.lease(request(cloud, nodes=2))
        next(second.leasing(request(cloud, nodes=4, wait_s=600, priority=Priority.URGENT)))
        third = cloud.client().start_run(name="third")
        short = replace(request(cloud, nodes=1, spares=1), deadline=cloud.clock.now() + timedelta(minutes=30))
        drive(third.beginning_in(1, short), cloud.clock)
        assert len(third.lease(short).spares) == 1  # it is over before that one's turn
        third.release()
        long = request(cloud, nodes=1, spares=1)
        fourth = cloud.client().start_run(name="fourth")
        with pytest.raises(NoCapacity, match="others are before it"):
            fourth.lease(replace(long, deadline=long.deadline + timedelta(hours=9)))


def test_what_a_run_takes_in_reserve_is_on_its_ticket(cloud):
    with cloud.client().start_run(name="first") as first:
        first.lease(request(cloud, nodes=4))
        second = cloud.client().start_run(name="second")
        wanted = request(cloud, nodes=1, spares=2, wait_s=600, machines=("gpu-01", "gpu-02", "gpu-03"))
        next(second.leasing(wanted))
        (turn,) = cloud.services().line("ironic").turns()
        assert (turn.ticket.nodes, turn.ticket.spares) == (1, 2)
        assert turn.ticket.machines == {"gpu-01", "gpu-02", "gpu-03"}
        second.release()
