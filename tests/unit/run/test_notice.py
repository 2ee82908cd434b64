"""Before a lease ends its run is told: the deadline is near, or somebody of a higher priority needs the machines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.lifecycle import EndReason
from mlops_sdk.capacity.orders import Keeping, Kept, Notice, Orders, notice_of
from mlops_sdk.errors import LeaseEnding
from mlops_sdk.keeper import Beat, Stop
from mlops_sdk.run import Run
from mlops_sdk.testing.cloud import FakeCloud

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
REQUEST = LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=NOW + timedelta(seconds=100))


class ByHand:
    """Nobody beats but the test."""

    def keep(self, beat: Beat, every_s: float) -> Stop:
        del beat, every_s
        return lambda: None


@pytest.fixture
def cloud() -> FakeCloud:
    cloud = FakeCloud()
    lease = cloud.settings.lease.model_copy(update={"notice_s": 20.0})
    cloud.settings = cloud.settings.model_copy(update={"lease": lease})
    return cloud


def state(run: Run) -> str:
    return run.history().generations[1].state.value


def test_what_was_decided_comes_back_from_the_bucket_as_it_was():
    notice = Notice(ends_at=NOW, reason=EndReason.PREEMPTED, by="aaaaaaaaaaaa")
    for orders in (Orders(), Orders(deadline=NOW, credential=2, notice=notice, kept=Kept(until=NOW, why=Keeping.WARM))):
        assert Orders.parse(orders.to_json()) == orders


@pytest.mark.parametrize(("passed_s", "told"), [(0, False), (79, False), (80, True), (500, True)])
def test_notice_is_given_so_long_before_the_deadline(passed_s, told):
    found = notice_of(Orders(), REQUEST, now=NOW + timedelta(seconds=passed_s), notice_s=20)
    assert (found is not None) is told
    if found:
        assert (found.ends_at, found.reason) == (REQUEST.deadline, EndReason.DEADLINE)


def test_the_run_knows_and_its_journal_is_told_once(cloud):
    run = cloud.client(keeper=ByHand()).start_run(name="nightly")
    deadline = cloud.clock.now() + timedelta(seconds=60)
    run.lease(LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=deadline))
    assert run.ending() is None
    assert state(run) == "active"
    while cloud.clock.now() < deadline - timedelta(seconds=20):
        cloud.clock.sleep(5)
        run._heartbeat.beat()
    for _ in range(3):
        assert run.ending() == Notice(ends_at=deadline, reason=EndReason.DEADLINE)
    assert state(run) == "before_end"
    assert len([entry for entry in run.journal.entries() if entry.action == "lease.notice"]) == 1
    run.extend(deadline + timedelta(seconds=60))
    assert run.ending() is None
    assert state(run) == "active"
    run.release()


def test_the_end_of_a_block_by_a_lease_that_ends_is_no_failure(cloud):
    deadline = cloud.clock.now() + timedelta(seconds=60)

    def stopped() -> None:
        with cloud.client(keeper=ByHand()).start_run(name="nightly") as run:
            run.lease(LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=deadline))
            raise LeaseEnding("stopped at step 7")

    with pytest.raises(LeaseEnding):
        stopped()
    generation = cloud.client().start_run(name="nightly").history().generations[1]
    assert {piece.evidence.reason for piece in generation.pieces.values()} == {EndReason.DEADLINE}
