"""What a program on the machines may use: who it is, its arguments, its data, where to store and report."""

from __future__ import annotations

import functools
import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from pydantic import JsonValue, SecretStr

from mlops_sdk.errors import SettingsError
from mlops_sdk.objects import ObjectStore
from mlops_sdk.training.fetch import data_path
from mlops_sdk.training.jobfile import FileRef, JobFile
from mlops_sdk.training.messages import Progress, Stopped, encode
from mlops_sdk.training.plan import NOTICE, VARIABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """One rank of a job.

    Attributes:
        run_id: The run.
        run_key: Its 12-character key in names.
        attempt: 1 for the first start; a program resumes by itself from its last committed checkpoint.
        rank: Of `world_size`.
        world_size: Ranks in all.
        local_rank: Of the ranks on this machine.
        store: The deployment's bucket.
        prefix: ``runs/<run key>``: where this run's objects go.
        args: The program's arguments.
        scratch: A directory on the machine's own disk; erased when the machine is given back.
        secrets: Secrets handed to the job by name.
    """

    run_id: uuid.UUID
    run_key: str
    attempt: int
    rank: int
    world_size: int
    local_rank: int
    store: ObjectStore = field(repr=False)
    prefix: str
    args: Mapping[str, JsonValue]
    scratch: Path
    secrets: Mapping[str, SecretStr] = field(repr=False)
    files: tuple[FileRef, ...] = field(repr=False)
    notice_file: Path = field(default=Path("/nonexistent"), repr=False)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show and record the metrics of one step. Rank 0 speaks for all; on other ranks this does nothing.

        Returns at once; the controller passes them on to MLflow, which may be down.
        """
        if self.rank != 0:
            return
        values = {name: float(value) for name, value in metrics.items()}
        emit(encode(Progress(rank=self.rank, step=step, metrics=values)))

    def report_result(self, result: Mapping[str, JsonValue]) -> None:
        """Store the job's result (JSON) for the controller. Rank 0 speaks for all; a later call replaces it."""
        if self.rank == 0:
            self.store.put_json(result_key(self.prefix, self.attempt), dict(result))

    def ending(self) -> bool:
        """Whether this job was told that its lease ends. Cheap: call it after every step.

        The ranks are told at almost the same time, but not at the same step. So they have to agree, in a collective
        call, before they stop.

        Example:
            >>> if agreed(ctx.ending()):  # doctest: +SKIP
            ...     save(step)
            ...     ctx.stop(step)
        """
        try:
            return self.notice_file.stat().st_size > 0
        except FileNotFoundError:
            return False

    def stop(self, step: int) -> NoReturn:
        """End this rank because the lease ends: everything up to `step` is committed. All ranks do.

        The next lease of the run resumes there. Raises `SystemExit`, so that `finally` blocks run.
        """
        emit(encode(Stopped(rank=self.rank, step=step)))
        sys.exit(0)

    def data(self, name: str) -> Path:
        """Where an input file lies on this machine; it was verified before the start.

        Raises:
            SettingsError: the job has no such file.
        """
        for ref in self.files:
            if ref.name == name:
                return data_path(self.scratch, ref)
        raise SettingsError(
            f"the job has no input file {name!r}",
            seen=f"it has: {', '.join(ref.name for ref in self.files) or 'none'}",
            next_step="name the file in the launch's data",
        )


def result_key(prefix: str, attempt: int) -> str:
    """Where the result of an attempt is stored."""
    return f"{prefix}/results/attempt-{attempt}.json"


def emit(line: str) -> None:
    """Write a line to the controller, whatever the program did to `sys.stdout`."""
    sys.stdout.flush()
    stream = sys.__stdout__ or sys.stdout
    stream.write(line + "\n")
    stream.flush()


@functools.cache
def context() -> WorkerContext:
    """The context of this process; the same object on every call.

    Raises:
        SettingsError: the process is not part of a job.

    Example:
        >>> ctx = context()                                     # doctest: +SKIP
        >>> ctx.log_metrics(10, {"loss": 2.5})                  # doctest: +SKIP
    """
    job = JobFile.load()
    rank = int(os.environ["RANK"])
    return WorkerContext(
        run_id=job.run_id,
        run_key=job.run_key,
        attempt=job.attempt,
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        store=ObjectStore.open(job.s3, node=True),
        prefix=job.prefix,
        args=job.args,
        scratch=Path(job.scratch),
        secrets=job.secrets,
        files=job.data,
        notice_file=Path(os.environ[VARIABLE]).with_name(NOTICE),
    )
