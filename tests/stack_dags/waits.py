"""A task that is deferred for `seconds`, then tells what its process saw."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, Param, dag


class Waits(BaseOperator):
    def execute(self, context: Any) -> None:
        seconds = timedelta(seconds=context["params"]["seconds"])
        self.defer(trigger=TimeDeltaTrigger(seconds), method_name="resume")

    def resume(self, context: Any, event: Any = None) -> dict[str, Any]:
        return {"environment": sorted(os.environ), "user": os.geteuid()}


@dag(schedule=None, is_paused_upon_creation=False, params={"seconds": Param(0.1, type="number")})
def waits() -> None:
    Waits(task_id="wait", retries=2, retry_delay=timedelta(seconds=1))


waits()
