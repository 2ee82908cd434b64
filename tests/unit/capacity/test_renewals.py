"""Renewing many leases from what one look shows: what is due, which first, and what a failure costs."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime, timedelta

from pydantic import SecretStr

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.provider import Grant
from mlops_sdk.capacity.renewals import Renewals, due
from mlops_sdk.capacity.watching import Phase, Sight, Snapshot
from mlops_sdk.errors import ServiceUnavailable

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DEADLINE = NOW + timedelta(hours=1)
RENEW_FOR_S = 100.0


def grant(number: int, nodes: int = 1) -> Grant:
    request = LeaseRequest(nodes=nodes, resource_class="gpu", deadline=NOW)
    return Grant(
        run_id=uuid.uuid5(uuid.NAMESPACE_DNS, str(number)),
        deployment_id=uuid.UUID(int=0),
        generation=1,
        owner="",
        request=request,
        broker_key=SecretStr("key"),
    )


def sight(left_s: float, deadline: datetime = DEADLINE) -> Sight:
    until = NOW + timedelta(seconds=left_s)
    return Sight(phase=Phase.COMING, words="deploying", deadline=deadline, renewed_until=until)


def seen(*leases: tuple[Grant, float]) -> Snapshot:
    sights = {name: sight(left) for lease, left in leases for name in lease.names}
    return Snapshot(version=1, asked_at=0.0, sights=sights)


def kept(*leases: Grant) -> dict[str, Grant]:
    return {lease.names[0]: lease for lease in leases}


def what_is_due(shown: Snapshot, *leases: Grant) -> list[str]:
    return list(due(shown, kept(*leases), now=NOW, left=timedelta(seconds=RENEW_FOR_S / 2)))


def test_what_has_less_than_half_of_its_time_left_is_due_and_what_lapses_first_comes_first():
    one, two, three = grant(1), grant(2), grant(3)
    shown = seen((one, 40.0), (two, 60.0), (three, 10.0))
    assert what_is_due(shown, one, two, three) == [three.names[0], one.names[0]]


def test_the_piece_that_lapses_first_decides_for_its_lease():
    one = grant(1, nodes=2)
    shown = Snapshot(version=1, asked_at=0.0, sights={one.names[0]: sight(90.0), one.names[1]: sight(20.0)})
    assert what_is_due(shown, one) == [one.names[0]]


def test_what_is_gone_or_past_its_deadline_is_not_renewed():
    one, two = grant(1), grant(2)
    late = Snapshot(version=1, asked_at=0.0, sights={two.names[0]: sight(-5.0, deadline=NOW - timedelta(seconds=1))})
    assert what_is_due(late, one, two) == []


def test_a_lease_is_renewed_under_the_deadline_that_it_carries():
    one = grant(1)
    (found,) = due(seen((one, 1.0)), kept(one), now=NOW, left=timedelta(seconds=50)).values()
    assert found.request.deadline == DEADLINE


def test_a_lease_is_renewed_to_its_last_moment_and_not_before_half_of_its_time_is_gone():
    one = grant(1)
    assert what_is_due(Snapshot(version=1, asked_at=0.0, sights={one.names[0]: sight(1.0, deadline=NOW)}), one)
    assert what_is_due(seen((one, 50.0)), one) == []
    assert what_is_due(seen((one, 49.0)), one) == [one.names[0]]


def test_what_shows_only_one_of_its_times_is_judged_by_its_other_pieces():
    one = grant(1, nodes=2)
    half = Sight(phase=Phase.COMING, words="deploying", deadline=DEADLINE)
    shown = Snapshot(version=1, asked_at=0.0, sights={one.names[0]: half, one.names[1]: sight(20.0)})
    assert what_is_due(shown, one) == [one.names[0]]
    assert what_is_due(Snapshot(version=1, asked_at=0.0, sights={one.names[0]: half}), one) == []


def test_leases_that_lapse_at_the_same_moment_are_all_renewed():
    one, two = grant(1), grant(2)
    assert sorted(what_is_due(seen((two, 1.0), (one, 1.0)), one, two)) == sorted([one.names[0], two.names[0]])


def test_with_half_of_its_time_left_nothing_is_done_and_each_renewal_counts():
    done = threading.Semaphore(0)
    renewals = Renewals(lambda _: done.release(), now=lambda: NOW, renew_for_s=RENEW_FOR_S)
    one = grant(1)
    with renewals.keeping(one):
        renewals.look(seen((one, RENEW_FOR_S * 0.6)))
        assert not done.acquire(timeout=0.05)
        for number in (1, 2):
            for _ in range(200):  # the first one is over a moment after its beat
                if renewals.renewed >= number:
                    break
                renewals.look(seen((one, 1.0)))
                done.acquire(timeout=0.01)
    assert renewals.renewed >= 2


def test_only_while_it_is_kept_and_again_after_a_failure():
    beats: list[str] = []
    failures = [ServiceUnavailable("Ironic is away")]
    done = threading.Semaphore(0)

    def beat(lease: Grant) -> None:
        beats.append(lease.names[0])
        done.release()
        if failures:
            raise failures.pop()

    renewals = Renewals(beat, now=lambda: NOW, renew_for_s=RENEW_FOR_S)
    one = grant(1)
    shown = seen((one, 1.0))
    renewals.look(shown)
    assert beats == []
    with renewals.keeping(one):
        for number in (1, 2):
            for _ in range(200):  # the failed one is free again a moment after its beat
                if len(beats) >= number:
                    break
                renewals.look(shown)
                done.acquire(timeout=0.01)
    renewals.look(shown)
    assert not done.acquire(timeout=0.05)
    assert beats == [one.names[0]] * 2
    assert renewals.renewed == 1


def test_a_slow_renewal_is_not_begun_twice():
    begun = threading.Semaphore(0)
    go_on = threading.Event()

    def beat(lease: Grant) -> None:
        begun.release()
        go_on.wait(5)

    renewals = Renewals(beat, now=lambda: NOW, renew_for_s=RENEW_FOR_S)
    one = grant(1)
    with renewals.keeping(one):
        for _ in range(5):
            renewals.look(seen((one, 1.0)))
        assert begun.acquire(timeout=5)
        assert not begun.acquire(timeout=0.05)
        go_on.set()
