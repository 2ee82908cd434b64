"""``make demo``: the embedded stack, the loop twice round with a worker killed on the way, and nothing left behind."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr

from mlops_pipelines.recipes import loop as story
from mlops_pipelines.recipes.fault import MachineWorkerKiller
from mlops_pipelines.recipes.loop import RETRAIN, Loop, Turn
from mlops_pipelines.recipes.timeline import Step, Timeline
from mlops_sdk.airflow_rest import AirflowRest
from mlops_sdk.client import Client
from mlops_sdk.config import Settings
from mlops_sdk.errors import MlopsError
from mlops_sdk.local import control
from mlops_sdk.local.control import ServiceStatus
from mlops_sdk.local.isolation import members
from mlops_sdk.local.layout import Layout
from mlops_sdk.local.process import StackProcess
from mlops_sdk.registry.champion import read_champion
from mlops_sdk.registry.provenance import git_state

_START_TIMEOUT_S = 400.0
_STATE_DIR = Path(".mlops/stacks/demo")
_MODEL = "code-lm"
_RESTING_S = 3.0  # between two requests of a user while machines and serving host share the cores of one computer


def main() -> int:
    """Start the stack, run the loop twice round, end the stack. The exit status is 0 only when every step succeeded."""
    parser = argparse.ArgumentParser(prog="python -m mlops_pipelines.recipes.demo", description=main.__doc__)
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=_STATE_DIR,
        help="where the stack keeps everything; one that runs there (`make up`) is used and left running",
    )
    arguments = parser.parse_args()
    layout = Layout.at(arguments.state_dir)
    workdir = layout.state_dir.parent / f"{layout.state_dir.name}-demo"
    timeline = Timeline(log_dir=workdir / f"logs-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    with timeline.closing() as outcome:
        git_state(Path.cwd())  # refused now rather than when the stack is up
        with running_stack(timeline, layout):
            demonstrate(timeline, layout, Path.cwd(), workdir)
    return outcome.status


def demonstrate(timeline: Timeline, layout: Layout, checkout: Path, workdir: Path) -> None:
    """The loop, twice round: by a push, then by a drift."""
    loop = _loop(layout, workdir)
    with timeline.step("look at what serves") as step:
        _must_be_new(step, loop)
    run_id = story.push(loop, checkout, timeline)
    killer = MachineWorkerKiller(loop.client, layout, f"{RETRAIN}/{run_id}")

    def begun(task_id: str) -> None:
        if task_id == "train":
            killer.start()

    try:
        first = story.turn(loop, run_id, timeline, on_begun=begun)
    finally:
        if killer.is_alive():
            killer.stop()
    with timeline.step("look at who was killed") as step:
        _check_survived(step, killer, first)
    with story.users(loop, _MODEL) as clients:
        drifted = story.drift(loop, clients, timeline)
        clients.pause(_RESTING_S)
        second = story.turn(loop, drifted, timeline)
        clients.wait_for_version(second.version)
        story.check_users(clients, [first, second], timeline)
    story.prove(loop, [first, second], timeline)
    with timeline.step("look at the machines") as step:
        _check_machines(step, layout)


@contextmanager
def running_stack(timeline: Timeline, layout: Layout) -> Generator[None]:
    """The stack of a state directory: the one that runs there, which is left running, or a new one for this block."""
    with timeline.step("start the embedded stack") as step:
        if control.status(layout).ready:
            step.show(f"it runs already in {layout.state_dir}")
            stack = None
        else:
            if layout.state_dir.absolute() == _STATE_DIR.absolute():
                shutil.rmtree(layout.state_dir, ignore_errors=True)  # a demo begins where nothing has served yet
            stack = StackProcess(layout.state_dir)
            _wait_ready(step, stack)
    try:
        yield
    finally:
        if stack is not None:
            with timeline.step("end the embedded stack") as step:
                _end(step, stack)


def _wait_ready(step: Step, stack: StackProcess) -> None:
    def tell(service: ServiceStatus) -> None:
        tell = step.note if service.state == "waiting" else step.say
        tell(f"{service.name} {service.state}" + (f" after {service.seconds:.0f} s" if service.seconds else ""))

    try:
        status = stack.wait_ready(timeout_s=_START_TIMEOUT_S, changed=tell)
    except BaseException:
        stack.stop()
        raise
    step.show(", ".join(service.name for service in status.services))
    step.show(f"settings {stack.layout.client_toml}, logs {stack.output.parent}")


def _loop(layout: Layout, workdir: Path) -> Loop:
    access = json.loads(layout.airflow_json.read_text())
    return Loop(
        airflow=AirflowRest(access["url"], access["username"], SecretStr(access["password"])),
        client=Client(Settings.load(layout.client_toml)),
        endpoint=str(json.loads(layout.serving_json.read_text())["base_url"]),
        push_url=str(layout.data("git") / "code.git"),
        workdir=workdir,
    )


def _must_be_new(step: Step, loop: Loop) -> None:
    """A drift can be shown only where the serving model does not know yet what users will send."""
    champion = read_champion(loop.client.mlflow, _MODEL)
    if champion is not None and "cpp" in champion.kinds:
        raise MlopsError(
            f"version {champion.version} of {_MODEL!r} serves here already and knows what the demo would teach it",
            seen=f"trained on {', '.join(champion.kinds)}",
            next_step="run the demo on a stack of its own: `make demo` without arguments",
        )
    step.show(f"version {champion.version} serves" if champion else "nothing serves yet")
    step.show(f"Airflow {loop.airflow.url}, MLflow {loop.client.mlflow.tracking_uri}, served model {loop.endpoint}")


def _check_survived(step: Step, killer: MachineWorkerKiller, turn: Turn) -> None:
    killed, trained = killer.killed, turn.results["train"]
    if killed is None or trained["attempts"] < 2:  # noqa: PLR2004 - the one that was killed, and the next
        raise MlopsError("no worker was killed while it trained", seen=f"{trained}", next_step="see the logs above")
    if trained["resumed_from"] < killed.commit:
        raise MlopsError(
            f"it resumed from step {trained['resumed_from']}, not from the commit of step {killed.commit}",
            next_step="see the log of the task 'train'",
        )
    step.show(f"{killed}; the next attempt went on from step {trained['resumed_from']}")


def _check_machines(step: Step, layout: Layout) -> None:
    processes = control.machine_processes(layout)
    if processes:
        raise MlopsError(
            f"{len(processes)} processes still run on the machines",
            seen=", ".join(str(pid) for pid in processes),
            next_step="see the farm's log",
        )
    step.show("no process is left on the machines; all are off, clean and available")


def _end(step: Step, stack: StackProcess) -> None:
    processes = members(stack.pid)
    stack.stop()
    left = control.leftovers(stack.layout, processes)
    if left:
        raise MlopsError(
            "the embedded stack left something behind",
            seen=", ".join(left),
            next_step="the next `mlops local up` sweeps",
        )
    step.show(f"{len(processes)} processes ended; no process, lock or interface of it is left")


if __name__ == "__main__":
    sys.exit(main())
