"""Airflow as the stack runs it: four processes, our DAGs alone, connections whose secrets nobody sees."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mlops_sdk.airflow_rest import AirflowRest
from mlops_sdk.errors import AccessDenied, ServiceUnavailable
from mlops_sdk.local.isolation import members
from support import eventually
from support_turns import processes_of, service

pytestmark = pytest.mark.stack

REPOSITORY = Path(__file__).parents[3]
BACK_WITHIN_S = 60


def test_a_deferred_task_runs_with_nothing_of_the_callers_environment(airflow: Any) -> None:
    run = airflow.run("waits")
    assert run["state"] == "success"
    seen = airflow.rest.xcom("waits", run["dag_run_id"], "wait")
    assert "AIRFLOW_HOME" in seen["environment"]
    assert [name for name in seen["environment"] if name in {"PYTEST_CURRENT_TEST", "PIP_FIND_LINKS"}] == []
    assert [name for name in seen["environment"] if "SECRET" in name or "PASSWORD" in name] == []
    assert "wait" in airflow.rest.task_log("waits", run["dag_run_id"], "wait")


def test_health_is_what_the_components_say(airflow: Any) -> None:
    health = airflow.rest.health()
    assert {part: said["status"] for part, said in health.items()} == {
        "metadatabase": "healthy",
        "scheduler": "healthy",
        "triggerer": "healthy",
        "dag_processor": "healthy",
    }


def test_only_our_dags_are_loaded_and_each_is_imported(airflow: Any) -> None:
    assert airflow.rest.import_errors() == []
    ours = {dag["dag_id"] for dag in airflow.rest.dags() if dag["bundle_name"] == "mlops"}
    assert ours == {path.stem for path in (REPOSITORY / "dags").glob("*.py")}
    assert {dag["bundle_name"] for dag in airflow.rest.dags()} == {"mlops", "extra"}


def test_connections_exist_and_show_no_secret(airflow: Any, stack: Any) -> None:
    secrets = json.loads((stack.state_dir / "secrets.json").read_text())
    keys = json.loads((stack.state_dir / "ceph" / "s3-keys.json").read_text())
    hidden = [secrets["keystone_mlops"], secrets["broker_key"], secrets["mlflow_mlops"]]
    hidden.append(keys["mlops"]["secret_access_key"])
    for conn_id in ("mlops_openstack", "mlops_s3", "mlops_mlflow"):
        shown = airflow.rest.connection(conn_id)
        assert shown["conn_type"] == conn_id
        assert [secret for secret in hidden if secret in json.dumps(shown)] == []
    lease = json.loads(airflow.rest.connection("mlops_openstack")["extra"])["lease"]
    assert lease["renew_for_s"] > 40  # two tasks of one lease may be apart for as long as a restart takes


def test_a_wrong_password_is_refused(airflow: Any) -> None:
    stranger = AirflowRest(airflow.access["url"], "mlops", SecretStr("wrong-password"))
    with pytest.raises(AccessDenied) as caught:
        stranger.dags()
    assert "wrong-password" not in str(caught.value)


def test_a_run_has_one_id_however_often_it_is_started(airflow: Any) -> None:
    run_id = airflow.start("waits")
    assert not airflow.rest.trigger("waits", run_id, {})
    assert airflow.wait_for_run("waits", run_id)["state"] == "success"


def test_what_airflow_keeps_is_for_its_owner_only(airflow: Any, stack: Any) -> None:
    for name in ("airflow.json", "webhook.json", "airflow/airflow.cfg", "airflow/passwords.json", "git/webhook.toml"):
        assert (stack.state_dir / name).stat().st_mode & 0o077 == 0, name


def test_it_listens_on_loopback_alone(airflow: Any, stack: Any) -> None:
    inside = set(members(stack.pid))
    lines = subprocess.run(["ss", "-Hltnp"], check=True, capture_output=True, text=True).stdout.splitlines()
    ours = [line.split()[3] for line in lines if any(f"pid={pid}," in line for pid in inside)]
    hosts = {address.rpartition(":")[0] for address in ours}
    assert all(host == "127.0.0.1" or host.startswith(stack.bridge_address.rpartition(".")[0]) for host in hosts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["airflow-api", "airflow-dag-processor", "airflow-scheduler", "airflow-triggerer"])
def test_a_killed_component_is_started_again_and_works(airflow: Any, stack: Any, name: str) -> None:
    before = service(stack, name)
    os.kill(before.pid, signal.SIGKILL)

    def is_back() -> bool:
        now = service(stack, name)
        return now.state == "ready" and now.restarts == before.restarts + 1

    eventually(is_back, within_s=BACK_WITHIN_S, what=f"{name} is back")
    assert airflow.run("waits")["state"] == "success"


@pytest.mark.slow
def test_a_wait_goes_on_when_the_triggerer_is_killed(airflow: Any, stack: Any) -> None:
    run_id = airflow.start("waits", {"seconds": 4})
    airflow.wait_for_task("waits", run_id, "wait", "deferred")
    os.kill(service(stack, "airflow-triggerer").pid, signal.SIGKILL)
    assert airflow.wait_for_run("waits", run_id, timeout_s=60)["state"] == "success"
    assert airflow.rest.task("waits", run_id, "wait")["try_number"] == 1


@pytest.mark.slow
def test_a_task_of_a_killed_scheduler_is_run_again_and_leaves_no_process(airflow: Any, stack: Any) -> None:
    run_id = airflow.start("sleeps", {"seconds": 8})
    airflow.wait_for_task("sleeps", run_id, "sleep", "running")
    scheduler = service(stack, "airflow-scheduler").pid
    of_it = [scheduler, *members(scheduler)]
    os.kill(scheduler, signal.SIGKILL)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in of_it), within_s=10, what="all of it is gone")
    assert airflow.wait_for_run("sleeps", run_id, timeout_s=90)["state"] == "success"
    assert airflow.rest.task("sleeps", run_id, "sleep")["try_number"] == 2


@pytest.mark.slow
def test_a_killed_task_process_is_noticed_and_the_task_runs_again(airflow: Any, stack: Any) -> None:
    run_id = airflow.start("sleeps", {"seconds": 20})
    running = airflow.wait_for_task("sleeps", run_id, "sleep", "running")
    os.kill(processes_of(stack, running["id"])["task"], signal.SIGKILL)
    eventually(
        lambda: airflow.rest.task("sleeps", run_id, "sleep")["try_number"] == 2, within_s=30, what="the second attempt"
    )
    assert airflow.wait_for_run("sleeps", run_id, timeout_s=90)["state"] == "success"


@pytest.mark.slow
def test_a_task_whose_worker_is_killed_is_missed_and_runs_again(airflow: Any, stack: Any) -> None:
    run_id = airflow.start("sleeps", {"seconds": 30})
    running = airflow.wait_for_task("sleeps", run_id, "sleep", "running")
    os.kill(processes_of(stack, running["id"])["worker"], signal.SIGKILL)
    eventually(
        lambda: airflow.rest.task("sleeps", run_id, "sleep")["try_number"] == 2, within_s=75, what="the second attempt"
    )
    assert airflow.wait_for_run("sleeps", run_id, timeout_s=90)["state"] == "success"


@pytest.mark.slow
def test_a_locked_database_stops_the_api_server_for_seconds_only(airflow: Any, stack: Any) -> None:
    with closing(sqlite3.connect(stack.state_dir / "airflow" / "airflow.db", timeout=30, isolation_level=None)) as held:
        held.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(ServiceUnavailable):
            airflow.rest.pause("waits")
        assert time.monotonic() - began < 25  # a task that is not heard of for 40 s is given up
    assert airflow.run("waits")["state"] == "success"


@pytest.mark.slow
def test_a_chain_of_ten_empty_tasks_takes_seconds(airflow: Any) -> None:
    airflow.run("chain_of_ten")  # the first one meets what the api-server builds at first use
    run = airflow.run("chain_of_ten")
    assert run["state"] == "success"
    assert run["duration"] < 12
