"""Airflow's tables in a PostgreSQL server instead of SQLite, by the one variable that says so."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from benchmarks.postgres import Postgres, postgres
from mlops_sdk.airflow_rest import AirflowRest
from mlops_sdk.local.process import StackProcess
from support import eventually

REPOSITORY = Path(__file__).parents[3]
ONLY = ("airflow-api", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", "settings")


@pytest.fixture
def server() -> Iterator[Postgres]:
    folder = Path(f"/tmp/mlops-test-{os.getpid()}-pg")  # noqa: S108 - as `state_dir`; the server's own user reaches it
    try:
        with postgres(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_deferred_task_goes_through_postgresql_and_nothing_is_in_sqlite(server: Postgres, state_dir: Path) -> None:
    environment = {
        "MLOPS_AIRFLOW_DATABASE_URL": server.make("airflow"),
        "MLOPS_AIRFLOW_EXTRA_DAGS": str(REPOSITORY / "tests" / "stack_dags"),
    }
    with StackProcess(state_dir, only=ONLY, environment=environment) as stack:
        stack.wait_ready(timeout_s=240)
        access = json.loads(stack.layout.airflow_json.read_text())
        rest = AirflowRest(access["url"], access["username"], SecretStr(access["password"]))
        eventually(lambda: "waits" in {dag["dag_id"] for dag in rest.dags()}, within_s=60)
        rest.unpause("waits")
        assert rest.trigger("waits", "through-postgresql", {})
        assert rest.wait_for_run("waits", "through-postgresql", timeout_s=120)["state"] == "success"
        rows = server.query("airflow", "select state from dag_run where run_id = 'through-postgresql'")
        assert rows == [("success",)]
        assert not stack.layout.data("airflow").joinpath("airflow.db").exists()
