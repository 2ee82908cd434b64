"""What `benchmarks loop` subtracts and compares, and that its floor has the shape of what it is the floor of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from benchmarks.loop_marks import Interval, Round, Span, breakdown, deployments, figures_of, table, tasks_of, union

REPOSITORY = Path(__file__).resolve().parents[3]
# Of a real conductor; request ids shortened.
LOG = """\
2026-11-23 01:07:10.018 1481 INFO ironic.conductor.task_manager [None req-1 ba6f b187 - - default default] Node \
614a0357-7590-4df0-82c6-0538bc0a2006 moved to provision state "deploying" from state "available"; target provision \
state is "active"
2026-11-23 01:07:10.500 1481 INFO ironic.conductor.utils [None req-1 ba6f b187 - - default default] Successfully set \
node 614a0357-7590-4df0-82c6-0538bc0a2006 power state to power on by power on.
2026-11-23 01:07:10.698 1481 INFO ironic.conductor.task_manager [None req-2 ba6f b187 - - default default] Node \
2cc8a5aa-7ef1-4bbe-8aad-491048331b4b moved to provision state "deploying" from state "available"; target provision \
state is "active"
2026-11-23 01:07:11.452 1481 INFO ironic.conductor.task_manager [None req-3 67f5 - - all default -] Node \
614a0357-7590-4df0-82c6-0538bc0a2006 moved to provision state "active" from state "deploying"; target provision \
state is "None"
2026-11-23 01:07:11.928 1481 INFO ironic.conductor.task_manager [None req-4 ba6f b187 - - default default] Node \
2cc8a5aa-7ef1-4bbe-8aad-491048331b4b moved to provision state "active" from state "deploying"; target provision \
state is "None"
2026-11-23 01:10:45.566 1481 INFO ironic.conductor.task_manager [None req-5 ba6f b187 - - default default] Node \
614a0357-7590-4df0-82c6-0538bc0a2006 moved to provision state "deleting" from state "active"; target provision state \
is "available"
"""

SHAPE = """
import importlib.util, json, sys
from airflow.sdk.definitions._internal.contextmanager import DagContext

def shape(path):
    DagContext.current_autoregister_module_name = "dag_file"
    spec = importlib.util.spec_from_file_location("dag_file", path)
    module = sys.modules["dag_file"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dag = [dag for dag, _ in DagContext.autoregistered_dags][-1]
    tasks = {
        task.task_id: [
            sorted(task.upstream_task_ids), sorted(task.downstream_task_ids), task.is_setup, task.is_teardown,
            task.retries, str(task.retry_delay), str(task.trigger_rule), task.task_group.group_id,
        ]
        for task in dag.tasks
    }
    return {"tasks": tasks, "settings": [dag.max_active_runs, dag.catchup, sorted(dag.params)]}

print(json.dumps([shape(path) for path in sys.argv[1:]]))
"""


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_deployments_are_read_from_ironics_own_words() -> None:
    first, second = deployments(LOG)
    assert (first.what, first.began, first.ended) == (
        "ironic",
        at("2026-11-23 01:07:10.018"),
        at("2026-11-23 01:07:11.452"),
    )
    assert second.seconds == pytest.approx(1.230)


def test_moments_in_two_parts_are_subtracted_once_and_what_lies_outside_not_at_all() -> None:
    interval = Interval(
        began=100.0,
        ended=120.0,
        parts=(
            Span(what="ironic", began=90.0, ended=95.0),
            Span(what="ironic", began=98.0, ended=103.0),
            Span(what="ironic", began=102.0, ended=104.0),
            Span(what="training", began=103.0, ended=106.0),
            Span(what="loading", began=118.0, ended=130.0),
        ),
    )
    assert interval.wall_s == 20.0
    assert interval.of("ironic") == 4.0
    assert interval.of("loading") == 2.0
    assert interval.seconds == 20.0 - 6.0 - 2.0


def test_spans_that_lie_apart_stay_apart() -> None:
    spans = [Span(what="a", began=5.0, ended=6.0), Span(what="a", began=1.0, ended=2.0)]
    assert [(span.began, span.ended) for span in union(spans)] == [(1.0, 2.0), (5.0, 6.0)]


def chain(name: str, push_s: float, drift_s: float) -> Round:
    return Round(chain=name, push=Interval(began=0.0, ended=push_s), drift=Interval(began=0.0, ended=drift_s))


def test_figures_are_medians_and_compare_the_chains() -> None:
    rounds = [
        *(chain("ours", push_s, 20.0) for push_s in (9.0, 10.0, 30.0)),
        *(chain("floor", push_s, 15.0) for push_s in (4.0, 5.0, 60.0)),
        *(chain("stock", push_s, 40.0) for push_s in (19.0, 20.0, 21.0)),
    ]
    figures = figures_of(rounds)
    assert figures["total_s"] == 30.0
    assert figures["floor_s"] == 20.0
    assert figures["stock_total_s"] == 60.0
    assert figures["excess_over_floor"] == 0.5
    assert figures["total_over_stock"] == 0.5
    assert (figures["push_s"], figures["floor_drift_s"], figures["stock_push_s"]) == (10.0, 15.0, 20.0)
    assert len(table(rounds).splitlines()) == 1 + 2 * len(rounds)


def test_what_was_not_measured_is_no_figure() -> None:
    assert set(figures_of([chain("ours", 1.0, 2.0)])) == {"push_s", "drift_s", "total_s"}


def test_a_breakdown_shows_each_task_in_the_order_in_which_they_began() -> None:
    tasks = tasks_of(
        [
            {"task_id": "train", "queued_when": None, "start_date": None, "end_date": None},
            {
                "task_id": "gate",
                "queued_when": "2026-11-23T01:00:05Z",
                "start_date": "2026-11-23T01:00:06Z",
                "end_date": "2026-11-23T01:00:08.500Z",
            },
        ]
    )
    lines = breakdown(tasks, at("2026-11-23T01:00:00Z")).splitlines()
    assert lines[1].split() == ["train"]
    assert lines[2].split() == ["gate", "5.00", "6.00", "8.50", "2.50"]


@pytest.mark.slow
def test_the_floor_has_the_shape_of_the_turn(tmp_path: Path) -> None:
    files = [str(REPOSITORY / "benchmarks" / "loop_dags" / f"loop_{name}.py") for name in ("ours", "floor")]
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", SHAPE, *files], env=environment, check=True, capture_output=True, text=True
    ).stdout
    ours, floor = json.loads(said.splitlines()[-1])
    assert len(ours["tasks"]) == 11
    assert floor == ours
