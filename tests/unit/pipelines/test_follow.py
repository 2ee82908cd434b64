"""A DAG run, watched from outside: every task is told of once, in its own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

from mlops_pipelines.recipes import follow as following
from mlops_pipelines.recipes.follow import follow
from mlops_pipelines.recipes.timeline import Timeline
from mlops_sdk.airflow_rest import AirflowRest
from mlops_sdk.errors import MlopsError


@pytest.fixture
def timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Timeline:
    monkeypatch.setattr(following, "_POLL_S", 0.0)
    return Timeline(log_dir=tmp_path)


def airflow(*looks: dict[str, str | None], ends: str) -> Any:
    """Airflow, which shows one look at the tasks' states after another."""
    rest = create_autospec(AirflowRest, instance=True)
    rest.dag_run.side_effect = [{"state": "running"}] * (len(looks) - 1) + [{"state": ends}]
    rest.tasks.side_effect = [
        [{"task_id": name, "state": state, "try_number": 1} for name, state in look.items()] for look in looks
    ]
    rest.xcom.side_effect = lambda _dag, _run, task: {"left by": task}
    rest.task_log.return_value = "2026-01-01 info begun\n2026-01-01 error Task failed NoCapacity: nothing is free\n"
    return rest


def watch(rest: Any, timeline: Timeline, begun: list[str]) -> dict[str, Any]:
    return follow(rest, timeline, "d", "r", facts=lambda task, left: [f"{task} {left}"], on_begun=begun.append)


def test_a_task_that_waits_deferred_begins_once(timeline: Timeline):
    looks = [{"train": state} for state in (None, "running", "deferred", "scheduled", "queued", "running", "success")]
    begun: list[str] = []
    results = watch(airflow(*looks, ends="success"), timeline, begun)
    assert begun == ["train"]
    assert results == {"train": {"left by": "train"}}
    assert [(step.name, step.evidence) for step in timeline.steps] == [("train", ["train {'left by': 'train'}"])]


def test_a_failed_task_is_named_with_the_last_words_of_its_log(timeline: Timeline, tmp_path: Path):
    rest = airflow(
        {"provision": "running", "train": None}, {"provision": "failed", "train": "upstream_failed"}, ends="failed"
    )
    with pytest.raises(MlopsError, match="provision"):
        watch(rest, timeline, [])
    (step,) = timeline.steps
    assert "NoCapacity: nothing is free" in step.failed
    assert "info begun" in step.log.read_text()
