"""Who may ask next: priority, fair share, backfill, preemption. And what holds whatever people ask for."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.capacity.lease import Priority
from mlops_sdk.capacity.queue import Holder, Slot, Ticket, order, plan

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
CLASS = "gpu.h200.8x"


def ticket(run: str, nodes: int = 1, *, asked: float = 0, hours: float = 1, **changes) -> Ticket:
    values = {"generation": 1, "project": run[0], "priority": Priority.NORMAL, "resource_class": CLASS, **changes}
    return Ticket(
        run_key=run,
        nodes=nodes,
        asked_at=NOW + timedelta(seconds=asked),
        lasts_s=hours * 3600,
        renewed_until=NOW + timedelta(seconds=30),
        **values,
    )


def free(count: int, *, first: int = 1, **changes) -> list[Slot]:
    return [Slot(id=f"gpu-{n:02d}", **{"resource_class": CLASS, **changes}) for n in range(first, first + count)]


def busy(name: str, run: str, *, ends_in_h: float, since_h: float = 1, **changes) -> Slot:
    values = {"project": run[:1], "priority": Priority.NORMAL, **changes}
    since, ends_at = NOW - timedelta(hours=since_h), NOW + timedelta(hours=ends_in_h)
    return Slot(id=name, resource_class=CLASS, holder=Holder(run_key=run, since=since, ends_at=ends_at, **values))


def may_ask(turns) -> list[str]:
    return [turn.ticket.run_key for turn in turns if turn.may_ask]


def test_who_fits_may_ask_and_a_dead_run_is_left_out():
    dead = ticket("dead", 4)
    dead = Ticket(**{**{f: getattr(dead, f) for f in dead.__slots__}, "renewed_until": NOW - timedelta(seconds=1)})
    turns = plan([dead, ticket("a1", 3), ticket("b1", 2, asked=1)], free(4), now=NOW)
    assert may_ask(turns) == ["a1"]
    assert [turn.position for turn in turns] == [1, 2]


def test_who_has_its_machines_already_takes_no_others():
    slots = [*free(1), busy("gpu-02", "a1", ends_in_h=1, generation=1)]
    served, half, other = ticket("a1"), ticket("a1", 2), ticket("b1", asked=1)
    assert may_ask(plan([served, other], slots, now=NOW)) == ["b1"]
    assert may_ask(plan([half, other], slots, now=NOW)) == ["a1"]  # one of its two is still to come
    (turn, _) = plan([ticket("a1", generation=2), other], slots, now=NOW)
    assert (turn.ticket.run_key, turn.may_ask) == ("a1", True)  # what an earlier generation has is on its way back


def test_a_higher_priority_goes_first_whoever_asked_earlier():
    turns = plan([ticket("a1", 4), ticket("b1", 4, asked=60, priority=Priority.URGENT)], free(4), now=NOW)
    assert may_ask(turns) == ["b1"]


def test_the_project_that_had_less_for_its_share_goes_first():
    waiting = [ticket("a1"), ticket("b1", asked=1)]
    assert [t.run_key for t in order(waiting, use={"a": 100.0, "b": 50.0}, shares={})] == ["b1", "a1"]
    assert [t.run_key for t in order(waiting, use={"a": 100.0, "b": 50.0}, shares={"a": 4.0})] == ["a1", "b1"]


def test_projects_take_turns():
    many = [ticket(f"a{n}", asked=n) for n in range(3)] + [ticket("b1", asked=9)]
    assert [t.run_key for t in order(many, use={}, shares={})] == ["a0", "b1", "a1", "a2"]


def test_what_does_not_fit_is_promised_the_time_at_which_enough_leases_end():
    slots = [*free(1), busy("gpu-02", "x1", ends_in_h=3), busy("gpu-03", "y1", ends_in_h=2)]
    (turn,) = plan([ticket("a1", 2)], slots, now=NOW)
    assert not turn.may_ask
    assert turn.expected_at == NOW + timedelta(hours=2)
    assert "1 of 2 are free" in turn.why


def test_a_short_one_may_go_before_the_promise_and_a_long_one_may_not():
    slots = [*free(1), busy("gpu-02", "x1", ends_in_h=2)]
    waiting = [ticket("a1", 2), ticket("b1", asked=1, hours=3), ticket("c1", asked=2, hours=2)]
    assert may_ask(plan(waiting, slots, now=NOW)) == ["c1"]


def test_a_long_one_may_have_what_the_promise_leaves():
    slots = [*free(1), *free(1, first=4, traits=frozenset({"fast"})), busy("gpu-02", "x1", ends_in_h=2)]
    waiting = [ticket("a1", 2, traits=frozenset({"fast"})), ticket("b1", asked=1, hours=99)]
    turns = plan(waiting, slots, now=NOW)
    assert may_ask(turns) == ["b1"]  # only one fast machine is in service: nothing is promised
    assert "only 1 such machines are in service" in turns[0].why
    slots.append(Slot(id="gpu-05", resource_class=CLASS, traits=frozenset({"fast"}), holder=slots[2].holder))
    assert may_ask(plan(waiting, slots, now=NOW)) == ["b1"]  # the plain one


def test_a_class_that_is_full_holds_up_no_other_class():
    waiting = [ticket("a1", 9), ticket("b1", 2, resource_class="gpu.l4")]
    slots = [busy(f"gpu-{n}", "x1", ends_in_h=1) for n in range(9)]
    slots += [Slot(id=f"l4-{n}", resource_class="gpu.l4") for n in range(2)]
    assert may_ask(plan(waiting, slots, now=NOW)) == ["b1"]


def test_special_machines_are_left_for_who_needs_them():
    slots = [*free(1, traits=frozenset({"ib"})), *free(1, first=2)]
    waiting = [ticket("a1"), ticket("b1", asked=1, traits=frozenset({"ib"}))]
    assert may_ask(plan(waiting, slots, now=NOW)) == ["a1", "b1"]


def test_preemption_ends_the_lowest_and_youngest_and_none_that_is_not_needed():
    slots = [
        busy("gpu-01", "n1", ends_in_h=9, preemptible=True),
        busy("gpu-02", "old", ends_in_h=9, since_h=5, priority=Priority.BATCH, preemptible=True),
        busy("gpu-03", "new", ends_in_h=9, since_h=1, priority=Priority.BATCH, preemptible=True),
        busy("gpu-04", "fix", ends_in_h=9, priority=Priority.BATCH),
    ]
    urgent = ticket("u1", 1, priority=Priority.URGENT)
    (turn,) = plan([urgent], slots, now=NOW)
    assert turn.ends == ("new",)
    (turn,) = plan([ticket("u1", 3, priority=Priority.URGENT)], slots, now=NOW)
    assert set(turn.ends) == {"new", "old", "n1"}
    (turn,) = plan([ticket("u1", 4, priority=Priority.URGENT)], slots, now=NOW)
    assert turn.ends == ()  # one may not be ended: ending the others would be for nothing
    (turn,) = plan([ticket("n2", 1)], slots, now=NOW)
    assert turn.ends == ("new",)  # normal work may end batch work
    (turn,) = plan([ticket("b1", 1, priority=Priority.BATCH)], slots, now=NOW)
    assert turn.ends == ()


def test_who_was_given_notice_counts_as_leaving():
    slots = [
        busy("gpu-01", "x1", ends_in_h=0.1, priority=Priority.BATCH, preemptible=True, ending=True),
        busy("gpu-02", "x2", ends_in_h=9, priority=Priority.BATCH, preemptible=True),
    ]
    (turn,) = plan([ticket("u1", 1, priority=Priority.URGENT)], slots, now=NOW)
    assert turn.ends == ()
    assert turn.expected_at == NOW + timedelta(hours=0.1)


TICKETS = st.lists(
    st.builds(
        lambda n, nodes, asked, hours, priority, project: ticket(
            f"r{n}", nodes, asked=asked, hours=hours, priority=priority, project=project
        ),
        st.integers(0, 999),
        st.integers(1, 5),
        st.integers(0, 100),
        st.integers(1, 8),
        st.sampled_from(Priority),
        st.sampled_from("abc"),
    ),
    max_size=8,
    unique_by=lambda t: t.run_key,
)
SLOTS = st.builds(
    lambda empty, ends: [
        *free(empty),
        *(
            busy(f"busy-{n}", f"h{n}", ends_in_h=hours, priority=priority, preemptible=preemptible)
            for n, (hours, priority, preemptible) in enumerate(ends)
        ),
    ],
    st.integers(0, 6),
    st.lists(st.tuples(st.integers(1, 8), st.sampled_from(Priority), st.booleans()), max_size=6),
)


@given(TICKETS, SLOTS, st.randoms(use_true_random=False))
def test_whatever_is_asked(waiting: list[Ticket], slots: list[Slot], shuffled: random.Random):
    turns = plan(waiting, slots, now=NOW)
    again = list(waiting)
    shuffled.shuffle(again)
    assert plan(again, slots, now=NOW) == turns  # every run computes the same, however it lists the tickets
    empty = sum(slot.holder is None for slot in slots)
    assert sum(turn.ticket.nodes for turn in turns if turn.may_ask) <= empty
    if turns and turns[0].ticket.nodes <= empty:
        assert turns[0].may_ask
    held = {slot.holder.run_key: slot.holder for slot in slots if slot.holder}
    for turn in turns:
        for run in turn.ends:
            assert held[run].preemptible
            assert held[run].priority < turn.ticket.priority
    promised = next((turn for turn in turns if not turn.may_ask and turn.expected_at), None)
    if promised is not None:  # whoever goes before it is gone by then, or leaves it enough
        going = [turn for turn in turns if turn.may_ask]
        end = {turn: NOW + timedelta(seconds=turn.ticket.lasts_s) for turn in going}
        gone = sum(turn.ticket.nodes for turn in going if end[turn] <= promised.expected_at)
        there = sum(turn.ticket.nodes for turn in going if end[turn] > promised.expected_at)
        ended = sum(slot.holder is not None and slot.holder.ends_at <= promised.expected_at for slot in slots)
        assert gone + there <= empty
        assert promised.ticket.nodes <= empty - there + ended


def test_spares_are_taken_if_they_are_free_and_waited_for_by_nobody():
    (all_of_them,) = plan([ticket("a1", 2, spares=1)], free(3), now=NOW)
    assert (all_of_them.may_ask, all_of_them.spares, all_of_them.why) == (True, 1, "free now")
    (some,) = plan([ticket("a1", 2, spares=3)], free(3), now=NOW)
    assert (some.may_ask, some.spares, some.why) == (True, 1, "free now, with 1 of 3 in reserve")
    (none,) = plan([ticket("a1", 3, spares=1)], [*free(2), busy("gpu-03", "b1", ends_in_h=1)], now=NOW)
    assert (none.may_ask, none.spares) == (False, 0)


def test_who_comes_behind_does_not_count_on_what_others_take_in_reserve():
    turns = plan([ticket("a1", 2, spares=1), ticket("b1", 2, asked=1)], free(4), now=NOW)
    assert may_ask(turns) == ["a1"]
    assert turns[1].why == "1 of 2 are free"


def test_no_spare_is_taken_of_what_is_promised_to_somebody():
    slots = [*free(2), busy("gpu-03", "x", ends_in_h=1)]
    big, small = ticket("a1", 3, priority=Priority.URGENT), ticket("b1", 1, spares=1, hours=10)
    assert may_ask(plan([big, small], slots, now=NOW)) == []
    turns = plan([big, small], [*slots, *free(1, first=4)], now=NOW)
    assert may_ask(turns) == ["a1"]
    slots = [*slots, busy("gpu-04", "y", ends_in_h=2), *free(1, first=5)]
    turns = plan([ticket("a1", 4, priority=Priority.URGENT), small], slots, now=NOW)
    assert may_ask(turns) == []
    assert [turn.spares for turn in plan([ticket("a1", 4), ticket("b1", 0, spares=2, hours=10)], slots, now=NOW)] == [
        0,
        0,
    ]


def test_what_is_taken_in_reserve_counts_as_use_of_its_project():
    greedy = [ticket("a1", 1, spares=9), ticket("a2", 1, asked=1)]
    found = order([*greedy, ticket("b1", 5, asked=2), ticket("b2", 5, asked=3)], use={}, shares={})
    assert [each.run_key for each in found] == ["a1", "b1", "b2", "a2"]


def test_only_the_named_machines_count_for_who_names_some():
    slots = [*free(2), busy("gpu-03", "x", ends_in_h=1), Slot(id="uuid-9", name="nine", resource_class=CLASS)]
    assert may_ask(plan([ticket("a1", machines=frozenset({"gpu-03"}))], slots, now=NOW)) == []
    assert may_ask(plan([ticket("a1", 2, machines=frozenset({"gpu-01", "nine"}))], slots, now=NOW)) == ["a1"]
    named, other = ticket("a1", machines=frozenset({"gpu-03"})), ticket("b1", 3, asked=1, hours=10)
    assert may_ask(plan([named, other], slots, now=NOW)) == ["b1"]  # it waits for a machine that nobody else wants
    (unknown,) = plan([ticket("a1", machines=frozenset({"gpu-77"}))], slots, now=NOW)
    assert unknown.why == "0 of 1 are free, and only 0 such machines are in service"


def test_who_had_others_told_knows_when_the_last_of_them_ends():
    told = {"told_for": "a1", "ending": True, "preemptible": True, "priority": Priority.BATCH}
    slots = [
        busy("gpu-01", "x", ends_in_h=0.5, **told),
        busy("gpu-02", "y", ends_in_h=1, **told),
        busy("gpu-03", "z", ends_in_h=3, **{**told, "told_for": "b1"}),
        busy("gpu-04", "w", ends_in_h=4),
        *free(1, first=5),
    ]
    first, second, third = plan(
        [ticket("a1", 4, priority=Priority.URGENT), ticket("b1", 5, asked=1), ticket("c1", 5, asked=2)], slots, now=NOW
    )
    assert first.coming_at == NOW + timedelta(hours=1)
    assert second.coming_at == NOW + timedelta(hours=3)
    assert third.coming_at is None


def test_who_has_none_of_its_machines_and_wants_only_spares_is_told_how_many():
    """As a lease asks that has its machines: under a name that holds nothing."""
    (turn,) = plan([ticket("nobody", 0, spares=3)], free(2), now=NOW)
    assert (turn.may_ask, turn.spares) == (True, 2)
    (none,) = plan([ticket("nobody", 0, spares=3)], [busy("gpu-01", "x", ends_in_h=1)], now=NOW)
    assert (none.may_ask, none.spares) == (True, 0)
