"""Disturb a training on purpose, to show (and to test) that it survives."""

from __future__ import annotations

from mlops_pipelines.recipes.main_job import RunningJob
from mlops_sdk.checkpoint.resume import committed
from mlops_sdk.remote.ssh import run_once
from mlops_sdk.training.events import JobEvent, RankStarted, StepDone


class WorkerKiller:
    """Kills one rank with SIGKILL, once, while it works on the steps after a committed checkpoint.

    Args:
        rank: Whom.

    Attributes:
        killed_at: The step reported last before the kill; -1 before it.
        commit: The newest committed step then.
    """

    def __init__(self, rank: int = 1) -> None:
        self._rank = rank
        self._victim: RankStarted | None = None
        self.killed_at = -1
        self.commit = -1

    def __call__(self, job: RunningJob, event: JobEvent) -> None:
        """For `run_main_job`'s `on_event`."""
        if self.killed_at >= 0:
            return
        if isinstance(event, RankStarted) and event.rank == self._rank:
            self._victim = event
        if isinstance(event, StepDone) and self._victim is not None:
            steps = committed(job.site.store, f"{job.site.prefix}/checkpoints")
            if steps and steps[0] < event.step:
                self._kill(job, self._victim, event.step, steps[0])

    def _kill(self, job: RunningJob, victim: RankStarted, step: int, commit: int) -> None:
        node = next(node for node in job.nodes if node.name == victim.node)
        run_once(job.site.host(node), ["kill", "-KILL", str(victim.pid)])
        self.killed_at, self.commit = step, commit
        job.step.show(
            f"kill -9 of rank {victim.rank} (process {victim.pid} on {victim.node}) at step {step}; "
            f"last commit: step {commit}"
        )
