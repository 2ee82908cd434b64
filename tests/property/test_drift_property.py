"""On real text, over many seeds: the same kind raises no alarm, another kind always does; windows add up."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_sdk.drift.detector import State, detect
from mlops_sdk.drift.profile import Counts
from mlops_sdk.drift.watch import WatchState, advance
from support_drift import profile_of, reference, traffic

WINDOWS = 150


def windows(kind: str, prompts: int, count: int) -> list[Counts]:
    """Windows of distinct real prompts of text that the reference was not made of."""
    texts = traffic(kind, prompts * count, seed=42)
    known = reference("python")
    return [known.count(texts[start : start + prompts]) for start in range(0, len(texts), prompts)]


def test_traffic_of_the_same_kind_raises_no_alarm() -> None:
    verdicts = [detect(window, reference("python")) for window in windows("python", 50, WINDOWS)]
    assert sum(verdict.state is State.DRIFT for verdict in verdicts) == 0


def test_traffic_of_another_kind_raises_one_in_the_first_full_window_and_names_it() -> None:
    for window in windows("cpp", 50, WINDOWS):
        verdict = detect(window, reference("python"))
        assert verdict.state is State.DRIFT
        assert verdict.widen_to == ("python", "cpp")


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_however_processes_come_and_go_and_looks_fall_every_prompt_is_in_one_window(data: st.DataObject) -> None:
    known = reference("python")
    pool = traffic("python", 200, seed=5)
    sent: dict[str, list[str]] = {}
    state, fresh = WatchState(), 0
    for text in pool[: data.draw(st.integers(1, 60))]:
        sent.setdefault(data.draw(st.sampled_from(["a", "b", "c"])), []).append(text)
        if data.draw(st.booleans()):
            visible = data.draw(st.lists(st.sampled_from(sorted(sent)), min_size=1, unique=True))
            state, new = advance(state, [profile_of(known, sent[i], instance=i) for i in visible], known)
            fresh += new
    state, new = advance(state, [profile_of(known, prompts, instance=i) for i, prompts in sent.items()], known)
    everything = [text for prompts in sent.values() for text in prompts]
    assert fresh + new == len(everything)
    assert state.pending == known.count(everything)
