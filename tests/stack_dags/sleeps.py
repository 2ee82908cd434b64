"""A task that sleeps for `seconds`, with retries: one whose process is killed runs again."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task


@dag(schedule=None, is_paused_upon_creation=False, params={"seconds": Param(5, type="number")})
def sleeps() -> None:
    @task(retries=3, retry_delay=timedelta(seconds=1))
    def sleep(params: Any = None) -> None:
        time.sleep(params["seconds"])

    sleep()


sleeps()
