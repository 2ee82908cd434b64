"""The task succeeds, and its asset gets an event, only when it has something to announce."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.sdk.execution_time.context import OutletEventAccessors

from mlops_operators.drift import DetectDriftOperator, drift_asset
from mlops_sdk.drift.detector import State, Verdict
from mlops_sdk.drift.watch import Look
from mlops_sdk.errors import NodeFailed, ProfileDamaged


class Task:
    """What an operator sees of its task instance."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, *, key: str, value: Any) -> None:
        self.pushed[key] = value


def found(*, announce: bool, state: State = State.DRIFT) -> Look:
    return Look(
        model="code-lm",
        model_version="3",
        fresh=60,
        verdict=Verdict(state=state, prompts=60, traffic={"cpp": 1.0}),
        judged=True,
        report="s3://mlops/drift/code-lm/reports/00000001.json",
        alert="code-lm-3-drift-1",
        announce=announce,
        widen_to=("python", "cpp"),
        closest=("cpp",),
        instances=1,
    )


def run(monkeypatch: pytest.MonkeyPatch, outcome: Look | Exception) -> tuple[Any, OutletEventAccessors, Task]:
    def look(_self: DetectDriftOperator) -> Look:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(DetectDriftOperator, "_look", look)
    events, task = OutletEventAccessors(), Task()
    operator = DetectDriftOperator(task_id="detect_drift", model="code-lm")
    try:
        result = operator.execute({"outlet_events": events, "ti": task})  # type: ignore[typeddict-item]
    except AirflowSkipException as skipped:
        result = skipped
    return result, events, task


def test_an_announcement_is_an_event_with_what_the_training_must_know(monkeypatch: pytest.MonkeyPatch) -> None:
    result, events, _ = run(monkeypatch, found(announce=True))
    assert result["widen_to"] == ["python", "cpp"]
    assert events[drift_asset("code-lm")].extra == {
        "alert": "code-lm-3-drift-1",
        "report": "s3://mlops/drift/code-lm/reports/00000001.json",
        "model": "code-lm",
        "model_version": "3",
        "closest": ["cpp"],
        "widen_to": ["python", "cpp"],
    }


@pytest.mark.parametrize("state", [State.DRIFT, State.STABLE, State.TOO_FEW])
def test_everything_else_is_skipped_and_leaves_its_result(monkeypatch: pytest.MonkeyPatch, state: State) -> None:
    result, events, task = run(monkeypatch, found(announce=False, state=state))
    assert isinstance(result, AirflowSkipException)
    assert len(events) == 0
    assert task.pushed["return_value"]["state"] == state.value


def test_a_host_that_does_not_answer_is_tried_again_and_damage_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NodeFailed):
        run(monkeypatch, NodeFailed("no login"))
    with pytest.raises(AirflowFailException, match="delete it"):
        run(monkeypatch, ProfileDamaged("the state", next_step="delete it"))


def test_the_outlet_is_the_asset_that_training_waits_for() -> None:
    operator = DetectDriftOperator(task_id="detect_drift", model="code-lm")
    assert operator.outlets == [drift_asset("code-lm")]
    assert drift_asset("code-lm").uri == "mlops://drift/code-lm"
