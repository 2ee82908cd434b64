"""Ten empty tasks, one after the other."""

from __future__ import annotations

from airflow.sdk import chain, dag, task


@dag(schedule=None, is_paused_upon_creation=False)
def chain_of_ten() -> None:
    @task
    def nothing() -> None:
        pass

    chain(*(nothing.override(task_id=f"task_{number}")() for number in range(10)))


chain_of_ten()
