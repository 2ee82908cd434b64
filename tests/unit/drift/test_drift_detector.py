"""The detector on real text: it sees another kind, names it, and leaves the same kind alone."""

from __future__ import annotations

import pytest

from mlops_sdk.drift.detector import Bounds, State, chance_bound, closest, detect
from mlops_sdk.drift.profile import Counts
from mlops_sdk.errors import ProfileMismatch
from support_drift import reference, traffic


def window(*prompts: list[str], trained: tuple[str, ...] = ("python",)) -> Counts:
    return reference(*trained).count([text for part in prompts for text in part])


def test_cpp_against_python_is_drift_and_calls_for_both() -> None:
    verdict = detect(window(traffic("cpp", 50, seed=1)), reference("python"))
    assert verdict.state is State.DRIFT
    assert verdict.widen_to == ("python", "cpp")
    assert {"semicolons", "braces"} <= {shift.feature for shift in verdict.shifts}
    assert next(iter(verdict.traffic)) == "cpp"
    assert "share of semicolons" in verdict.words()
    assert "train on python, cpp" in verdict.words()


def test_the_same_prompts_are_no_drift_for_the_model_that_learned_them() -> None:
    for kind in ("python", "cpp"):
        counts = window(traffic(kind, 200, seed=2), trained=("python", "cpp"))
        assert detect(counts, reference("python", "cpp")).state is State.STABLE


def test_any_mixture_of_what_was_learned_is_stable() -> None:
    for share in (20, 100, 180):
        counts = window(
            traffic("cpp", share, seed=3), traffic("python", 200 - share, seed=3), trained=("python", "cpp")
        )
        verdict = detect(counts, reference("python", "cpp"))
        assert verdict.state is State.STABLE
        assert verdict.traffic["cpp"] == pytest.approx(share / 200, abs=0.1)


def test_too_few_prompts_are_no_drift() -> None:
    verdict = detect(window(traffic("cpp", 49, seed=1)), reference("python"))
    assert (verdict.state, verdict.widen_to) == (State.TOO_FEW, ())
    assert detect(window([]), reference("python")).state is State.TOO_FEW


def test_traffic_like_nothing_known_alarms_and_calls_for_a_person() -> None:
    prose = [f"Żółw nr {n} idzie ścieżką, myśląc o pączkach {'i o słońcu ' * (n % 7)}" for n in range(80)]
    verdict = detect(window(prose), reference("python"))
    assert verdict.state is State.DRIFT
    assert "beyond_ascii" in {shift.feature for shift in verdict.shifts}
    assert verdict.widen_to == ()
    assert "a person must look" in verdict.words()


def test_closest_finds_the_mixture() -> None:
    known = reference("python")
    shares = closest(window(traffic("cpp", 120, seed=5), traffic("python", 80, seed=5)), known.kinds)
    assert list(shares) == ["cpp", "python"]
    assert shares["cpp"] == pytest.approx(0.6, abs=0.12)
    assert sum(shares.values()) == pytest.approx(1)
    assert closest(window([]), known.kinds) == {"cpp": 0.5, "python": 0.5}


def test_the_bound_of_chance_is_the_quantile_of_chi_square() -> None:
    # scipy.stats.chi2.ppf(1 - a, bins - 1) / 50, for a reference without end
    for bins, alarms, quantile in ((10, 0.05, 16.919), (10, 1e-5, 39.341), (2, 1e-3, 10.828), (5, 1e-4, 23.513)):
        assert chance_bound(bins, 50, float("inf"), alarms) * 50 == pytest.approx(quantile, rel=0.04)


def test_more_prompts_make_it_sharper() -> None:
    few, many = (detect(window(traffic("cpp", n, seed=6)), reference("python"), Bounds(prompts=10)) for n in (20, 400))
    assert {s.feature for s in few.shifts} < {s.feature for s in many.shifts}


def test_counts_over_other_bins_are_refused() -> None:
    with pytest.raises(ProfileMismatch):
        detect(Counts(prompts=0, bins={"length": (0, 0)}), reference("python"))
