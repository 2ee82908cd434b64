"""A machine is lost under a job: the job goes on on the repaired set, in the same generation, from its last commit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mlops_pipelines.recipes.main_job import MainJob, RunningJob, run_main_job
from mlops_pipelines.recipes.timeline import Timeline
from mlops_sdk.capacity.accounts import cost_of_run
from mlops_sdk.capacity.cost_lines import Line, by_line
from mlops_sdk.checkpoint.resume import committed
from mlops_sdk.client import Client
from mlops_sdk.training.events import AttemptEnded, JobEvent, RankStarted, StepDone
from support import eventually
from support_machines import Cable

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400), pytest.mark.slow, pytest.mark.usefixtures("nothing_is_held")]


class CablePuller:
    """Pulls the cable of rank 1's machine once something is committed."""

    def __init__(self, stack_pid: int) -> None:
        self._pid = stack_pid
        self._cable: Cable | None = None
        self.lost = ""
        self.commit = -1
        self.attempts: list[AttemptEnded] = []
        self.nodes: list[set[str]] = []

    def __call__(self, job: RunningJob, event: JobEvent) -> None:
        """For `run_main_job`'s `on_event`."""
        match event:
            case RankStarted(rank=rank, node=name):
                if rank == 0:
                    self.nodes.append(set())
                self.nodes[-1].add(name)
                if rank == 1 and not self.lost:
                    address = next(node.address for node in job.nodes if node.name == name)
                    self._cable, self.lost = Cable(self._pid, address), name
            case StepDone(step=step) if self._cable is not None and self.commit < 0:
                steps = committed(job.site.store, f"{job.site.prefix}/checkpoints")
                if steps and steps[0] < step:
                    self._cable.pull()
                    self.commit = steps[0]
            case AttemptEnded():
                self.attempts.append(event)
            case _:
                pass


def test_a_job_goes_on_on_the_repaired_set(stack: Any, job: MainJob, timeline: Timeline):
    lease = stack.settings.lease.model_copy(update={"loss_after_s": 2.0, "ssh_timeout_s": 30.0})
    client = Client(stack.settings.model_copy(update={"lease": lease}))
    capacity = job.spec.capacity.model_copy(update={"spares": 1})
    program = job.spec.program
    program = program.model_copy(update={"arguments": {**program.arguments, "steps": 60}})
    spec = job.spec.model_copy(update={"capacity": capacity, "program": program})
    puller = CablePuller(stack.pid)

    result = run_main_job(client, replace(job, spec=spec), timeline, on_event=puller)

    assert result.attempts == 2
    assert 0 < puller.commit <= result.resumed_from < 60
    assert puller.lost in puller.nodes[0]
    assert puller.lost not in puller.nodes[1]
    run = client.attach(result.run_key)
    history = run.history()
    assert list(history.generations) == [1]
    (replacement,) = history.generations[1].replacements
    assert replacement.done
    assert replacement.by == 2
    eventually(lambda: run.prove().complete, within_s=120, what="the lost machine is clean, too")
    lines = by_line(cost_of_run(client, result.run_key).runs[0].portions)
    assert min(lines[Line.TRAINING], lines[Line.FAILED], lines[Line.SPARE]) > 0
