"""What a turn of the loop trains."""

from __future__ import annotations

import pytest

from mlops_pipelines.recipes.planning import ServingModel, plan_turn
from mlops_pipelines.specs import RetrainSpec
from mlops_sdk.errors import SettingsError

COMMIT, OLDER = "a" * 40, "b" * 40
SERVING = ServingModel(version=3, repository="https://example.org/code.git", commit=OLDER, corpora=("python",))


def asked(**source: str) -> RetrainSpec:
    return RetrainSpec.model_validate(source)


def test_a_push_trains_the_pushed_commit():
    plan = plan_turn(asked(repository=SERVING.repository, commit=COMMIT), serving=SERVING)
    assert (plan.repository, plan.commit, plan.corpora) == (SERVING.repository, COMMIT, ("python",))


def test_drift_trains_the_serving_code_on_the_wider_corpus():
    plan = plan_turn(asked(), serving=SERVING, drifted=["cpp"])
    assert (plan.commit, plan.corpora) == (OLDER, ("python", "cpp"))
    assert "users send cpp" in plan.why


def test_what_the_serving_model_knows_is_not_forgotten_by_the_next_push():
    serving = SERVING.model_copy(update={"corpora": ("cpp", "python")})
    assert plan_turn(asked(repository="r", commit=COMMIT), serving=serving).corpora == ("python", "cpp")


@pytest.mark.parametrize("serving", [None, SERVING])
def test_without_a_commit_nothing_is_guessed(serving: ServingModel | None):
    with pytest.raises(SettingsError, match="from which code"):
        plan_turn(asked(repository="https://example.org/other.git"), serving=serving)


def test_a_corpus_that_the_program_does_not_have_is_refused():
    with pytest.raises(SettingsError, match="latin"):
        plan_turn(asked(), serving=SERVING, drifted=["latin"])
