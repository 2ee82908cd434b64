"""May this candidate serve? Asks the registry what serves now, lets the gate decide, and writes the verdict down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlops_sdk.config import MlflowSettings
from mlops_sdk.errors import GateRefused
from mlops_sdk.registry.champion import Champion, read_champion, tag_version
from mlops_sdk.registry.gate import GateBounds, Verdict, decide

BASELINE = "byte 3-gram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A registered version that wants to serve, with the losses of its training.

    Attributes:
        name: Of the registered model.
        version: Its number.
        held_out: Bits per byte per kind.
        baseline_held_out: The baseline's, on the same text.
        champion_held_out: The champion's, on the same text; empty if there was none.
        champion_sha256: Which champion that was: the hash of its model's manifest.
    """

    name: str
    version: int
    held_out: Mapping[str, float]
    baseline_held_out: Mapping[str, float]
    champion_held_out: Mapping[str, float]
    champion_sha256: str = ""


def admit(settings: MlflowSettings, candidate: Candidate, bounds: GateBounds) -> Verdict:
    """The verdict, also on the version in MLflow (tags ``mlops.gate`` and ``mlops.gate_verdict``).

    The alias of the champion is not touched: that happens after the roll-out.

    Raises:
        GateRefused: the candidate may not serve; with the table of figures.
        ServiceUnavailable: MLflow gives no answer.
    """
    verdict = judge(candidate, read_champion(settings, candidate.name), bounds)
    outcome = "passed" if verdict.passed else "refused"
    tags = {"mlops.gate": outcome, "mlops.gate_verdict": verdict.model_dump_json()}
    tag_version(settings, candidate.name, candidate.version, tags)
    if not verdict.passed:
        raise GateRefused(
            f"version {candidate.version} of model {candidate.name!r} may not take the place of {verdict.against}",
            seen="; ".join(verdict.reasons) + f"\n{verdict.table()}\n",
            next_step="what served still serves; train longer, on more of that text, or change the program",
        )
    return verdict


def judge(candidate: Candidate, champion: Champion | None, bounds: GateBounds) -> Verdict:
    """The verdict on a candidate, given what serves now.

    Raises:
        GateRefused: another model than the one that it was measured against serves by now.
    """
    if champion is None:
        return decide(
            candidate.held_out,
            candidate.baseline_held_out,
            bounds,
            knows=(),
            reference="baseline",
            against=BASELINE,
        )
    against = f"{champion.name}/{champion.version}"
    if champion.version == candidate.version:  # asked again after its roll-out
        return decide(candidate.held_out, champion.held_out, bounds, knows=champion.kinds, against=against)
    if candidate.champion_sha256 != champion.model_sha256:
        raise GateRefused(
            f"version {candidate.version} of model {candidate.name!r} was not measured against {against}, which serves",
            seen=f"measured against model {candidate.champion_sha256[:12] or 'none'}, "
            f"serving is model {champion.model_sha256[:12]}",
            next_step="another version was rolled out since the training began: train again",
        )
    return decide(candidate.held_out, candidate.champion_held_out, bounds, knows=champion.kinds, against=against)
