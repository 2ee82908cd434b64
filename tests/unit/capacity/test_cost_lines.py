"""What a run costs, line by line: from its journal, and by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.capacity.cost import Interval, node_seconds, price_of
from mlops_sdk.capacity.cost_lines import (
    GIB,
    MONTH_S,
    Hold,
    Line,
    Prices,
    Rollout,
    Served,
    Spending,
    Stored,
    Work,
    by_line,
    node_seconds_of,
    periods,
    portions,
    total,
)
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.spending import read_record
from mlops_sdk.history import request_to_json
from mlops_sdk.journal import Entry, EntryKind

START = datetime(2026, 5, 1, tzinfo=UTC)
PRICES = Prices(node_second={"gpu": 0.5, "cpu": 0.25}, gib_month=2.0, serving_second=0.125)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def hold(start: float, end: float, node: str = "a", kind: str = "gpu", generation: int = 1) -> Hold:
    interval = Interval(node_id=node, resource_class=kind, start=at(start), end=at(end))
    return Hold(generation=generation, interval=interval)


def work(start: float, end: float, *, counted: bool, generation: int = 1) -> Work:
    return Work(generation=generation, start=at(start), end=at(end), counted=counted)


def costs(spending: Spending, **span: datetime) -> dict[str, float]:
    return {line.value: cost for line, cost in by_line(portions(spending, PRICES, **span)).items() if cost}


def test_a_spare_is_on_a_line_of_its_own_until_it_takes_the_place_of_a_lost_machine():
    lost = replace(hold(0, 120), away_from=at(50))
    spare = replace(hold(0, 200, "b"), spare_until=at(60))
    spending = Spending(holds=(lost, spare), works=(work(10, 50, counted=False), work(60, 190, counted=True)))
    assert costs(spending) == {
        "failed": 20.0,  # of the lost one
        "idle": 5.0 + 5.0 + 35.0,  # before and after the work, and of the lost one until it is given back
        "spare": 30.0,
        "training": 65.0,
    }
    assert sum(costs(spending).values()) == (120 + 200) * 0.5


def test_a_journal_tells_who_was_a_spare_and_who_was_lost():
    request = LeaseRequest(nodes=1, spares=1, resource_class="gpu", deadline=at(1000))
    told = [
        (EntryKind.INTENT, "lease", "", 0, {"request": request_to_json(request)}),
        (EntryKind.OUTCOME, "allocation.create", "ml-aaaaaaaaaaaa-g1-0", 0, {"node_id": "a"}),
        (EntryKind.OUTCOME, "allocation.create", "ml-aaaaaaaaaaaa-g1-1", 0, {"node_id": "b"}),
        (EntryKind.INTENT, "node.replace", "ml-aaaaaaaaaaaa-g1-0", 50, {"lost": 0, "by": 1}),
        (EntryKind.OUTCOME, "node.replace", "ml-aaaaaaaaaaaa-g1-0", 60, {"lost": 0, "by": 1}),
    ]
    entries = [
        Entry(number=n, at=at(when), writer="w", kind=kind, action=action, resource=name, generation=1, data=data)
        for n, (kind, action, name, when, data) in enumerate(told, start=1)
    ]
    holds = {hold.interval.node_id: hold for hold in read_record("k", entries, at(100)).spending.holds}
    assert (holds["a"].spare_until, holds["a"].away_from) == (None, at(50))
    assert (holds["b"].spare_until, holds["b"].away_from) == (at(60), None)
    assert len(read_record("k", entries, at(100)).ahead(at(100))) == 2  # a spare is promised to be paid for, too


def test_each_second_of_a_machine_is_on_one_line():
    spending = Spending(
        holds=(hold(0, 100), hold(0, 100, "b")),
        works=(work(10, 30, counted=False), work(30, 90, counted=True)),
    )
    assert costs(spending) == {"training": 60.0, "failed": 20.0, "idle": 20.0}


def test_an_attempt_is_charged_to_the_machines_of_its_own_generation():
    spending = Spending(
        holds=(hold(0, 50, "a"), hold(40, 100, "b", generation=2)),
        works=(work(40, 100, counted=True, generation=2),),
    )
    assert costs(spending) == {"training": 30.0, "idle": 25.0}  # the old machine is only being cleaned


def test_storage_and_serving_are_lines_of_their_own():
    spending = Spending(
        stored=(Stored(bytes=3 * GIB, start=at(0), end=at(MONTH_S / 2)),),
        served=(
            Served(endpoint="http://one", version="1", start=at(0), end=at(40)),
            Served(endpoint="http://one", version="1", start=at(30), end=at(80)),
        ),
    )
    assert costs(spending) == pytest.approx({"storage": 3.0, "serving": 10.0})


def test_only_a_span_of_time_can_be_asked_for():
    spending = Spending(
        holds=(hold(0, 100), hold(200, 300, "b")),
        works=(work(50, 250, counted=True),),
        stored=(Stored(bytes=GIB, start=at(0), end=at(100)),),
        served=(Served(endpoint="e", version="1", start=at(0), end=at(100)),),
    )
    assert costs(spending, since=at(90), until=at(95)) == pytest.approx(
        {"training": 2.5, "storage": 2 * 5 / MONTH_S, "serving": 0.625}
    )
    assert costs(spending, until=at(0)) == {}
    assert costs(spending, since=at(300)) == {}


def test_an_endpoint_serves_one_version_until_the_next_is_rolled_out():
    found = periods(
        [
            Rollout(run_key="new", endpoint="e", version="2", at=at(60)),
            Rollout(run_key="old", endpoint="e", version="1", at=at(10)),
            Rollout(run_key="else", endpoint="f", version="1", at=at(20)),
        ],
        at(100),
    )
    seconds = {key: [(s.end - s.start).total_seconds() for s in items] for key, items in found.items()}
    assert seconds == {"old": [50.0], "new": [40.0], "else": [80.0]}


moments = st.integers(0, 40)
spans = st.tuples(moments, moments).map(sorted)


@st.composite
def anything(draw):
    nodes = st.sampled_from("abc")
    holds = draw(st.lists(st.tuples(st.tuples(moments, moments), nodes, st.integers(1, 2)), max_size=6))
    works = draw(st.lists(st.tuples(spans, st.booleans(), st.integers(1, 2)), max_size=4))
    return Spending(
        holds=tuple(hold(s, e, node, {"a": "gpu", "b": "gpu", "c": "cpu"}[node], g) for (s, e), node, g in holds),
        works=tuple(work(s, e, counted=counted, generation=g) for (s, e), counted, g in works),
        stored=tuple(Stored(bytes=GIB * s, start=at(s), end=at(e)) for s, e in draw(st.lists(spans, max_size=2))),
        served=tuple(
            Served(endpoint="e", version="1", start=at(s), end=at(e)) for s, e in draw(st.lists(spans, max_size=3))
        ),
    )


@given(anything())
def test_the_lines_of_machines_add_up_to_what_was_held_and_nothing_is_negative(spending):
    items = portions(spending, PRICES)
    intervals = [h.interval for h in spending.holds]
    assert all(item.quantity > 0 and item.cost >= 0 for item in items)
    assert node_seconds_of(items) == pytest.approx(node_seconds(intervals))
    machines = [i for i in items if i.line in {Line.TRAINING, Line.FAILED, Line.IDLE}]
    assert total(machines) == pytest.approx(price_of(intervals, PRICES.node_second))
    assert total(items) == pytest.approx(sum(by_line(items).values()))


@given(anything(), st.integers(0, 40))
def test_two_spans_that_touch_cost_as_much_as_both_together(spending, cut):
    parts = [portions(spending, PRICES, until=at(cut)), portions(spending, PRICES, since=at(cut))]
    both = {line: sum(by_line(part)[line] for part in parts) for line in Line}
    assert both == pytest.approx(by_line(portions(spending, PRICES)))


REQUEST = LeaseRequest(nodes=1, resource_class="gpu", deadline=at(1000))
NAME = "ml-aaaaaaaaaaaa-g1-0"


class Diary:
    """A journal, entry by entry."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def write(self, seconds: float, kind: EntryKind, action: str, resource: str = "", /, **data: object) -> None:
        self.entries.append(
            Entry(
                number=len(self.entries) + 1,
                at=at(seconds),
                writer="test",
                kind=kind,
                action=action,
                resource=resource,
                generation=0 if action == "run" else 1,
                data=data,
            )
        )

    def begin(self) -> None:
        self.write(0, EntryKind.EVENT, "run", run_id="1", name="nightly", owner="ada")
        self.write(0, EntryKind.INTENT, "lease", request=request_to_json(REQUEST))
        self.write(1, EntryKind.OUTCOME, "allocation.create", NAME, allocation_id="x", node_id="a")
        self.write(9, EntryKind.OUTCOME, "lease", nodes=[])

    def attempt(self, number: int, start: float, end: float | None = None, cause: str = "succeeded") -> None:
        self.write(start, EntryKind.INTENT, "attempt", attempt=number)
        if end is not None:
            self.write(end, EntryKind.OUTCOME, "attempt", attempt=number, cause=cause)

    def release(self, seconds: float, cleaned: float, *, interval: bool = True) -> None:
        self.write(seconds, EntryKind.INTENT, "release", reason="finished")
        self.write(
            cleaned,
            EntryKind.EVIDENCE,
            "machine.released",
            NAME,
            resource=NAME,
            node_id="a",
            outcome="cleaned",
            reason="finished",
            started_at=at(seconds).isoformat(),
            finished_at=at(cleaned).isoformat(),
        )
        if interval:
            start, end = at(1).isoformat(), at(cleaned).isoformat()
            self.write(
                cleaned,
                EntryKind.COST,
                "machine.interval",
                NAME,
                node_id="a",
                resource_class="gpu",
                start=start,
                end=end,
            )

    def costs(self, now: float = 500) -> dict[str, float]:
        return costs(read_record("k", self.entries, at(now)).spending)


def finished() -> Diary:
    diary = Diary()
    diary.begin()
    diary.attempt(1, 11, 21, cause="killed")
    diary.attempt(2, 25, 65)
    diary.write(66, EntryKind.OUTCOME, "train", trained={})
    diary.release(71, 81)
    diary.write(90, EntryKind.OUTCOME, "register", "models:/lm/3")
    diary.write(95, EntryKind.OUTCOME, "deploy", "http://serve", version="3")
    return diary


def test_a_finished_run_is_charged_from_allocation_to_cleaning():
    assert finished().costs() == {"training": 20.0, "failed": 5.0, "idle": 15.0}


def test_models_and_roll_outs_are_read_with_it():
    record = read_record("k", finished().entries, at(500))
    assert record.models == ("models:/lm/3",)
    assert record.rollouts == (Rollout(run_key="k", endpoint="http://serve", version="3", at=at(95)),)
    assert record.ahead(at(500)) == ()


def test_a_machine_whose_interval_was_not_written_down_counts_until_its_return():
    diary = Diary()
    diary.begin()
    diary.release(71, 81, interval=False)
    assert diary.costs() == {"idle": 40.0}


def test_a_run_that_still_works_counts_until_now_and_its_attempt_as_training():
    diary = Diary()
    diary.begin()
    diary.attempt(1, 11)
    assert diary.costs(now=31) == {"training": 10.0, "idle": 5.0}
    record = read_record("k", diary.entries, at(31))
    assert [(i.start, i.end) for i in record.ahead(at(31))] == [(at(31), at(1000))]


def test_an_attempt_without_an_end_ends_with_the_next_or_with_the_release_and_does_not_count():
    diary = Diary()
    diary.begin()
    diary.attempt(1, 11)
    diary.attempt(2, 21)
    diary.release(31, 41)
    assert diary.costs() == {"failed": 10.0, "idle": 10.0}


def test_a_training_that_was_written_down_counts_though_its_attempt_has_no_end():
    diary = Diary()
    diary.begin()
    diary.attempt(1, 11)
    diary.write(31, EntryKind.OUTCOME, "train", trained={})
    diary.release(31, 41)
    assert diary.costs() == {"training": 10.0, "idle": 10.0}


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_entries_does_not_matter(random):
    diary = finished()
    expected = diary.costs()
    random.shuffle(diary.entries)
    assert diary.costs() == expected


@given(st.integers(0, 16))
def test_whatever_was_not_written_yet_the_lines_add_up_to_the_machines_of_the_history(known):
    diary = finished()
    del diary.entries[known:]
    record = read_record("k", diary.entries, at(500))
    held = node_seconds(record.history.intervals_until(at(500)))
    items = portions(record.spending, PRICES)
    lost = 80 if known and any(e.kind is EntryKind.EVIDENCE for e in diary.entries) else held
    assert node_seconds_of(items) == pytest.approx(max(held, lost))
