"""Disturb a training on purpose, to show (and to test) that it survives."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlops_pipelines.recipes.main_job import RunningJob
from mlops_sdk.checkpoint.resume import committed
from mlops_sdk.client import Client
from mlops_sdk.local import control
from mlops_sdk.local.layout import Layout
from mlops_sdk.remote.ssh import run_once
from mlops_sdk.training.events import JobEvent, RankStarted, StepDone

_WORKER = "mlops_sdk.training.worker"
_POLL_S = 0.2


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """A worker that was killed: its process as this computer numbers it, its rank, the newest committed step then."""

    pid: int
    rank: int
    commit: int

    def __str__(self) -> str:
        return f"kill -9 of rank {self.rank} (process {self.pid}); last commit: step {self.commit}"


class MachineWorkerKiller(threading.Thread):
    """Kills the highest rank of a run's training on the embedded stack's machines, once, after its first commit.

    It knows nothing of who trains: it looks at the bucket, and at the processes of the machines.

    Args:
        client: The deployment.
        layout: Whose machines.
        run_name: The run, which need not have begun.
    """

    def __init__(self, client: Client, layout: Layout, run_name: str) -> None:
        super().__init__(name="worker-killer", daemon=True)
        self._client = client
        self._layout = layout
        self._run_name = run_name
        self._stop_now = threading.Event()
        self.killed: Killed | None = None

    def run(self) -> None:
        """Wait for the first commit, then kill."""
        while self.killed is None and not self._stop_now.wait(_POLL_S):
            run = self._client.find(self._run_name)
            steps = committed(self._client.store, f"{run.prefix}/checkpoints") if run else []
            if steps:
                self.killed = self._kill(steps[0])

    def stop(self) -> Killed | None:
        """End it; whom it has killed."""
        self._stop_now.set()
        self.join()
        return self.killed

    def _kill(self, commit: int) -> Killed | None:
        ranks = {rank: pid for pid in control.machine_processes(self._layout) if (rank := _rank_of(pid)) is not None}
        if not ranks:
            return None
        highest = max(ranks)
        with suppress(ProcessLookupError):
            os.kill(ranks[highest], signal.SIGKILL)
            return Killed(pid=ranks[highest], rank=highest, commit=commit)
        return None


def _rank_of(pid: int) -> int | None:
    """The rank of a worker of a training; None of any other process."""
    process = Path(f"/proc/{pid}")
    try:
        argv = process.joinpath("cmdline").read_bytes().split(b"\0")
        environment = process.joinpath("environ").read_bytes().split(b"\0")
    except OSError:
        return None
    if _WORKER.encode() not in argv or b"torch.distributed.run" in argv:
        return None
    found = [
        entry.partition(b"=")[2] for entry in environment if entry.startswith((b"RANK=", b"OMPI_COMM_WORLD_RANK="))
    ]
    return int(found[0]) if found else None
