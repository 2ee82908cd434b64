"""Are the prompts of a window still what the model was made for? Counts in, a verdict with reasons out. Pure.

For each feature the *population stability index* compares the window with what is normal:
``PSI = sum over bins of (a - e) ln(a / e)``, with `a` the window's share of a bin and `e` the expected one. By custom
0.1 is a small shift and 0.25 a significant one (Siddiqi, Credit Risk Scorecards, 2006); but of few prompts the index is
large by chance alone: without any shift it is distributed as ``(1/n + 1/m) * chi2(bins - 1)``, for `n` prompts against
a reference of `m` (Yurdakul, Statistical Properties of Population Stability Index, 2018). So a feature has shifted when

    PSI > shift_that_matters + (1/n + 1/m) * quantile of chi2(bins - 1) at 1 - false_alarms / features

A shift must be both larger than chance and large enough to matter; the second also absorbs that prompts of one user
resemble each other, which the first does not know.

What is normal for a model of several kinds of text is *any mixture* of them: traffic that turns from half Python to all
Python is no drift. So the expected shares are those of the mixture of trained kinds that explains the window best
(maximum likelihood with the features taken as independent, found by expectation maximisation).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from mlops_sdk.drift.features import WORDS
from mlops_sdk.drift.profile import Counts, Reference

_PRIOR = 0.5  # added to every bin: an empty one is rare, not impossible
_STEPS = 100
_SETTLED = 1e-4
_SHOWN = 5


class State(enum.Enum):
    """What a window says."""

    TOO_FEW = "too_few"
    STABLE = "stable"
    DRIFT = "drift"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When a difference is a drift.

    Attributes:
        prompts: A window with fewer distinct prompts says nothing.
        shift_that_matters: PSI beyond chance.
        false_alarms: Of this share of windows without any shift a false alarm is accepted, by chance alone.
        share_that_matters: A kind of text counts as part of the traffic from this share on.
    """

    prompts: int = 50
    shift_that_matters: float = 0.25
    false_alarms: float = 1e-4
    share_that_matters: float = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """One feature that has shifted. `share` of the window fell into bin `bin` (of `bins`), where `expected` was."""

    feature: str
    psi: float
    bound: float
    bin: int
    bins: int
    share: float
    expected: float

    def words(self) -> str:
        """For people."""
        where = "the lowest" if self.bin == 0 else "the highest" if self.bin == self.bins - 1 else "a middle"
        return (
            f"{WORDS.get(self.feature, self.feature)}: {self.share:.0%} of prompts in {where} part of the reference, "
            f"{self.expected:.0%} expected (PSI {self.psi:.2f}, bound {self.bound:.2f})"
        )

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "feature": self.feature,
            "psi": round(self.psi, 4),
            "bound": round(self.bound, 4),
            "words": self.words(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a window says, and why.

    Attributes:
        state: Drift, stable, or too few prompts to tell.
        prompts: Distinct prompts in the window.
        shifts: The features that shifted, largest first.
        traffic: The window as a mixture of all known kinds: share by kind.
        widen_to: The trained kinds and those new ones that make up the traffic; empty when training on known text would
            not help (no drift, or the traffic is like nothing that is known).
    """

    state: State
    prompts: int
    shifts: tuple[Shift, ...] = ()
    traffic: Mapping[str, float]
    widen_to: tuple[str, ...] = ()

    def words(self) -> str:
        """One sentence for people."""
        looks = ", ".join(f"{share:.0%} {kind}" for kind, share in self.traffic.items() if share >= 0.005)  # noqa: PLR2004 - what rounds to 0 %
        if self.state is State.TOO_FEW:
            return f"{self.prompts} prompts are too few to tell"
        if self.state is State.STABLE:
            return f"{self.prompts} prompts are what the model was trained for ({looks})"
        reasons = "; ".join(shift.words() for shift in self.shifts[:_SHOWN])
        cure = (
            f"train on {', '.join(self.widen_to)}"
            if self.widen_to
            else "no known corpus explains it: a person must look"
        )
        return f"{self.prompts} prompts have drifted: {reasons}. Most like {looks}; {cure}"

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "state": self.state.value,
            "prompts": self.prompts,
            "shifts": [shift.to_json() for shift in self.shifts],
            "traffic": {kind: round(share, 4) for kind, share in self.traffic.items()},
            "widen_to": list(self.widen_to),
            "words": self.words(),
        }


def detect(window: Counts, reference: Reference, bounds: Bounds = Bounds()) -> Verdict:
    """Compare a window with what is normal for the model.

    Raises:
        ProfileMismatch: the window was counted over other bins than the reference has.
    """
    for counts in reference.kinds.values():
        window.same_bins(counts)
    if window.prompts < bounds.prompts:
        return Verdict(state=State.TOO_FEW, prompts=window.prompts, traffic={})
    trained = {kind: reference.kinds[kind] for kind in reference.trained}
    traffic = closest(window, reference.kinds)
    before = _compare(window, trained, closest(window, trained), bounds)
    shifted = tuple(sorted((s for s in before if s.psi > s.bound), key=lambda s: s.bound - s.psi))
    if not shifted:
        return Verdict(state=State.STABLE, prompts=window.prompts, traffic=traffic)
    new = [k for k, share in traffic.items() if k not in trained and share >= bounds.share_that_matters]
    after = _compare(window, reference.kinds, traffic, bounds)
    helps = bool(new) and sum(s.psi for s in after) <= sum(s.psi for s in before) / 2
    return Verdict(
        state=State.DRIFT,
        prompts=window.prompts,
        shifts=shifted,
        traffic=traffic,
        widen_to=(*reference.trained, *sorted(new)) if helps else (),
    )


def closest(window: Counts, kinds: Mapping[str, Counts]) -> dict[str, float]:
    """The mixture of kinds that explains the window best: share by kind, largest first, summing to 1.

    Example:
        `closest(window, reference.kinds)` -> ``{"cpp": 0.94, "python": 0.06}``
    """
    names = list(kinds)
    cells = [(count, name, i) for name, row in window.bins.items() for i, count in enumerate(row) if count]
    shares = {kind: _shares(counts) for kind, counts in kinds.items()}
    likely = [(count, [shares[kind][name][i] for kind in names]) for count, name, i in cells]
    weights = [1 / len(names)] * len(names)
    total = sum(count for count, _ in likely) or 1
    for _ in range(_STEPS):
        gained = [0.0] * len(names)
        for count, p in likely:
            explained = sum(w * q for w, q in zip(weights, p, strict=True))
            for k, q in enumerate(p):
                gained[k] += count * weights[k] * q / explained
        new = [g / total for g in gained] if likely else weights
        moved = max(abs(a - b) for a, b in zip(new, weights, strict=True))
        weights = new
        if moved < _SETTLED:
            break
    return dict(sorted(zip(names, weights, strict=True), key=lambda item: (-item[1], item[0])))


def chance_bound(bins: int, prompts: int, reference_prompts: float, false_alarms: float) -> float:
    """The PSI that chance alone exceeds with probability `false_alarms`, if nothing has shifted.

    The quantile of chi-square is Wilson and Hilferty's (1931), within 4 % for the tails used here.
    """
    freedom = bins - 1
    if freedom < 1:
        return math.inf
    z = NormalDist().inv_cdf(1 - false_alarms)
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + z * math.sqrt(spread)) ** 3 * (1 / prompts + 1 / reference_prompts)


def _compare(window: Counts, kinds: Mapping[str, Counts], mixture: Mapping[str, float], bounds: Bounds) -> list[Shift]:
    shares = {kind: _shares(counts) for kind, counts in kinds.items()}
    seen = _shares(window)
    reference_prompts = 1 / sum(mixture[kind] ** 2 / counts.prompts for kind, counts in kinds.items())
    found: list[Shift] = []
    for name, actual in seen.items():
        expected = [sum(mixture[k] * shares[k][name][i] for k in kinds) for i in range(len(actual))]
        bound = bounds.shift_that_matters + chance_bound(
            len(actual), window.prompts, reference_prompts, bounds.false_alarms / len(seen)
        )
        found.append(_shift(name, actual, expected, bound))
    return found


def _shift(name: str, actual: Sequence[float], expected: Sequence[float], bound: float) -> Shift:
    parts = [(a - e) * math.log(a / e) for a, e in zip(actual, expected, strict=True)]
    most = max(range(len(actual)), key=lambda i: actual[i] - expected[i])
    return Shift(
        feature=name,
        psi=sum(parts),
        bound=bound,
        bin=most,
        bins=len(actual),
        share=actual[most],
        expected=expected[most],
    )


def _shares(counts: Counts) -> dict[str, list[float]]:
    return {
        name: [(n + _PRIOR) / (counts.prompts + _PRIOR * len(row)) for n in row] for name, row in counts.bins.items()
    }
