"""The same turn from stock operators and sensors that poke once a second: what one writes without this project."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import Param, TaskGroup, chain, dag, task

from benchmarks import loop_stock as work
from benchmarks import loop_stock_serving as serving
from benchmarks.loop_workload import DAGS, TESTS

AGAIN: dict[str, Any] = {"retries": 3, "retry_delay": timedelta(seconds=5)}
POKE: dict[str, Any] = {**AGAIN, "poke_interval": 1, "timeout": 600}
# A commit that was green is not tested again, as in the other chain.
RUN_TESTS = f"""
set -eu
green="$HOME/.cache/stock-green/$COMMIT"
if [ -e "$green" ]; then exit 0; fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git clone --quiet --shared --no-checkout "$REPOSITORY" "$folder/code"
cd "$folder/code"
git checkout --quiet --detach "$COMMIT"
export PYTHONPATH=.:hooks:operators:pipelines PYTHONDONTWRITEBYTECODE=1
{sys.executable} -m pytest -q -p no:cacheprovider {" ".join(TESTS)}
mkdir -p "$(dirname "$green")"
touch "$green"
"""


@dag(
    dag_id=DAGS["stock"],
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    params={"repository": Param("", type="string"), "commit": Param("", type="string")},
)
def loop_stock() -> None:
    """One turn."""
    plan: Any = task(task_id="plan_the_turn", multiple_outputs=True, **AGAIN)(_plan)()
    run_tests = BashOperator(
        task_id="run_tests",
        bash_command=RUN_TESTS,
        env={"REPOSITORY": plan["repository"], "COMMIT": plan["commit"]},
        append_env=True,
        **AGAIN,
    )
    with TaskGroup("data", prefix_group_id=False):
        validate: Any = task(**AGAIN)(work.validate_data)()
        pin: Any = task(**AGAIN)(work.pin_data)()
        chain(plan, validate, pin)
    with TaskGroup("machines", prefix_group_id=False):
        allocate: Any = task(**AGAIN)(work.allocate)("{{ run_id }}").as_setup()
        allocated: Any = task.sensor(**POKE)(work.allocated)(allocate)
        node: Any = task(**AGAIN)(work.deploy_machine)(allocate)
        deployed: Any = task.sensor(**POKE)(work.deployed)(node)
        start: Any = task(task_id="start_training", **AGAIN)(_start_training)(plan, pin, node, "{{ run_id }}")
        trained: Any = task.sensor(**POKE)(work.trained)(node)
        release: Any = task(**AGAIN)(work.release)(node).as_teardown(setups=allocate)
        released: Any = task.sensor(**POKE)(work.released)(node)
        chain(allocated, node, deployed, start, trained, release, released)
    with TaskGroup("registry", prefix_group_id=False):
        register: Any = task(**AGAIN)(work.register)(plan, start, trained)
        gate: Any = task(**AGAIN)(work.gate)(register)
        chain(trained, register, gate)
    with TaskGroup("serving", prefix_group_id=False):
        vllm: Any = task(**AGAIN)(serving.start_vllm)(register)
        ready: Any = task.sensor(**POKE)(serving.ready)(vllm)
        switch: Any = task(**AGAIN)(serving.switch)(vllm)
        crown: Any = task(**AGAIN)(serving.crown)(register)
        chain(gate, vllm, ready, switch, crown)
    chain([run_tests, pin], allocate)


def _plan(params: dict[str, Any] | None = None) -> dict[str, Any]:
    return work.plan(params or {})


def _start_training(plan: dict[str, Any], data: dict[str, Any], node: dict[str, str], name: str) -> dict[str, str]:
    return work.start_training(plan, data, node, name)


loop_stock()
