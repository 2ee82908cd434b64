"""What may be decided about a lease after it was asked for, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mlops_sdk.capacity.lease import LeaseRequest, to_iso
from mlops_sdk.capacity.lifecycle import EndReason
from mlops_sdk.capacity.order_book import OrderBook
from mlops_sdk.capacity.orders import Keeping, Kept, Notice, Orders, extended, kept, notice_of, noticed, reason_by
from mlops_sdk.errors import DamagedObject, LeaseLost, ServiceUnavailable, SettingsError
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return NOW + timedelta(minutes=minutes)


REQUEST = LeaseRequest(nodes=1, resource_class="gpu", deadline=at(60))
NOTICE = Notice(ends_at=at(10), reason=EndReason.PREEMPTED, by="urgent")
DEBUG, WARM = Kept(until=at(20), why=Keeping.DEBUG), Kept(until=at(20), why=Keeping.WARM)


def test_it_ends_at_the_first_of_its_deadline_a_notice_and_the_end_of_looking():
    assert Orders().end_of(REQUEST) == at(60)
    assert Orders(deadline=at(90)).end_of(REQUEST) == at(90)
    assert Orders(notice=NOTICE).end_of(REQUEST) == at(10)
    assert Orders(kept=DEBUG).end_of(REQUEST) == at(20)
    assert Orders(kept=DEBUG, notice=NOTICE).end_of(REQUEST) == at(10)
    assert Orders(kept=WARM).end_of(REQUEST) == at(60)  # who takes it has all the time that is left


def test_only_a_later_deadline_or_a_notice_changes_what_machines_carry():
    assert Orders(deadline=at(90)).moved
    assert Orders(notice=NOTICE).moved
    assert not Orders(kept=DEBUG, credential=1).moved


def test_an_extension_moves_the_deadline_and_takes_the_next_credential():
    once = extended(Orders(), REQUEST, at(90), now=NOW)
    assert (once.deadline, once.credential) == (at(90), 1)
    twice = extended(once, REQUEST, at(120), now=NOW)
    assert (twice.deadline, twice.credential) == (at(120), 2)
    assert extended(twice, REQUEST, at(120), now=at(500)) == twice  # told again, whenever that is
    assert extended(Orders(), REQUEST, at(60), now=NOW) == Orders()


def test_an_extension_is_refused_when_it_is_over_promised_or_not_later():
    with pytest.raises(LeaseLost, match="cannot be extended"):
        extended(Orders(), REQUEST, at(90), now=at(60))
    assert extended(Orders(), REQUEST, at(90), now=at(59)).deadline == at(90)
    with pytest.raises(LeaseLost) as caught:
        extended(Orders(notice=NOTICE), REQUEST, at(90), now=NOW)
    assert "urgent" in caught.value.seen
    with pytest.raises(SettingsError):
        extended(Orders(), REQUEST, at(50), now=NOW)
    with pytest.raises(SettingsError):  # it ends before its deadline, and not later by this
        extended(Orders(kept=DEBUG), REQUEST, at(20), now=NOW)


def test_who_looks_at_a_failed_job_gets_longer_without_shortening_the_lease():
    longer = extended(Orders(kept=DEBUG), REQUEST, at(40), now=NOW)
    assert longer.kept == replace(DEBUG, until=at(40))
    assert longer.deadline == at(60)
    assert longer.end_of(REQUEST) == at(40)
    assert extended(Orders(kept=DEBUG), REQUEST, at(90), now=NOW).end_of(REQUEST) == at(90)
    assert extended(Orders(kept=WARM), REQUEST, at(90), now=NOW).kept == WARM


def test_a_lease_is_kept_until_what_was_said_but_not_beyond_its_end():
    assert kept(Orders(), REQUEST, DEBUG, now=NOW).kept == DEBUG
    assert kept(Orders(deadline=at(15)), REQUEST, DEBUG, now=NOW).kept == replace(DEBUG, until=at(15))
    assert kept(Orders(kept=WARM), REQUEST, replace(WARM, until=at(30)), now=NOW).kept == replace(WARM, until=at(30))


def test_a_lease_is_not_kept_when_it_is_over_promised_or_kept_for_something_else():
    for orders, now in ((Orders(), at(60)), (Orders(notice=NOTICE), NOW)):
        with pytest.raises(LeaseLost, match="cannot be kept"):
            kept(orders, REQUEST, DEBUG, now=now)
    assert kept(Orders(), REQUEST, DEBUG, now=at(59)).kept is not None
    for there, wanted in ((WARM, DEBUG), (DEBUG, WARM)):
        with pytest.raises(LeaseLost, match="cannot be kept"):
            kept(Orders(kept=there), REQUEST, wanted, now=NOW)


def test_the_first_notice_stays():
    first = noticed(Orders(credential=1), NOTICE)
    assert first == Orders(credential=1, notice=NOTICE)
    assert noticed(first, replace(NOTICE, by="another", ends_at=at(5))) == first


@pytest.mark.parametrize(
    ("orders", "seen", "really"),
    [
        (Orders(), EndReason.DEADLINE, EndReason.DEADLINE),
        (Orders(), EndReason.NOT_RENEWED, EndReason.NOT_RENEWED),
        (Orders(notice=NOTICE), EndReason.DEADLINE, EndReason.PREEMPTED),
        (Orders(notice=NOTICE), EndReason.NOT_RENEWED, EndReason.NOT_RENEWED),  # its run died before the notice ended
        (Orders(kept=DEBUG), EndReason.DEADLINE, EndReason.WORK_FAILED),
        (Orders(kept=DEBUG), EndReason.NOT_RENEWED, EndReason.WORK_FAILED),
        (Orders(kept=WARM), EndReason.NOT_RENEWED, EndReason.IDLE),
        (Orders(kept=WARM, notice=NOTICE), EndReason.DEADLINE, EndReason.PREEMPTED),
    ],
)
def test_why_it_really_ended(orders, seen, really):
    assert reason_by(orders, seen) is really


def test_notice_is_given_so_long_before_the_end_and_for_somebody_else_at_once():
    assert notice_of(Orders(), REQUEST, now=at(59) - timedelta(seconds=1), notice_s=60) is None
    assert notice_of(Orders(), REQUEST, now=at(59), notice_s=60) == Notice(ends_at=at(60), reason=EndReason.DEADLINE)
    assert notice_of(Orders(deadline=at(90)), REQUEST, now=at(59), notice_s=60) is None
    assert notice_of(Orders(notice=NOTICE), REQUEST, now=NOW, notice_s=60) == NOTICE


def test_a_person_is_told_what_else_there_is_to_know():
    assert Orders().words("nightly") == ""
    held, warm = Orders(kept=DEBUG).words("nightly"), Orders(kept=WARM).words("nightly")
    assert "login nightly" in held
    assert "12:20:00" in held
    assert "warm" in warm
    assert "12:20:00" in warm
    both = Orders(kept=WARM, notice=NOTICE).words("nightly")
    assert both.startswith(warm)
    assert "12:10:00" in both
    assert "urgent" in both


@pytest.fixture
def server() -> MemoryS3:
    return MemoryS3()


def book(server: MemoryS3, run: str = "a", generation: int = 1) -> OrderBook:
    return OrderBook(memory_store(server), run, generation)


def test_each_generation_of_each_run_has_its_own_orders(server):
    book(server).change(lambda orders: noticed(orders, NOTICE))
    assert book(server).read() == Orders(notice=NOTICE)
    assert book(server, "b").read() == book(server, "a", 2).read() == Orders()
    book(server).forget()
    assert book(server).read() == Orders()
    assert server.objects == {}


def test_whole_orders_come_back_as_they_were_written(server):
    for orders in (Orders(deadline=at(90), credential=2, notice=NOTICE, kept=DEBUG), Orders(kept=WARM)):
        assert book(server).change(lambda _, wanted=orders: wanted) == orders
        assert book(server).read() == orders


def test_what_changes_nothing_is_not_written(server):
    assert book(server).change(lambda orders: orders) == Orders()
    assert server.objects == {}


@pytest.mark.parametrize("there", [False, True])
def test_who_was_slower_decides_again_on_what_the_faster_one_wrote(server, there):
    if there:
        book(server).change(lambda orders: replace(orders, credential=5))
    rivals = [lambda: book(server).change(lambda orders: noticed(orders, NOTICE))]

    def decide(orders: Orders) -> Orders:
        while rivals:
            rivals.pop()()
        return replace(orders, credential=orders.credential + 1)

    assert book(server).change(decide) == Orders(credential=6 if there else 1, notice=NOTICE)
    assert book(server).read() == Orders(credential=6 if there else 1, notice=NOTICE)


def test_who_is_always_slower_is_told_so(server):
    tries: list[int] = []

    def always(orders: Orders) -> Orders:
        tries.append(1)
        rival = memory_store(server)
        rival.put_json("orders/a-g1.json", Orders(credential=len(tries)).to_json())
        return replace(orders, deadline=at(90))

    with pytest.raises(ServiceUnavailable):
        book(server).change(always)
    assert len(tries) > 1


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"3", b"{}", b'{"notice": null, "kept": null, "deadline": "soon", "credential": 0}'],
)
def test_orders_that_cannot_be_read_are_named(server, body):
    server.objects["orders/a-g1.json"] = body
    for look in (book(server).read, lambda: book(server).change(lambda orders: orders)):
        with pytest.raises(DamagedObject, match=r"orders/a-g1\.json"):
            look()


def test_orders_that_cannot_be_removed_do_no_harm(server):
    book(server).change(lambda orders: noticed(orders, NOTICE))
    server.faults.fail_at("delete_object", 1, error=ServiceUnavailable("S3 is down"))
    book(server).forget()
    assert book(server).read().notice == NOTICE


def test_a_notice_says_until_when_why_and_for_whom():
    assert NOTICE.to_json() == {"ends_at": to_iso(at(10)), "reason": "preempted", "by": "urgent"}
    assert Notice.parse(NOTICE.to_json()) == NOTICE
