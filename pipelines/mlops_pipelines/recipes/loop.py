"""The whole loop, watched from outside: a push, a turn of Airflow's DAG, users, a drift, the next turn, the proof.

Nothing here does the loop's work: Airflow does. This pushes, asks the served model, changes what it asks, and looks.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_pipelines.programs.code_lm.prompts import held_out_prompts
from mlops_pipelines.recipes.clients import StreamingClients
from mlops_pipelines.recipes.facts import facts
from mlops_pipelines.recipes.follow import follow
from mlops_pipelines.recipes.timeline import Step, Timeline
from mlops_sdk.airflow_rest import RUN_ENDED, AirflowRest
from mlops_sdk.client import Client
from mlops_sdk.errors import MlopsError, ServiceUnavailable

RETRAIN, WATCH = "retrain_lm", "watch_lm"
_PROMPTS = 2000
_POLL_S = 0.5
_START_TIMEOUT_S = 60.0
_DRIFT_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A deployment on which the loop runs.

    Attributes:
        airflow: Where the DAGs run.
        client: The deployment.
        endpoint: Base URL under which users reach the served model.
        push_url: Repository whose pushes start a turn.
        workdir: For the clone that is pushed.
    """

    airflow: AirflowRest
    client: Client
    endpoint: str
    push_url: str
    workdir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of the loop that has ended well: its DAG run, and what its tasks returned."""

    run_id: str
    results: dict[str, Any]

    @property
    def run_key(self) -> str:
        """Of the run that held machines."""
        return str(self.results["train"]["run"])

    @property
    def version(self) -> str:
        """Of the model that serves since."""
        return str(self.results["deploy"]["version"])


def push(loop: Loop, checkout: Path, timeline: Timeline) -> str:
    """Push the commit of a checkout, with one more on top so that it is new; the id of the DAG run that it starts."""
    before = {str(run["dag_run_id"]) for run in loop.airflow.dag_runs(RETRAIN)}
    with timeline.step("push a commit") as step:
        commit = _push(checkout, loop.workdir / "pushed", loop.push_url)
        step.show(f"commit {commit[:12]} to {loop.push_url}")
        run_id = _new_run(loop.airflow, before)
        step.show(f"the signed webhook started run {run_id}")
    return run_id


def turn(
    loop: Loop, run_id: str, timeline: Timeline, *, on_begun: Callable[[str], None] = lambda _task_id: None
) -> Turn:
    """Follow one turn to its end.

    Raises:
        MlopsError: a task failed.
    """
    results = follow(loop.airflow, timeline, RETRAIN, run_id, facts=facts, on_begun=on_begun)
    return Turn(run_id=run_id, results=results)


def users(loop: Loop, model: str) -> StreamingClients:
    """Users who send Python code, as the model expects."""
    return StreamingClients(loop.endpoint, model, held_out_prompts("python", _PROMPTS, seed=1))


def drift(loop: Loop, clients: StreamingClients, timeline: Timeline) -> str:
    """Let the users send C++ from now on, and wait until that has started a turn; the id of its DAG run."""
    before = {str(run["dag_run_id"]) for run in loop.airflow.dag_runs(RETRAIN)}
    with timeline.step("users begin to send something else") as step:
        began = time.monotonic()
        clients.send_from_now_on(held_out_prompts("cpp", _PROMPTS, seed=1))
        step.show("C++ headers instead of Python; nobody tells the loop")
        words = _wait_for_drift(loop.airflow, step)
        step.show(f"seen after {time.monotonic() - began:.0f} s: {words}")
        run_id = _new_run(loop.airflow, before)
        step.show(f"the alert's asset event started run {run_id}")
    return run_id


def prove(loop: Loop, turns: list[Turn], timeline: Timeline) -> None:
    """Everything that the turns ever created, as the services see it now, and what each version cost.

    Raises:
        MlopsError: something was not given back.
    """
    with timeline.step("prove that nothing is held") as step:
        for one in turns:
            proof = loop.client.attach(one.run_key).prove()
            if not proof.complete:
                raise MlopsError(
                    f"run {one.run_key!r} has not given everything back",
                    seen="; ".join(f"{item.kind.value} {item.resource}: {item.evidence}" for item in proof.missing),
                    next_step=f"the reaper keeps at it; look again with `mlops runs show {one.run_key}`",
                )
            cost = loop.client.summary(one.run_key)
            step.show(
                f"version {one.version}: {cost.node_seconds:.0f} node-seconds, {cost.cost:.2f} "
                f"{loop.client.settings.currency}; all {len(proof.items)} resources of run {one.run_key} given back"
            )


def check_users(clients: StreamingClients, turns: list[Turn], timeline: Timeline) -> None:
    """End the users' requests, and look at what they saw.

    Raises:
        MlopsError: a request failed, or a version never answered.
    """
    with timeline.step("ask the users") as step:
        tally = clients.stop()
        step.show(str(tally))
        silent = [one.version for one in turns if not tally.by_version[one.version]]
        if tally.failures or silent:
            raise MlopsError(
                "users were not served as they should have been",
                seen="; ".join(tally.failures[:5]) or f"version {', '.join(silent)} answered nobody",
                next_step="see vLLM's and haproxy's logs on the serving host",
            )


def _push(checkout: Path, folder: Path, url: str) -> str:
    """A commit of its own on top of the checkout's: what was pushed once starts nothing a second time."""
    subprocess.run(["rm", "-rf", "--", str(folder)], check=True)
    _git(checkout, "clone", "--quiet", "--no-hardlinks", "--", str(checkout), str(folder))
    who = ["-c", "user.name=demo", "-c", "user.email=demo@localhost"]
    _git(folder, *who, "commit", "--quiet", "--allow-empty", "--message", f"Pushed at {time.time():.0f}")
    _git(folder, "push", "--quiet", "--force", url, "HEAD:refs/heads/main")
    return _git(folder, "rev-parse", "HEAD").strip()


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MlopsError(
            f"git {arguments[0]} failed with exit status {done.returncode}",
            seen=done.stderr.strip()[-500:],
            next_step="see what git says",
        )
    return done.stdout


def _new_run(airflow: AirflowRest, before: set[str]) -> str:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        new = [run for run in airflow.dag_runs(RETRAIN) if str(run["dag_run_id"]) not in before]
        if new:
            return str(new[-1]["dag_run_id"])
        time.sleep(_POLL_S)
    raise ServiceUnavailable(
        f"no run of {RETRAIN!r} began within {_START_TIMEOUT_S:.0f} s",
        next_step="see `mlops webhooks list`, and the logs of dispatcher and airflow-scheduler",
    )


def _wait_for_drift(airflow: AirflowRest, step: Step) -> str:
    """Look at the looks: each run of the watching DAG says what it saw; the verdict that sets off a training."""
    told = {str(run["dag_run_id"]) for run in airflow.dag_runs(WATCH) if run["state"] in RUN_ENDED}
    deadline = time.monotonic() + _DRIFT_TIMEOUT_S
    while time.monotonic() < deadline:
        for run in airflow.dag_runs(WATCH):
            run_id = str(run["dag_run_id"])
            if run_id in told or run["state"] not in RUN_ENDED:
                continue
            told.add(run_id)
            look = airflow.xcom(WATCH, run_id, "detect_drift") or {}
            if look.get("announce"):
                return f"{look.get('alert')}, {', '.join(look.get('widen_to', []))}"
            step.say(f"{run_id}: nothing to announce")
        time.sleep(_POLL_S)
    raise ServiceUnavailable(
        f"no drift was seen within {_DRIFT_TIMEOUT_S:.0f} s",
        next_step=f"see the runs of {WATCH!r} in Airflow, and the profiles on the serving host",
    )
