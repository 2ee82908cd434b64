"""What one turn of the loop trains: decided from what was asked for, what serves, and what users began to send."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from mlops_pipelines.specs import CORPORA, Corpus, RetrainSpec
from mlops_sdk.errors import SettingsError


class ServingModel(BaseModel):
    """What is known of the model that serves.

    Attributes:
        version: In the registry.
        repository: Clone URL of the code it was trained from, "" when it was not recorded.
        commit: Of that code.
        corpora: What it was trained on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    repository: str
    commit: str
    corpora: tuple[str, ...]


class TurnPlan(BaseModel):
    """What this turn trains.

    Attributes:
        repository: Clone URL.
        commit: Exactly this one.
        corpora: Kinds of text, in the spec's order: what was asked for, what the serving model knows, what is new.
        why: One sentence for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    repository: str
    commit: str
    corpora: tuple[Corpus, ...]
    why: str


def plan_turn(spec: RetrainSpec, *, serving: ServingModel | None, drifted: Sequence[str] = ()) -> TurnPlan:
    """Decide. A turn never forgets a corpus that the serving model knows: the gate would refuse its model.

    Args:
        spec: What was asked for.
        serving: The champion, if there is one.
        drifted: The corpora that the traffic looks like, from the events that started this turn.

    Raises:
        SettingsError: neither the spec nor a serving model says which code; or a corpus that the program does not have.
    """
    repository, commit = spec.repository, spec.commit
    if serving is not None and not commit and repository in {"", serving.repository}:
        repository, commit = serving.repository, serving.commit
    if not (repository and commit):
        raise SettingsError(
            "nothing says from which code to train",
            seen=f"repository {repository!r}, commit {commit!r}, "
            + (f"serving version {serving.version}" if serving else "no serving model"),
            next_step="push a commit, or fill in repository and commit",
        )
    known = serving.corpora if serving else ()
    wanted = {*spec.data.corpora, *known, *drifted}
    strange = sorted(wanted.difference(CORPORA))
    if strange:
        raise SettingsError(
            f"the program cannot be trained on {', '.join(strange)}",
            seen=f"corpora {', '.join(CORPORA)}",
            next_step="teach the program that corpus, or train another model for it",
        )
    corpora: tuple[Corpus, ...] = tuple(kind for kind in CORPORA if kind in wanted)
    return TurnPlan(repository=repository, commit=commit, corpora=corpora, why=_why(commit, known, drifted))


def _why(commit: str, known: Sequence[str], drifted: Sequence[str]) -> str:
    new = [kind for kind in drifted if kind not in known]
    if new:
        return f"users send {', '.join(new)}, which the serving model does not know; code {commit[:12]}"
    if drifted:
        return f"what users send has changed; code {commit[:12]}"
    return f"code {commit[:12]}"
