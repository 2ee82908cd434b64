"""The gate: what is known may get worse by a bounded share, what is new has to get better."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.errors import GateRefused
from mlops_sdk.registry.admission import Candidate, judge
from mlops_sdk.registry.champion import Champion
from mlops_sdk.registry.gate import GateBounds, Verdict, decide

BOUNDS = GateBounds(worse_by=0.05)
LOSS = st.floats(min_value=0.01, max_value=20)
SERVING = Champion(
    name="code-lm", version=3, model_prefix="runs/a/model", model_sha256="a" * 64, held_out={"python": 2.0}
)


def a_candidate(**changes: object) -> Candidate:
    values: dict[str, object] = {
        "name": "code-lm",
        "version": 4,
        "held_out": {"python": 2.05, "cpp": 2.4},
        "baseline_held_out": {"python": 2.9, "cpp": 2.6},
        "champion_held_out": {"python": 2.0, "cpp": 3.5},
        "champion_sha256": "a" * 64,
    }
    return Candidate(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("candidate", "champion", "knows", "passed"),
    [
        ({"python": 2.0}, {"python": 2.1}, ["python"], True),
        ({"python": 2.1}, {"python": 2.0}, ["python"], True),  # exactly the bound
        ({"python": 2.1001}, {"python": 2.0}, ["python"], False),
        ({"python": 2.05, "cpp": 2.4}, {"python": 2.0, "cpp": 3.5}, ["python"], True),
        ({"python": 2.05, "cpp": 3.5}, {"python": 2.0, "cpp": 3.5}, ["python"], False),  # new, and not better
        ({"python": 1.5, "cpp": 3.6}, {"python": 2.0, "cpp": 3.5}, ["python"], False),
        ({"python": 1.5}, {"python": 2.0, "cpp": 3.5}, ["python", "cpp"], False),  # forgets what was known
        ({"python": 1.5, "cpp": 2.0}, {"python": 2.0}, ["python"], False),  # nothing to compare with
        ({"python": math.nan}, {"python": 2.0}, ["python"], False),
        ({"python": math.inf}, {"python": 2.0}, [], False),
        ({"python": 0.0}, {"python": 2.0}, [], False),
        ({"python": 1.0}, {"python": math.nan}, [], False),
        ({}, {}, [], False),
    ],
)
def test_decisions(candidate: dict[str, float], champion: dict[str, float], knows: list[str], passed: bool):
    assert decide(candidate, champion, BOUNDS, knows=knows).passed is passed


@given(ours=LOSS, theirs=LOSS, known=st.booleans())
def test_one_kind_decides_as_its_figures_say(ours: float, theirs: float, known: bool):
    verdict = decide({"x": ours}, {"x": theirs}, BOUNDS, knows=["x"] if known else [])
    assert verdict.passed is (ours <= theirs * 1.05 if known else ours < theirs)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


@given(ours=st.dictionaries(st.sampled_from("abc"), LOSS, min_size=1), worse=st.floats(0, 0.9))
def test_getting_better_everywhere_passes_whatever_is_known(ours: dict[str, float], worse: float):
    champion = {kind: value * 1.001 for kind, value in ours.items()}
    assert decide(ours, champion, GateBounds(worse_by=worse), knows=list(ours)[:1]).passed


def test_reasons_are_sentences_and_the_table_has_all_figures():
    verdict = decide({"python": 2.5, "cpp": 2.4}, {"python": 2.0, "cpp": 3.5}, BOUNDS, knows=["python"], against="m/3")
    assert verdict.reasons == (
        "cpp: 31.4% better (2.400 against 3.500); new, and better",
        "python: 25.0% worse (2.500 against 2.000); beyond the 5.0% that is allowed",
    )
    assert verdict.table().splitlines() == [
        "corpus  candidate  m/3    allowed  known  verdict",
        "cpp     2.400      3.500  3.500    no     pass",
        "python  2.500      2.000  2.100    yes    refused",
    ]


def test_the_first_candidate_has_to_beat_the_baseline_everywhere():
    verdict = judge(a_candidate(champion_held_out={}, champion_sha256=""), None, BOUNDS)
    assert (verdict.passed, verdict.reference, verdict.against) == (True, "baseline", "byte 3-gram")
    assert not judge(a_candidate(held_out={"python": 2.0, "cpp": 2.6}), None, BOUNDS).passed


def test_the_champions_own_kinds_decide_what_is_known():
    verdict = judge(a_candidate(), SERVING, BOUNDS)
    assert verdict.passed
    assert {figures.kind: figures.known for figures in verdict.kinds} == {"cpp": False, "python": True}
    assert verdict.against == "code-lm/3"


def test_a_candidate_that_was_measured_against_another_champion_is_refused():
    with pytest.raises(GateRefused, match="not measured against code-lm/3"):
        judge(a_candidate(champion_sha256="b" * 64), SERVING, BOUNDS)
    with pytest.raises(GateRefused, match="measured against model none"):
        judge(a_candidate(champion_sha256="", champion_held_out={}), SERVING, BOUNDS)


def test_asked_again_after_its_own_roll_out_the_answer_is_still_yes():
    assert judge(a_candidate(version=3, held_out=SERVING.held_out), SERVING, BOUNDS).passed
