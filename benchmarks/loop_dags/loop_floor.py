"""The floor: `loop_ours` again (tasks, groups, order, retries, setup and teardown), and every task is empty."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, TaskGroup, chain, dag, task

from benchmarks.loop_workload import DAGS, FLOOR_ASSET, LoopSpec
from mlops_pipelines.groups import params_of


@dag(
    dag_id=DAGS["floor"],
    schedule=[Asset(name=FLOOR_ASSET, uri=FLOOR_ASSET, group="mlops")],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    params=params_of(LoopSpec),
)
def loop_floor() -> None:
    """Nothing, eleven times."""

    @task(retries=3, retry_delay=timedelta(seconds=5))
    def nothing() -> None:
        return

    def empty(task_id: str) -> Any:
        return nothing.override(task_id=task_id)()

    plan, tests = empty("plan_the_turn"), empty("run_tests")
    with TaskGroup("data", prefix_group_id=False):
        validate, pin = empty("validate_data"), empty("pin_data")
        chain(validate, pin)
    with TaskGroup("machines", prefix_group_id=False):
        provision, train = empty("provision").as_setup(), empty("train")
        release = empty("release").as_teardown(setups=provision)
        chain(provision, train, release)
    register, gate, deploy = empty("register"), empty("gate"), empty("deploy")
    reference = empty("keep_reference")
    chain(plan, [tests, validate, pin, provision, train, gate, reference])
    chain([tests, pin], [provision, reference])
    chain([tests, pin], train)
    chain(reference, deploy)
    chain(train, register, gate, deploy)


loop_floor()
