"""``make demo``: the embedded stack, the main job with a worker killed on the way, and nothing left at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from mlops_pipelines.recipes.fault import WorkerKiller
from mlops_pipelines.recipes.main_job import MainJob, MainJobResult, default_spec, run_main_job
from mlops_pipelines.recipes.timeline import Step, Timeline
from mlops_sdk.client import Client
from mlops_sdk.config import Settings
from mlops_sdk.errors import MlopsError
from mlops_sdk.local import control
from mlops_sdk.local.control import ServiceStatus
from mlops_sdk.local.isolation import members
from mlops_sdk.local.layout import DEFAULT_STATE_DIR, Layout
from mlops_sdk.local.process import StackProcess
from mlops_sdk.registry.provenance import git_state

_START_TIMEOUT_S = 300.0


def main() -> int:
    """Start the stack, run the main job, end the stack. The exit status is 0 only when every step succeeded."""
    parser = argparse.ArgumentParser(prog="python -m mlops_pipelines.recipes.demo", description=main.__doc__)
    parser.add_argument("--state-dir", type=Path, default=DEFAULT_STATE_DIR, help="where the stack keeps everything")
    arguments = parser.parse_args()
    layout = Layout.at(arguments.state_dir)
    name = f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    workdir = layout.state_dir / "demo"
    timeline = Timeline(log_dir=workdir / f"{name}-logs")
    job = MainJob(name=name, spec=default_spec(), checkout=Path.cwd(), workdir=workdir)
    with timeline.closing() as outcome:
        git_state(job.checkout)  # refused now rather than when the stack is up
        with running_stack(timeline, layout):
            killer = WorkerKiller()
            result = run_main_job(Client(Settings.load(layout.client_toml)), job, timeline, on_event=killer)
            with timeline.step("check what was promised") as step:
                _check(step, result, killer, layout)
    return outcome.status


@contextmanager
def running_stack(timeline: Timeline, layout: Layout) -> Generator[None]:
    """The stack of a state directory: the one that runs there, which is left running, or one for this block."""
    with timeline.step("start the embedded stack") as step:
        if control.status(layout).ready:
            step.show(f"it runs already in {layout.state_dir}")
            stack = None
        else:
            stack = StackProcess(layout.state_dir, hold=("airflow-db",))  # this job needs no Airflow
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


def _check(step: Step, result: MainJobResult, killer: WorkerKiller, layout: Layout) -> None:
    """What a demo must have shown to have succeeded; the job itself has checked the rest."""
    processes = control.machine_processes(layout)
    wrong: list[str] = []
    if killer.killed_at < 0 or result.attempts < 2:  # noqa: PLR2004 - the one that was killed, and the next
        wrong.append("no worker was killed while it trained")
    elif result.resumed_from < killer.commit:
        wrong.append(f"it resumed from step {result.resumed_from}, not from the commit of step {killer.commit}")
    if processes:
        wrong.append(f"{processes} processes still run on the machines")
    if wrong:
        raise MlopsError("the demo did not do what it promises", seen="; ".join(wrong), next_step="see the logs above")
    step.show(f"killed at step {killer.killed_at}, went on from the commit of step {result.resumed_from}")
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
