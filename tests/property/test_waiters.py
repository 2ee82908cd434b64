"""Whoever waits at a shared poller is called by the first snapshot that concerns it, whatever came before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.capacity.watching import Phase, Sight, Snapshot, Waiter, Waiters, changed

KEYS = ("a", "b", "c")
keys = st.frozensets(st.sampled_from(KEYS), min_size=1)
quiet = st.frozensets(st.sampled_from(list(Phase)))
shown = st.dictionaries(st.sampled_from(KEYS), st.sampled_from([p for p in Phase if p is not Phase.ABSENT]))
# a look began `lag` ago when its snapshot comes: what joined meanwhile is younger than it
looks = st.tuples(st.just("look"), shown, st.integers(0, 3))
joins = st.tuples(st.just("join"), keys, quiet)
leaves = st.tuples(st.just("leave"), st.integers(0, 5), st.none())


@given(st.lists(st.one_of(looks, joins, leaves), max_size=40))
def test_nobody_is_forgotten_and_nobody_is_called_for_nothing(events: list) -> None:
    waiters, waiting, before = Waiters(), [], None
    for now, (event, first, second) in enumerate(events):
        if event == "join":
            waiter = Waiter(keys=first, since=float(now), quiet=second)
            waiters.join(waiter)
            waiting.append(waiter)
        elif event == "leave" and waiting:
            waiters.leave(waiting.pop(first % len(waiting)))
        elif event == "look":
            asked_at = max(float(now - second), before.asked_at if before else 0.0)
            sights = {key: Sight(phase=phase, words="") for key, phase in first.items()}
            after = Snapshot(version=now, asked_at=asked_at, sights=sights)
            called = waiters.called_by(after, changed(before, after))
            assert set(map(id, called)) == {id(w) for w in waiting if w.is_called_by(after)}
            for waiter in called:
                waiters.leave(waiter)
                waiting.remove(waiter)
            before = after
    assert len(waiters) == len(waiting)
