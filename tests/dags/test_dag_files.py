"""Every DAG file imports at once, without a network, a database or an error, and what is templated renders."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "dags"
FILES = sorted(path.name for path in FOLDER.glob("*.py"))
_SECONDS = 5.0  # Airflow gives a file 30; they take half a second, but the cores may be busy

# Runs in a fresh interpreter, as the dag-processor does: loads one file with the doors to the outside shut, then
# renders the template fields of its tasks in the context of a run that nobody gave parameters.
LOAD = """
import importlib.util, json, socket, sqlite3, sys, time
import airflow.sdk  # its own start is not the file's
from airflow.sdk import DAG
from airflow.sdk.definitions.xcom_arg import XComArg
from airflow.sdk.definitions._internal.contextmanager import DagContext

doors = []
def shut(name):
    def refuse(*args, **kwargs):
        doors.append(name)
        raise RuntimeError(f"a DAG file opened a door at import: {name}")
    return refuse
socket.socket.connect = shut("socket.connect")
socket.create_connection = shut("socket.create_connection")
socket.getaddrinfo = shut("socket.getaddrinfo")
sqlite3.connect = shut("sqlite3.connect")
DagContext.current_autoregister_module_name = "dag_file"  # as Airflow's DagBag does
began = time.monotonic()
spec = importlib.util.spec_from_file_location("dag_file", sys.argv[1])
module = sys.modules["dag_file"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
seconds = time.monotonic() - began
dags = {dag.dag_id: dag for dag in vars(module).values() if isinstance(dag, DAG)}
dags |= {dag.dag_id: dag for dag, _ in DagContext.autoregistered_dags}

class Anything:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()
    def __getitem__(self, key): return Anything()
    def __call__(self, *args, **kwargs): return Anything()
    def __iter__(self): return iter(())
    def __str__(self): return "anything"
    def __bool__(self): return True

def rendered(dag, task):
    context = {
        "dag": dag, "task": task, "run_id": "manual__1", "params": dag.params.dump(), "ti": Anything(),
        "task_instance": Anything(), "dag_run": Anything(), "triggering_asset_events": {}, "ds": "2026-01-01",
        "ts": "2026-01-01T00:00:00+00:00", "logical_date": None, "var": Anything(), "macros": Anything(),
        "conn": Anything(),
    }
    task.render_template_fields(context, dag.get_template_env())
    return {name: str(getattr(task, name)) for name in task.template_fields}

def never_pushed(task):  # parts of another task's result that are not there: the other pushes it as a whole
    return [
        f"{other.task_id}[{key}]"
        for name in task.template_fields
        for other, key in XComArg.iter_xcom_references(getattr(task, name))
        if key != "return_value" and not other.multiple_outputs
    ]

found = {
    dag_id: {
        "never_pushed": {task.task_id: never_pushed(task) for task in dag.tasks},
        "tasks": {task.task_id: rendered(dag, task) for task in dag.tasks},
        "catchup": dag.catchup,
        "doc": bool(dag.doc_md or dag.description),
    }
    for dag_id, dag in dags.items()
}
print(json.dumps({"seconds": seconds, "doors": doors, "dags": found}))
"""


@functools.cache
def load(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        }
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(FOLDER / name)],
            env=environment,
            cwd=home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_there_are_dag_files() -> None:
    assert {"watch_lm.py", "report_leases.py"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_without_io_and_quickly(name: str) -> None:
    assert load(name)["doors"] == []
    assert load(name)["seconds"] < _SECONDS
    assert load(name)["dags"], "the file defines no DAG"


@pytest.mark.parametrize("name", FILES)
def test_its_dags_are_named_after_it_explain_themselves_and_do_not_catch_up(name: str) -> None:
    for dag_id, dag in load(name)["dags"].items():
        assert dag_id == name.removesuffix(".py")
        assert dag["doc"]
        assert dag["catchup"] is False
        assert dag["tasks"]


def test_no_id_is_there_twice() -> None:
    ids = [dag_id for name in FILES for dag_id in load(name)["dags"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", FILES)
def test_template_fields_render(name: str) -> None:
    for dag_id, dag in load(name)["dags"].items():
        for task_id, fields in dag["tasks"].items():
            assert not any("{{" in value or "{%" in value for value in fields.values()), (task_id, fields)
            if "run_name" in fields:
                assert fields["run_name"] == f"{dag_id}/manual__1"


@pytest.mark.parametrize("name", FILES)
def test_what_a_task_takes_of_another_is_pushed_by_it(name: str) -> None:
    for dag in load(name)["dags"].values():
        assert {task: parts for task, parts in dag["never_pushed"].items() if parts} == {}
