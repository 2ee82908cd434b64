"""May a candidate take the place of what serves? Decided per corpus from held-out losses. Pure.

A kind of text that the champion knows may get worse by a bounded share; one that it was never trained on must get
better. Where there is no champion yet, the byte 3-gram baseline stands in for it: it knows nothing, so the candidate
has to beat it everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Reference = Literal["champion", "baseline"]


class GateBounds(BaseModel):
    """How much is allowed. `worse_by` is relative: with 0.05, 2.00 bits per byte may become 2.10 on a known kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    worse_by: float = Field(default=0.05, ge=0, lt=1)


class KindFigures(BaseModel):
    """One corpus: bits per byte of both, what the candidate may have at most, and why it passed or not.

    `candidate`, `reference` and `bound` are None where they were not measured or are no number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    candidate: float | None
    reference: float | None
    bound: float | None
    known: bool
    passed: bool
    reason: str


class Verdict(BaseModel):
    """What the gate decided, with all the figures that decided it.

    Attributes:
        passed: Whether the candidate may be rolled out.
        reference: What it was compared with.
        against: Its name: ``code-lm/3``, or ``byte 3-gram``.
        kinds: One line a corpus.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    passed: bool
    reference: Reference = "champion"
    against: str = ""
    kinds: tuple[KindFigures, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, one sentence a corpus."""
        return tuple(figures.reason for figures in self.kinds)

    def table(self) -> str:
        """The figures in columns, for people."""
        head = ("corpus", "candidate", self.against or self.reference, "allowed", "known", "verdict")
        rows = [head, *(_cells(figures) for figures in self.kinds)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def decide(
    candidate: Mapping[str, float],
    champion: Mapping[str, float],
    bounds: GateBounds,
    *,
    knows: Collection[str],
    reference: Reference = "champion",
    against: str = "",
) -> Verdict:
    """Compare held-out bits per byte, kind by kind, measured on the same text.

    Args:
        candidate: Of the new model, per kind that it was trained on.
        champion: Of what serves (or of the baseline), per kind.
        bounds: What is allowed.
        knows: The kinds that the champion was trained on. Those it may not lose.
        reference: What `champion` is.
        against: Its name, for people.

    Example:
        >>> decide({"python": 2.05, "cpp": 2.4}, {"python": 2.0, "cpp": 3.6}, GateBounds(), knows={"python"}).passed
        True
    """
    figures = tuple(
        _judge(kind, candidate.get(kind), champion.get(kind), bounds, known=kind in knows)
        for kind in sorted({*candidate, *champion, *knows})
    )
    passed = bool(figures) and all(one.passed for one in figures)
    return Verdict(passed=passed, reference=reference, against=against, kinds=figures)


def _judge(
    kind: str, candidate: float | None, champion: float | None, bounds: GateBounds, *, known: bool
) -> KindFigures:
    ours, theirs = _number(candidate), _number(champion)
    bound = None if theirs is None else theirs * (1 + bounds.worse_by) if known else theirs
    passed = ours is not None and bound is not None and (ours <= bound if known else ours < bound)
    return KindFigures(
        kind=kind,
        candidate=ours,
        reference=theirs,
        bound=bound,
        known=known,
        passed=passed,
        reason=f"{kind}: {_reason(ours, theirs, bounds, known=known, passed=passed)}",
    )


def _reason(ours: float | None, theirs: float | None, bounds: GateBounds, *, known: bool, passed: bool) -> str:
    if ours is None:
        return "the candidate was not measured on it, or its loss is not a number"
    if theirs is None:
        return "there is nothing to compare the candidate with"
    change = f"{abs(ours / theirs - 1):.1%} {'worse' if ours > theirs else 'better'} ({ours:.3f} against {theirs:.3f})"
    if known:
        return f"{change}; {'within' if passed else 'beyond'} the {bounds.worse_by:.1%} that is allowed"
    return f"{change}; a kind that is new has to get better" if not passed else f"{change}; new, and better"


def _number(value: float | None) -> float | None:
    """Losses are positive and finite; anything else is no measurement."""
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _cells(figures: KindFigures) -> tuple[str, ...]:
    numbers = (figures.candidate, figures.reference, figures.bound)
    return (
        figures.kind,
        *("-" if number is None else f"{number:.3f}" for number in numbers),
        "yes" if figures.known else "no",
        "pass" if figures.passed else "refused",
    )
