"""What a generation may still ask for, after what was asked for before."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mlops_sdk.agreement import agreed
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.lifecycle import LeaseState
from mlops_sdk.errors import ImpossibleEvent, LeaseLost
from mlops_sdk.history import Generation

WANTED = LeaseRequest(nodes=2, resource_class="gpu", deadline=datetime(2026, 1, 1, tzinfo=UTC), wait_s=5.0)


def ask(wanted: LeaseRequest | None, *, given_back: bool = False, **of_generation: object) -> LeaseRequest:
    generation = replace(Generation(number=3), **of_generation)
    return agreed(generation, wanted, run_key="abc", given_back=given_back)


def test_the_first_request_counts_and_later_only_its_waiting_time():
    assert ask(WANTED) == WANTED
    later = replace(WANTED, deadline=WANTED.deadline + timedelta(hours=1), wait_s=60.0)
    assert ask(later, request=WANTED, state=LeaseState.ACTIVE) == replace(WANTED, wait_s=60.0)
    assert ask(None, request=WANTED, state=LeaseState.ACTIVE) == WANTED


def test_something_else_is_refused_with_both():
    with pytest.raises(LeaseLost, match="generation 3 of run 'abc' was asked for as 2 x gpu, not 3 x gpu"):
        ask(replace(WANTED, nodes=3), request=WANTED, state=LeaseState.ACTIVE)


@pytest.mark.parametrize(
    ("of_generation", "words"),
    [
        ({"request": WANTED, "state": LeaseState.HELD_FOR_DEBUG}, "held for a person"),
        ({"request": WANTED, "state": LeaseState.RELEASED}, "was given back"),
        ({"request": WANTED, "state": LeaseState.ACTIVE, "given_back": True}, "was given back"),
    ],
)
def test_what_is_over_leases_nothing_any_more(of_generation: dict[str, object], words: str):
    with pytest.raises(LeaseLost, match=words):
        ask(WANTED, **of_generation)


def test_who_never_asked_cannot_go_on():
    with pytest.raises(LeaseLost, match="never asked"):
        ask(None)


def test_a_journal_that_contradicts_itself_is_shown():
    with pytest.raises(ImpossibleEvent) as caught:
        ask(WANTED, request=WANTED, impossible=["entry 7: leased after returned"])
    assert caught.value.seen == "entry 7: leased after returned"
