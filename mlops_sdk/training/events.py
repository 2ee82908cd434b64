"""What a caller of `run_job` hears while it runs. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlops_sdk.training.launch import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted:
    """The machines are prepared and the launcher runs."""

    attempt: int
    prepared_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStarted:
    """A rank's program runs as process `pid` on a machine."""

    attempt: int
    rank: int
    node: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """Metrics of one step."""

    attempt: int
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded:
    """An attempt is over. `seen`: in the words of what failed. `retry`: another one follows."""

    attempt: int
    cause: Cause
    what: str
    seen: str
    seconds: float
    retry: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something went wrong that does not change the outcome."""

    text: str


JobEvent = AttemptStarted | RankStarted | StepDone | AttemptEnded | Warned
