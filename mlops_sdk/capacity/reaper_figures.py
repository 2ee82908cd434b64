"""What a reaper has done since it began, as figures for Prometheus, so that its silence shows. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from mlops_sdk.capacity.evidence import NodeEvidence
from mlops_sdk.capacity.metrics import Family, Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaperFigures:
    """The last pass, and sums since the start. Each method gives the figures after something has happened.

    Attributes:
        passes: So many so far.
        errors: What could not be done, of all passes.
        failing: The same of the last pass.
        held: What is held within its time, at the last pass.
        due: What the last pass found past its time, by kind.
        returned: Machines that came back, by what became of them.
        last_pass: When the last pass was over; None before there was one whose time is known.
        last_success: When the last one was over that could do everything.
    """

    passes: int = 0
    errors: int = 0
    failing: int = 0
    held: int = 0
    due: Mapping[str, int] = field(default_factory=dict[str, int])
    returned: Mapping[str, int] = field(default_factory=dict[str, int])
    last_pass: datetime | None = None
    last_success: datetime | None = None

    def after_pass(self, due: Iterable[str], *, held: int, errors: int, at: datetime | None) -> ReaperFigures:
        """A pass is over.

        Args:
            due: The kind of each thing that it found past its time.
            held: How many things are held within their time.
            errors: How many things it could not do.
            at: When, by the deployment's clock; None when that does not answer.
        """
        return replace(
            self,
            passes=self.passes + 1,
            errors=self.errors + errors,
            failing=errors,
            held=held,
            due=Counter(due),
            last_pass=at or self.last_pass,
            last_success=self.last_success if errors else at or self.last_success,
        )

    def after_return(self, ended: Iterable[NodeEvidence], *, errors: int) -> ReaperFigures:
        """Machines came back between two passes, or could not be brought back."""
        returned = Counter(self.returned) + Counter(item.outcome.value for item in ended)
        return replace(self, returned=returned, errors=self.errors + errors, failing=self.failing + errors)

    def families(self) -> tuple[Family, ...]:
        """For Prometheus. What was never is 0, so that an alert can tell it from a reaper that never wrote."""
        moments = (
            ("mlops_reaper_last_pass_timestamp_seconds", "When the reaper last looked", self.last_pass),
            ("mlops_reaper_last_success_timestamp_seconds", "When it last could do everything", self.last_success),
        )
        return (
            _counter("mlops_reaper_passes_total", "Passes since the reaper began", {(): self.passes}),
            _counter(
                "mlops_reaper_returned_total",
                "Machines taken back since the reaper began, by what became of them",
                _by("outcome", self.returned),
            ),
            _counter("mlops_reaper_errors_total", "What it could not do since it began", {(): self.errors}),
            _gauge("mlops_reaper_errors", "What it could not do in the last pass and since", {(): self.failing}),
            _gauge("mlops_reaper_due", "What the last pass found past its time, by kind", _by("kind", self.due)),
            _gauge("mlops_reaper_held", "What is held within its time", {(): self.held}),
            *(
                _gauge(name, f"{text}, by the deployment's clock", {(): at.timestamp()})
                for name, text, at in moments
                if at
            ),
        )


def _by(label: str, counts: Mapping[str, int]) -> Mapping[Labels, float]:
    return {((label, name),): number for name, number in counts.items()} or {(): 0}


def _gauge(name: str, text: str, values: Mapping[Labels, float]) -> Family:
    return Family(name=name, help=text, values={labels: float(value) for labels, value in values.items()})


def _counter(name: str, text: str, values: Mapping[Labels, float]) -> Family:
    return replace(_gauge(name, text, values), counts=True)
