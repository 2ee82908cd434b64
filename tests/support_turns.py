"""A DAG run that leases machines, as tests follow it, and the processes that it runs in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlops_sdk.checkpoint.resume import committed
from mlops_sdk.client import Client
from mlops_sdk.local import control
from mlops_sdk.local.isolation import members
from mlops_sdk.names import run_id_for
from mlops_sdk.run import Run
from support import eventually


class Turn:
    """One run of a DAG of `tests/stack_dags` that leases machines."""

    def __init__(self, airflow: Any, client: Client, dag: str, run_id: str) -> None:
        self.airflow = airflow
        self.client = client
        self.dag = dag
        self.id = run_id

    @property
    def name(self) -> str:
        """Of its run."""
        return f"{self.dag}/{self.id}"

    @property
    def run(self) -> Run:
        return self.client.attach(run_id_for(self.client.settings.deployment_id, self.name))

    @property
    def began(self) -> bool:
        """Whether anything was ever asked for in its name."""
        return self.client.find(self.name) is not None

    def wait_for(self, task_id: str, *states: str) -> dict[str, Any]:
        return self.airflow.wait_for_task(self.dag, self.id, task_id, *states, timeout_s=120)

    def task(self, task_id: str) -> dict[str, Any]:
        return self.airflow.rest.task(self.dag, self.id, task_id)

    def state(self, task_id: str) -> str:
        return self.task(task_id)["state"]

    def tries(self, task_id: str) -> int:
        return self.task(task_id)["try_number"]

    def wait_for_try(self, task_id: str, number: int) -> None:
        """Until a task has begun so many tries."""
        eventually(
            lambda: self.tries(task_id) >= number, within_s=90, what=f"{task_id} is tried for the {number}. time"
        )

    def wait_for_commits(self) -> int:
        """Until the training has committed something; the newest step."""
        folder = f"{self.run.prefix}/checkpoints"
        eventually(lambda: bool(committed(self.client.store, folder)), within_s=120, what="a commit")
        return committed(self.client.store, folder)[0]

    def wait_until_back(self, *, renew_for_s: float) -> None:
        """Until nothing is held, at the latest when nobody renews it any more."""
        limit = renew_for_s + self.client.settings.lease.reaper_period_s + 40  # cleaning
        eventually(lambda: self.run.prove().complete, within_s=limit, what="it is back")

    def end(self) -> str:
        return self.airflow.wait_for_run(self.dag, self.id, timeout_s=200)["state"]

    def xcom(self, task_id: str) -> dict[str, Any]:
        return self.airflow.rest.xcom(self.dag, self.id, task_id)

    def log(self, task_id: str, attempt: int = 1) -> str:
        return self.airflow.rest.task_log(self.dag, self.id, task_id, attempt=attempt)

    def asked_for(self) -> int:
        """How many machines were ever created for it."""
        entries = self.run.journal.entries()
        return sum(entry.action == "allocation.create" and entry.kind.value == "outcome" for entry in entries)


def service(stack: Any, name: str) -> control.ServiceStatus:
    return next(s for s in control.status(stack.layout).services if s.name == name)


def processes_of(stack: Any, task_instance: str) -> dict[str, int]:
    """The process in which a task runs, and the scheduler's worker that runs it: both have its id as their title."""
    found: dict[str, int] = {}

    def both() -> bool:
        for pid in members(service(stack, "airflow-scheduler").pid):
            title = Path(f"/proc/{pid}/cmdline").read_text().strip("\0 ")
            if title.endswith(task_instance):
                found["worker" if "LocalExecutor" in title else "task"] = pid
        return len(found) == 2

    eventually(both, within_s=10, what="the task's processes")
    return found
