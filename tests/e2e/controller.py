"""The main job in a process of its own, which kills itself with SIGKILL at a named boundary.

controller.py JOB WHAT PHASE     JOB: a file with the job as JSON; WHAT: a step of the recipe, a step of the run's lease
                                 (``machine.deploy``, ...), or ``training`` (in its middle, PHASE does not matter)
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from mlops_pipelines.recipes.main_job import MainJob, RunningJob, run_main_job
from mlops_pipelines.recipes.timeline import Timeline
from mlops_pipelines.specs import TrainSpec
from mlops_sdk.client import Client
from mlops_sdk.run import Run
from mlops_sdk.training.events import JobEvent, StepDone


def main(job_file: str, what: str, phase: str) -> None:
    """Run until the boundary."""

    def die_at(seen: str, when: str, _detail: object = None) -> None:
        if (seen, when) == (what, phase):
            os.kill(os.getpid(), signal.SIGKILL)

    def die_in_training(_job: RunningJob, event: JobEvent) -> None:
        if what == "training" and isinstance(event, StepDone) and event.step >= 3:
            os.kill(os.getpid(), signal.SIGKILL)

    opened = Run.open

    def open_and_listen(run: Run) -> None:
        run.on_event(die_at)
        opened(run)

    Run.open = open_and_listen
    raw = json.loads(Path(job_file).read_text())
    job = MainJob(
        name=raw["name"],
        spec=TrainSpec.model_validate(raw["spec"]),
        checkout=Path(raw["checkout"]),
        workdir=Path(raw["workdir"]),
        beat_baseline=False,
    )
    timeline = Timeline(log_dir=Path(tempfile.mkdtemp(dir=raw["workdir"])), on_boundary=die_at)
    run_main_job(Client(), job, timeline, on_event=die_in_training)
    sys.exit(3)  # the boundary was never reached


if __name__ == "__main__":
    main(*sys.argv[1:])
