"""Who gets machines next, where it is close: equal claims, dead tickets, promises to the second, and who has to end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mlops_sdk.capacity.lease import Priority
from mlops_sdk.capacity.queue import Holder, Slot, Ticket, Turn, order, plan

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def hours(number: float) -> datetime:
    return NOW + timedelta(hours=number)


def ticket(run: str, nodes: int = 1, **changes: Any) -> Ticket:
    values = {
        "generation": 1,
        "project": run,
        "priority": Priority.NORMAL,
        "resource_class": "gpu",
        "asked_at": NOW,
        "lasts_s": 3600.0,
        "renewed_until": hours(1),
    }
    return Ticket(run_key=run, nodes=nodes, **{**values, **changes})


def free(*names: str, **changes: Any) -> list[Slot]:
    return [Slot(id=name, **{"resource_class": "gpu", **changes}) for name in names]


def busy(
    name: str, run: str, ends_in_h: float, since_h: float = 1, traits: frozenset[str] = frozenset(), **changes: Any
):
    values = {"project": run, "priority": Priority.BATCH, "preemptible": True, "generation": 1, **changes}
    holder = Holder(run_key=run, since=hours(-since_h), ends_at=hours(ends_in_h), **values)
    return Slot(id=name, resource_class="gpu", traits=traits, holder=holder)


def runs(tickets: list[Ticket]) -> list[str]:
    return [each.run_key for each in tickets]


def test_a_ticket_counts_to_the_moment_until_which_it_is_renewed():
    alive = ticket("a", renewed_until=NOW)
    dead = ticket("b", renewed_until=NOW - timedelta(seconds=1))
    assert [turn.ticket for turn in plan([alive, dead], free("1", "2"), now=NOW)] == [alive]


def test_of_equal_projects_who_asked_first_goes_first_and_of_equal_times_the_name_decides():
    late, early = ticket("a", asked_at=hours(-1)), ticket("b", asked_at=hours(-2))
    assert runs(order([late, early], use={}, shares={})) == ["b", "a"]
    assert runs(order([ticket("b"), ticket("a")], use={}, shares={})) == ["a", "b"]


def test_what_a_ticket_will_use_counts_for_its_project_by_machines_and_time():
    small = [ticket("a1", 1, project="a"), ticket("a2", 1, project="a", asked_at=hours(1))]
    other = ticket("b1", asked_at=hours(2), project="b")
    assert runs(order([*small, other], use={"b": 3599.0}, shares={})) == ["a1", "b1", "a2"]
    assert runs(order([*small, other], use={"b": 3601.0}, shares={})) == ["a1", "a2", "b1"]
    big = [ticket("a1", 2, project="a"), small[1]]
    assert runs(order([*big, other], use={"b": 7199.0}, shares={})) == ["a1", "b1", "a2"]


def test_who_had_nothing_yet_goes_before_who_had_a_little():
    assert runs(order([ticket("b"), ticket("a", asked_at=hours(1))], use={"b": 0.5}, shares={})) == ["a", "b"]
    again = [ticket("a1", project="a"), ticket("a2", project="a", asked_at=hours(1)), ticket("b", asked_at=hours(2))]
    assert runs(order(again, use={"b": 3600.5}, shares={})) == ["a1", "a2", "b"]


def test_what_a_project_had_before_stays_counted_when_its_ticket_is_placed():
    mine = [ticket(f"a{n}", project="a", asked_at=hours(n)) for n in range(2)]
    other = ticket("b", project="b", asked_at=hours(5))
    assert runs(order([*mine, other], use={"a": 100.0, "b": 3650.0}, shares={})) == ["a0", "b", "a1"]


def test_a_project_without_a_share_waits_for_all_that_have_one():
    assert runs(order([ticket("a"), ticket("b")], use={"a": 1.0, "b": 50.0}, shares={"a": 0.0})) == ["b", "a"]
    assert runs(order([ticket("a"), ticket("b")], use={"a": 3.0, "b": 2.0}, shares={"a": 2.0})) == ["a", "b"]


def test_the_plan_heeds_what_projects_had_and_are_meant_to_have():
    waiting, slots = [ticket("a"), ticket("b")], free("1")
    (first, _) = plan(waiting, slots, now=NOW, use={"a": 5.0})
    assert first.ticket.run_key == "b"
    (first, _) = plan(waiting, slots, now=NOW, use={"a": 5.0, "b": 3.0}, shares={"a": 2.0})
    assert first.ticket.run_key == "a"


def test_who_may_ask_is_told_now_and_the_others_their_place():
    (one, two, three) = plan([ticket("a"), ticket("b"), ticket("c")], [*free("1"), busy("2", "x", 1)], now=NOW)
    assert (one.position, one.may_ask, one.expected_at, one.ends) == (1, True, NOW, ())
    assert (two.position, two.may_ask, two.expected_at) == (2, False, hours(1))
    assert (three.position, three.may_ask, three.expected_at, three.ends) == (3, False, None, ())
    assert "number 2 in the queue" in two.words()
    assert "13:00:00" in two.words()
    assert "12:00:00" not in one.words()
    assert three.words() == f"number 3 in the queue: {three.why}"
    assert one.words() == f"number 1 in the queue: {one.why}"
    assert runs([turn.ticket for turn in (one, two, three)]) == ["a", "b", "c"]


def test_a_promise_may_be_passed_by_who_is_gone_by_then_to_the_second():
    slots = [*free("1"), busy("2", "x", 2, preemptible=False)]
    first = ticket("a", 2)
    fits, too_long = ticket("b", lasts_s=7200.0), ticket("c", lasts_s=7201.0)
    assert [t.may_ask for t in plan([first, fits], slots, now=NOW)] == [False, True]
    assert [t.may_ask for t in plan([first, too_long], slots, now=NOW)] == [False, False]


def test_only_the_first_that_does_not_fit_is_promised_something():
    slots = [busy("1", "x", 1), busy("2", "y", 2)]
    (first, second) = plan([ticket("a"), ticket("b")], slots, now=NOW)
    assert (first.expected_at, second.expected_at) == (hours(1), None)
    assert second.ends == ()


def test_each_class_has_its_own_promise():
    slots = [busy("1", "x", 1), *(Slot(id="9", resource_class="cpu", holder=busy("9", "y", 3).holder),)]
    turns = plan([ticket("a"), ticket("b", resource_class="cpu")], slots, now=NOW)
    assert [turn.expected_at for turn in turns] == [hours(1), hours(3)]


def test_what_was_given_to_one_before_is_expected_back_when_that_one_ends():
    slots = [*free("1"), busy("2", "x", 5, preemptible=False)]
    (first, second) = plan([ticket("a", lasts_s=7200.0), ticket("b")], slots, now=NOW)
    assert first.may_ask
    assert second.expected_at == hours(2)
    assert second.ends == ()  # who is only about to get its machines is not ended
    (_, both) = plan([ticket("a", lasts_s=7200.0), ticket("b", 2)], slots, now=NOW)
    assert both.expected_at == hours(5)
    assert both.ticket.run_key == "b"


def test_the_machines_that_leave_first_are_the_promised_ones():
    slots = [busy("1", "x", 3), busy("2", "y", 1), busy("3", "z", 2)]
    (turn,) = plan([ticket("a", 2, priority=Priority.BATCH)], slots, now=NOW)
    assert turn.expected_at == hours(2)
    assert "0 of 2 are free" in turn.why


def test_machines_of_another_kind_are_neither_given_nor_waited_for():
    fast = frozenset({"fast"})
    slots = [*free("1"), busy("2", "x", 1), busy("3", "y", 4, traits=fast)]
    (turn,) = plan([ticket("a", traits=fast)], slots, now=NOW)
    assert (turn.may_ask, turn.expected_at) == (False, hours(4))
    (turn,) = plan([ticket("a", 2, traits=fast)], slots, now=NOW)
    assert (turn.ticket.run_key, turn.position, turn.may_ask, turn.expected_at) == ("a", 1, False, None)
    assert "0 of 2" in turn.why
    assert "only 1" in turn.why
    assert Slot(id="1", resource_class="gpu", traits=frozenset({"fast", "ib"})).suits(ticket("a", traits=fast))
    assert not Slot(id="1", resource_class="cpu", traits=fast).suits(ticket("a", traits=fast))


def test_plain_machines_are_given_first_and_of_equal_ones_the_first_name():
    slots = [*free("0", traits=frozenset({"fast"})), *free("2", "1"), *free("3", traits=frozenset({"a", "b"}))]
    special = ticket("z", 1, traits=frozenset({"fast"}))
    (plain, other) = plan([ticket("a", 2), special], slots, now=NOW)
    assert plain.may_ask
    assert other.may_ask


URGENT = {"priority": Priority.URGENT}


def ends(wanted: Ticket, *slots: Slot) -> tuple[str, ...]:
    turn: Turn
    (turn,) = plan([wanted], slots, now=NOW)
    assert not turn.may_ask
    return turn.ends


def test_of_one_priority_the_youngest_ends_and_a_lower_one_before_it():
    old, young = busy("1", "old", 9, since_h=5), busy("2", "young", 9, since_h=1)
    assert ends(ticket("u", **URGENT), old, young) == ("young",)
    normal = busy("3", "normal", 9, since_h=0.5, priority=Priority.NORMAL)
    assert ends(ticket("u", **URGENT), old, normal) == ("old",)


def test_nobody_ends_who_may_not_who_is_as_urgent_or_who_is_nobodys():
    for holder in ({"preemptible": False}, {"priority": Priority.URGENT}):
        assert ends(ticket("u", **URGENT), busy("1", "x", 9, **holder)) == ()
    assert ends(ticket("u", **URGENT), busy("1", "", 9)) == ()


def test_a_run_ends_with_all_of_its_machines_and_none_ends_that_is_not_needed_then():
    one, two = busy("1", "small", 9, since_h=1), busy("2", "big", 9, since_h=2)
    slots = (one, two, busy("3", "big", 9, since_h=2))
    assert ends(ticket("u", 2, **URGENT), *slots) == ("big",)
    assert ends(ticket("u", 3, **URGENT), *slots) == ("small", "big")
    assert ends(ticket("u", 1, **URGENT), *slots) == ("small",)


def test_machines_that_are_free_or_leaving_already_need_not_be_made_free():
    leaving = busy("1", "gone", 0.1, ending=True)
    others = busy("2", "x", 9, since_h=1), busy("3", "y", 9, since_h=2)
    assert ends(ticket("u", 2, **URGENT), leaving, *others) == ("x",)
    assert ends(ticket("u", 1, **URGENT), leaving, *others) == ()
    assert ends(ticket("u", 3, **URGENT), leaving, *others) == ("x", "y")
    assert ends(ticket("u", 2, **URGENT), *free("0"), *others) == ("x",)
    assert ends(ticket("u", 2, **URGENT), busy("4", "z", 9, preemptible=False), others[0]) == ()  # not for nothing


def test_of_three_that_would_do_only_so_many_end():
    three = [busy(name, name, 9, since_h=since) for name, since in (("x", 1), ("y", 2), ("z", 3))]
    assert ends(ticket("u", 1, **URGENT), *three) == ("x",)
    assert ends(ticket("u", 2, **URGENT), *three) == ("x", "y")
    big = [busy(f"{n}", "big", 9, since_h=4) for n in range(3)]
    assert ends(ticket("u", 3, **URGENT), *three[:2], *big) == ("big",)


def test_who_would_make_room_is_named():
    (turn,) = plan([ticket("u", 2, **URGENT)], [busy("1", "x", 9), busy("2", "y", 9)], now=NOW)
    assert "x, y" in turn.why or "y, x" in turn.why


@pytest.mark.parametrize("generation", [1, 2])
def test_what_another_generation_of_a_run_has_is_not_counted_as_its_own(generation):
    slots = [busy("1", "a", 9), *free("2", "3")]
    (turn,) = plan([ticket("a", 2, generation=generation)], slots, now=NOW)
    assert turn.ticket.nodes == (1 if generation == 1 else 2)
    assert turn.may_ask
