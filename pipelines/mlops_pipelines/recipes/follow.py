"""Watch a DAG run from outside: each task becomes a step on the timeline when it ends, with its result as evidence."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mlops_pipelines.recipes.timeline import Timeline
from mlops_sdk.airflow_rest import RUN_ENDED, AirflowRest
from mlops_sdk.errors import MlopsError, RemoteError, ServiceUnavailable

Facts = Callable[[str, Any], Sequence[str]]
Begun = Callable[[str], None]
_ENDED = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})
_POLL_S = 0.5
_LAST_LINES = 3


def follow(
    airflow: AirflowRest,
    timeline: Timeline,
    dag_id: str,
    run_id: str,
    *,
    facts: Facts,
    on_begun: Begun = lambda _task_id: None,
    timeout_s: float = 1800.0,
) -> dict[str, Any]:
    """Follow a run to its end; the results of its tasks by task id.

    Args:
        airflow: Where it runs.
        timeline: Who watches.
        dag_id: The DAG.
        run_id: The run. It may not be there yet.
        facts: From a task id and what the task returned to lines of evidence.
        on_begun: Told when a task begins.
        timeout_s: How long the run may take.

    Raises:
        MlopsError: the run failed; names the tasks and the last words of their logs.
        ServiceUnavailable: Airflow does not answer, or the run does not end in time.
    """
    follower = _Follower(
        airflow=airflow, timeline=timeline, dag_id=dag_id, run_id=run_id, facts=facts, on_begun=on_begun
    )
    deadline = time.monotonic() + timeout_s
    while not follower.look():
        if time.monotonic() > deadline:
            raise ServiceUnavailable(
                f"run {run_id!r} of DAG {dag_id!r} did not end within {timeout_s:.0f} s",
                seen=", ".join(f"{task}: {state}" for task, state in follower.states.items()),
                next_step="see the logs of its tasks in Airflow",
            )
        time.sleep(_POLL_S)
    return follower.results


@dataclass(slots=True, kw_only=True)
class _Follower:
    airflow: AirflowRest
    timeline: Timeline
    dag_id: str
    run_id: str
    facts: Facts
    on_begun: Begun
    states: dict[str, str] = field(default_factory=dict[str, str])
    results: dict[str, Any] = field(default_factory=dict[str, Any])
    begun: set[str] = field(default_factory=set[str])

    def look(self) -> bool:
        """Report what is new; whether the run has ended."""
        ended = self.airflow.dag_run(self.dag_id, self.run_id).get("state") in RUN_ENDED
        tasks = self.airflow.tasks(self.dag_id, self.run_id)
        for task in sorted(tasks, key=lambda task: str(task.get("end_date") or "9")):
            self._update(task)
        if ended:
            self._raise_failures()
        return ended

    def _update(self, task: Mapping[str, Any]) -> None:
        name, state = str(task["task_id"]), str(task["state"] or "waits")
        if state == self.states.get(name):
            return
        self.states[name] = state
        if state in _ENDED:
            self._ended(name, state, task)
        elif state in {"running", "deferred"} and name not in self.begun:  # one that waited runs once more
            self.begun.add(name)
            self.timeline.say(f"{name} begins")
            self.on_begun(name)
        elif state == "up_for_retry":
            self.timeline.say(f"{name} will be tried again: {self._last_words(name, int(task['try_number']))}")

    def _ended(self, name: str, state: str, task: Mapping[str, Any]) -> None:
        number = int(task.get("try_number") or 0)
        if state == "success":
            self.results[name] = self.airflow.xcom(self.dag_id, self.run_id, name)
            evidence = list(self.facts(name, self.results[name]))
            self.timeline.record(name, seconds=_seconds(task), evidence=evidence, log=self._log(name, number))
        elif state == "failed":
            failed = self._last_words(name, number) or "failed"
            self.timeline.record(name, seconds=_seconds(task), failed=failed, log=self._log(name, number))
        else:
            self.timeline.say(f"{name}: {state.replace('_', ' ')}")

    def _raise_failures(self) -> None:
        failed = [name for name, state in self.states.items() if state == "failed"]
        if failed or "upstream_failed" in self.states.values():
            raise MlopsError(
                f"run {self.run_id!r} of DAG {self.dag_id!r} failed",
                seen=f"task {', '.join(failed)}",
                next_step="see the task's log",
            )

    def _log(self, name: str, number: int) -> str:
        try:
            return self.airflow.task_log(self.dag_id, self.run_id, name, attempt=max(number, 1))
        except RemoteError as error:
            return f"the log could not be read: {error}\n"

    def _last_words(self, name: str, number: int) -> str:
        errors = [line for line in self._log(name, number).splitlines() if " error " in line]
        return " | ".join(errors[-_LAST_LINES:])[-800:]


def _seconds(task: Mapping[str, Any]) -> float:
    """From its start to its end, waiting included."""
    if not (task.get("start_date") and task.get("end_date")):
        return 0.0
    began, ended = (datetime.fromisoformat(str(task[key])) for key in ("start_date", "end_date"))
    return (ended - began).total_seconds()
