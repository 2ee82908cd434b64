"""What the entries of a journal tell of a lease: its machines, its end, its repairs, what it cost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mlops_sdk.capacity.cost import Interval
from mlops_sdk.capacity.evidence import NodeEvidence, Outcome
from mlops_sdk.capacity.lease import LeaseRequest, Priority, to_iso
from mlops_sdk.capacity.lifecycle import EndReason, LeaseState
from mlops_sdk.capacity.members import Replacement
from mlops_sdk.history import Generation, History, read_history, request_from_json, request_to_json, same_machines
from mlops_sdk.journal import Entry, EntryKind

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
DEADLINE = NOW + timedelta(hours=1)
INTENT, OUTCOME, EVENT, EVIDENCE = EntryKind.INTENT, EntryKind.OUTCOME, EntryKind.EVENT, EntryKind.EVIDENCE
REQUEST = LeaseRequest(
    nodes=2,
    resource_class="gpu",
    deadline=DEADLINE,
    traits=("ib", "fast"),
    wait_s=30.0,
    provider="nova",
    priority=Priority.URGENT,
    preemptible=True,
    spares=1,
    machines=("gpu-01", "gpu-02", "gpu-03"),
    project="vision",
    hold_on_failure_s=60.0,
)
A, B = "ml-a-g1-0", "ml-a-g1-1"


class Told:
    """A journal that is being written; a minute passes before each entry."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, kind: EntryKind, action: str, resource: str = "", generation: int = 1, /, **data: Any) -> Told:
        number = len(self.entries) + 1
        at = NOW + timedelta(minutes=number)
        entry = Entry(
            number=number,
            at=at,
            writer="run-1",
            kind=kind,
            action=action,
            resource=resource,
            generation=generation,
            data=data,
        )
        self.entries.append(entry)
        return self

    def asked(self, generation: int = 1, request: LeaseRequest = REQUEST) -> Told:
        return self.add(INTENT, "lease", "", generation, request=request_to_json(request))

    def leased(self, *names: str, generation: int = 1) -> Told:
        for name in names:
            self.add(OUTCOME, "allocation.create", name, generation, allocation_id=f"id-{name}", node_id=f"m-{name}")
        return self.add(OUTCOME, "lease", "", generation)

    def released(self, name: str, outcome: Outcome = Outcome.CLEANED, reason: EndReason = EndReason.DEADLINE) -> Told:
        evidence = NodeEvidence(
            resource=name, allocation_id="", node_id="", outcome=outcome, reason=reason, released_by="reaper"
        )
        return self.add(EVIDENCE, "machine.released", name, **evidence.to_json())

    def read(self) -> History:
        return read_history(self.entries)

    def first(self) -> Generation:
        return self.read().generations[1]


def test_a_request_is_journalled_whole_and_an_old_one_reads_as_it_was_meant():
    assert request_from_json(request_to_json(REQUEST)) == REQUEST
    old = {"nodes": 1, "resource_class": "gpu", "traits": [], "deadline": to_iso(DEADLINE), "wait_s": 0}
    assert request_from_json(old) == LeaseRequest(nodes=1, resource_class="gpu", deadline=DEADLINE)


def test_two_requests_for_the_same_machines_may_differ_in_their_times_alone():
    later = LeaseRequest(nodes=1, resource_class="gpu", deadline=DEADLINE + timedelta(hours=1), wait_s=9.0)
    sooner = LeaseRequest(nodes=1, resource_class="gpu", deadline=DEADLINE, wait_s=3.0)
    assert same_machines(later, sooner)
    assert not same_machines(LeaseRequest(nodes=2, resource_class="gpu", deadline=DEADLINE), sooner)


def test_it_says_whose_run_it_is_and_when_something_was_last_heard():
    told = Told().add(EVENT, "run", "", 0, run_id="r", name="nightly", owner="me").asked()
    history = told.read()
    assert (history.run_id, history.name, history.owner) == ("r", "nightly", "me")
    assert history.started_at == NOW + timedelta(minutes=1)
    assert history.last_at == NOW + timedelta(minutes=2)
    assert list(history.generations) == [1]
    nameless = Told().add(EVENT, "run", "", 0).read()
    assert (nameless.run_id, nameless.name, nameless.owner) == ("", "", "")


def test_the_first_request_of_a_generation_counts():
    other = LeaseRequest(nodes=9, resource_class="gpu", deadline=DEADLINE)
    assert Told().asked().asked(request=other).first().request == REQUEST


def test_each_machine_is_known_by_what_was_written_of_it():
    told = Told().asked().add(INTENT, "allocation.create", A)
    assert told.first().pieces[A].since is None
    told.add(OUTCOME, "allocation.create", A, allocation_id="id-1", node_id="m1", node_name="gpu-01")
    piece = told.first().pieces[A]
    assert (piece.name, piece.allocation_id, piece.node_id, piece.node_name) == (A, "id-1", "m1", "gpu-01")
    assert piece.since == NOW + timedelta(minutes=3)
    assert not piece.deployed
    assert not piece.failed
    assert told.add(INTENT, "machine.deploy", A).first().pieces[A].deployed
    piece = told.first().pieces[A]
    assert (piece.allocation_id, piece.node_id, piece.node_name) == ("id-1", "m1", "gpu-01")  # said once is enough
    assert piece.since == NOW + timedelta(minutes=3)
    assert told.add(EVENT, "machine.failed", A, seen="no boot").first().pieces[A].failed == "no boot"
    assert Told().asked().add(EVENT, "machine.failed", A).first().pieces[A].failed


@pytest.mark.parametrize(("state", "deployed"), [("available", False), ("active", True)])
def test_a_machine_that_was_free_again_when_its_lease_was_removed_was_never_used(state, deployed):
    told = Told().asked().leased(A).add(INTENT, "machine.deploy", A)
    assert told.add(INTENT, "allocation.delete", A, provision_state=state).first().pieces[A].deployed is deployed


def test_a_credential_that_was_made_again_is_not_revoked_any_more():
    told = Told().asked().add(OUTCOME, "credential.create", "c").add(INTENT, "credential.revoke", "c")
    assert (told.first().credentials, told.first().revoked) == ({"c"}, set())
    assert told.add(OUTCOME, "credential.revoke", "c").first().revoked == {"c"}
    assert told.add(INTENT, "credential.create", "c").first().revoked == set()


def test_repairs_are_told_from_their_beginning_to_their_end():
    told = Told().asked().leased(A, B).add(INTENT, "node.replace", A, lost=0, by=2, unfenced="it burned")
    assert told.first().replacements == [Replacement(lost=0, by=2, unfenced="it burned")]
    assert told.add(OUTCOME, "node.replace", A, lost=0, by=2).first().replacements[0].done
    told.add(INTENT, "node.replace", B, lost=1, by=3)
    assert told.first().replacements[1] == Replacement(lost=1, by=3)
    assert told.add(EVENT, "node.replace", B, lost=1, by=3).first().replacements[1].dropped


def test_an_extension_counts_when_it_is_done_and_of_two_the_later_deadline():
    told = Told().asked().leased(A).add(INTENT, "lease.extend", deadline=to_iso(DEADLINE + timedelta(hours=9)))
    assert told.first().request == REQUEST
    for hours in (2, 1):
        told.add(OUTCOME, "lease.extend", deadline=to_iso(DEADLINE + timedelta(hours=hours)))
    request = told.first().request
    assert request is not None
    assert request.deadline == DEADLINE + timedelta(hours=2)
    assert told.first().end == request.deadline
    assert told.first().ends_at is None


def test_who_is_preempted_ends_before_its_deadline_and_who_is_near_it_does_not():
    told = Told().asked().leased(A)
    told.add(EVENT, "lease.notice", reason="deadline", ends_at=to_iso(NOW + timedelta(minutes=9)))
    assert (told.first().end, told.first().preempted) == (DEADLINE, False)
    told.add(EVENT, "lease.notice", reason="preempted", ends_at=to_iso(NOW + timedelta(minutes=9)))
    assert (told.first().end, told.first().preempted) == (NOW + timedelta(minutes=9), True)
    assert told.first().state is LeaseState.BEFORE_END


def test_what_is_kept_ends_when_that_was_said_and_an_extension_moves_it():
    until = NOW + timedelta(minutes=20)
    told = Told().asked().leased(A).add(INTENT, "lease.hold", until=to_iso(until))
    assert told.first().ends_at is None
    told.add(OUTCOME, "lease.hold", until=to_iso(until))
    assert (told.first().end, told.first().state) == (until, LeaseState.HELD_FOR_DEBUG)
    told.add(OUTCOME, "lease.extend", deadline=to_iso(NOW + timedelta(minutes=10)))
    assert told.first().end == until
    told.add(OUTCOME, "lease.extend", deadline=to_iso(NOW + timedelta(minutes=30)))
    assert told.first().end == NOW + timedelta(minutes=30)


def test_what_was_kept_warm_lasts_again_when_the_next_task_takes_it():
    told = Told().asked().leased(A).add(OUTCOME, "lease.park", until=to_iso(NOW + timedelta(minutes=20)))
    assert told.first().end == NOW + timedelta(minutes=20)
    told.add(EVENT, "lease.queue")
    assert told.first().end == NOW + timedelta(minutes=20)
    told.add(OUTCOME, "lease")
    assert (told.first().end, told.first().state) == (DEADLINE, LeaseState.ACTIVE)
    told.add(OUTCOME, "lease.extend", deadline=to_iso(DEADLINE + timedelta(hours=1)))
    assert told.first().end == DEADLINE + timedelta(hours=1)


def test_who_takes_a_lease_over_that_is_preempted_does_not_lengthen_it():
    told = Told().asked().leased(A)
    told.add(EVENT, "lease.notice", reason="preempted", ends_at=to_iso(NOW + timedelta(minutes=9)))
    told.add(OUTCOME, "lease")
    assert told.first().end == NOW + timedelta(minutes=9)


def test_it_is_over_for_good_when_all_is_back_and_every_credential_is_revoked():
    told = Told().asked().add(OUTCOME, "credential.create", "c").leased(A, B)
    told.released(A)
    assert (told.first().state, told.first().returned) == (LeaseState.ACTIVE, False)
    told.released(B, Outcome.PENDING)
    assert (told.first().state, told.first().returned) == (LeaseState.ACTIVE, False)
    told.released(B)
    assert (told.first().state, told.first().returned) == (LeaseState.LOST, True)
    assert told.first().reason is EndReason.DEADLINE
    told.add(OUTCOME, "credential.revoke", "c")
    assert told.first().state is LeaseState.RELEASED
    assert told.first().impossible == []


def test_machines_that_are_back_are_not_all_of_it_while_one_credential_lives():
    told = Told().asked().add(OUTCOME, "credential.create", "c").add(OUTCOME, "credential.create", "c1").leased(A)
    told.add(OUTCOME, "credential.revoke", "c").released(A)
    assert told.first().state is LeaseState.LOST
    told.add(OUTCOME, "credential.revoke", "c1")
    assert told.first().state is LeaseState.RELEASED


def test_why_it_ended_is_what_was_said_first():
    told = Told().asked().leased(A).add(INTENT, "release", reason="cancelled").add(INTENT, "release", reason="finished")
    assert told.first().reason is EndReason.CANCELLED
    assert told.released(A).first().reason is EndReason.CANCELLED
    assert Told().asked().add(INTENT, "release").first().reason is EndReason.FINISHED
    assert Told().asked().add(OUTCOME, "release", reason="cancelled").first().reason is None


def test_that_it_was_preempted_is_known_from_the_reaper_as_well():
    told = Told().asked().leased(A).released(A, reason=EndReason.PREEMPTED)
    assert told.first().preempted
    assert not Told().asked().leased(A).released(A).first().preempted


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ({A: "cleaned"}, LeaseState.RELEASED),
        ({A: "pending"}, LeaseState.RELEASING),
        ({}, LeaseState.RELEASED),
        (None, LeaseState.RELEASED),
    ],
)
def test_a_release_whose_cleaning_goes_on_is_not_the_end(outcomes, state):
    told = Told().asked().leased(A).add(INTENT, "release")
    told.add(OUTCOME, "release", **({} if outcomes is None else {"outcomes": outcomes}))
    assert told.first().state is state


def test_what_cannot_be_is_told_with_its_entry():
    told = Told().asked().add(OUTCOME, "release")
    (words,) = told.first().impossible
    assert "entry 2" in words
    assert "run-1" in words


def test_what_was_paid_for_is_what_ended_and_what_is_held_until_now():
    told = Told().asked().leased(A, B)
    start, end = NOW + timedelta(minutes=2), NOW + timedelta(minutes=30)
    told.add(
        EntryKind.COST,
        "machine.interval",
        A,
        node_id="m-a",
        resource_class="gpu",
        start=to_iso(start),
        end=to_iso(end),
    ).released(A)
    now = NOW + timedelta(hours=2)
    assert told.read().intervals_until(now) == [
        Interval(node_id="m-a", resource_class="gpu", start=start, end=end),
        Interval(node_id=f"m-{B}", resource_class="gpu", start=NOW + timedelta(minutes=3), end=now),
    ]


def test_nothing_is_paid_for_what_was_only_asked_for():
    told = Told().asked().add(INTENT, "allocation.create", A, node_id="m1").add(OUTCOME, "allocation.create", B)
    assert told.read().intervals_until(NOW + timedelta(hours=2)) == []
    nobody_asked = Told().add(OUTCOME, "allocation.create", A, node_id="m1")
    assert nobody_asked.read().intervals_until(NOW + timedelta(hours=2)) == []


def test_the_latest_generation_is_tried_while_it_lasts():
    assert History().generation_to_try() == 1
    assert History().generation_to_try(3) == 3
    told = Told().asked().leased(A)
    assert told.read().lasting == REQUEST
    assert told.read().generation_to_try() == 1
    assert told.read().generation_to_try(4) == 4
    told.add(INTENT, "release")
    assert told.read().lasting is None
    assert told.read().generation_to_try() == 2
    told.asked(generation=2).leased(A, generation=2)
    latest = told.read().latest
    assert latest is not None
    assert (latest.number, told.read().generation_to_try()) == (2, 2)


def test_what_is_kept_warm_is_for_who_wants_the_same_and_what_is_held_for_a_person():
    until = to_iso(NOW + timedelta(minutes=20))
    warm = Told().asked().leased(A).add(OUTCOME, "lease.park", until=until).read()
    other = LeaseRequest(nodes=9, resource_class="gpu", deadline=DEADLINE)
    assert warm.lasting is None
    assert warm.generation_to_try() == 1
    assert warm.generation_to_try(wanted=REQUEST) == 1
    assert warm.generation_to_try(wanted=other) == 2
    held = Told().asked().leased(A).add(OUTCOME, "lease.hold", until=until).read()
    assert held.generation_to_try(wanted=REQUEST) == 2
    working = Told().asked().leased(A).read()
    assert working.generation_to_try(wanted=other) == 1
