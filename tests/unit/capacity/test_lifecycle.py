"""The life of a lease: the table is whole, the page shows it, and a journal is read by it."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlops_sdk.capacity import lifecycle
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.lifecycle import (
    EDGES,
    END_RETRY,
    END_STATUS,
    END_TEXT,
    EVENT_TEXT,
    HOLDS,
    OVER,
    RETRY_TEXT,
    STATE_TEXT,
    TARGET,
    EndReason,
    LeaseEvent,
    LeaseState,
    Retry,
    advance,
    reason_of,
)
from mlops_sdk.cli.lease import lease
from mlops_sdk.errors import ImpossibleEvent, JobFailed, LeaseEnding, LeaseLost, NoCapacity, Preempted
from mlops_sdk.history import read_history, request_to_json
from mlops_sdk.journal import Entry, EntryKind

PAGE = Path(__file__).parents[3] / "docs/lifecycle.md"
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def can(state: LeaseState, event: LeaseEvent) -> LeaseState | None:
    try:
        return advance(state, event, raw="")
    except ImpossibleEvent:
        return None


def reached(start: LeaseState) -> set[LeaseState]:
    found, todo = {start}, deque([start])
    while todo:
        state = todo.popleft()
        following = {can(state, event) for event in LeaseEvent} - {None} - found
        found |= following
        todo.extend(following)
    return found


def test_the_maps_are_total():
    assert set(STATE_TEXT) == set(LeaseState)
    assert set(EVENT_TEXT) == set(LeaseEvent)
    assert set(END_TEXT) == set(END_STATUS) == set(END_RETRY) == set(EndReason)
    assert set(RETRY_TEXT) == set(Retry)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), EndReason.CANCELLED),
        (ZeroDivisionError(), EndReason.WORK_FAILED),
        (JobFailed("x"), EndReason.WORK_FAILED),
        (NoCapacity("x"), EndReason.NO_CAPACITY),
        (LeaseLost("x"), EndReason.NODE_FAILED),
        (LeaseEnding("x"), EndReason.DEADLINE),
        (Preempted("x"), EndReason.PREEMPTED),
    ],
)
def test_an_error_says_why_the_lease_ended(error, reason):
    assert reason_of(error) is reason


def test_no_edge_is_written_twice():
    assert len({(state, event) for state, event, _ in EDGES}) == len(EDGES)


def test_every_state_can_be_reached_and_left_to_the_end():
    assert reached(LeaseState.NEW) == set(LeaseState)
    for state in LeaseState:
        assert LeaseState.RELEASED in reached(state), state
    assert reached(LeaseState.RELEASED) == {LeaseState.RELEASED}


@pytest.mark.parametrize("state", sorted(set(LeaseState) - {LeaseState.NEW}, key=lambda state: state.value))
def test_whatever_was_asked_for_can_be_given_back(state):
    assert can(state, LeaseEvent.GIVING_BACK) in OVER


@pytest.mark.parametrize("state", sorted(TARGET, key=lambda state: state.value))
def test_a_transient_state_reaches_its_target(state):
    assert TARGET[state] in reached(state)
    assert TARGET[state] not in TARGET


def test_what_is_over_never_lasts_again():
    for state in OVER:
        assert reached(state) <= OVER
    assert not HOLDS & OVER


def test_a_late_word_changes_nothing():
    for state in OVER:
        for event in lifecycle.LATE:
            assert can(state, event) is state


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (LeaseState.NEW, LeaseEvent.LEASED),
        (LeaseState.PENDING, LeaseEvent.EXTENDED),
        (LeaseState.ACTIVE, LeaseEvent.RETURNED),
        (LeaseState.HELD_FOR_DEBUG, LeaseEvent.PARKED),
    ],
)
def test_an_event_without_an_edge_is_an_error_with_what_told_of_it(state, event):
    with pytest.raises(ImpossibleEvent, match=state.value) as caught:
        advance(state, event, raw="entry 7: outcome 'x' by run-1")
    assert caught.value.seen == "entry 7: outcome 'x' by run-1"


def test_the_page_shows_the_table(tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text())
    result = CliRunner().invoke(lease, ["states", "--into", str(copy)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert copy.read_text() == PAGE.read_text(), "stale: run `mlops lease states --into docs/lifecycle.md`"


def test_a_page_without_its_place_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Something else\n")
    result = CliRunner().invoke(lease, ["states", "--into", str(page)])
    assert result.exit_code != 0
    assert page.read_text() == "# Something else\n"


def entries(*told: tuple[EntryKind, str]) -> list[Entry]:
    request = LeaseRequest(nodes=1, resource_class="gpu", deadline=NOW)
    return [
        Entry(
            number=number,
            at=NOW,
            writer="run-1",
            kind=kind,
            action=action,
            generation=1,
            data={"request": request_to_json(request)} if action == "lease" else {},
        )
        for number, (kind, action) in enumerate(told, start=1)
    ]


def test_a_journal_that_contradicts_itself_is_shown_and_can_still_be_given_back():
    told = (
        (EntryKind.INTENT, "lease"),
        (EntryKind.OUTCOME, "release"),
        (EntryKind.INTENT, "release"),
    )
    found = read_history(entries(*told)).generations[1]
    assert found.impossible == [
        "a lease that is 'requested' cannot be 'returned' (entry 2: outcome 'release' by run-1)"
    ]
    assert found.state is LeaseState.RELEASING
