"""One rank on a machine: `python -m mlops_sdk.training.worker`, started by torchrun or mpirun.

Two processes: the program, and a supervisor that only reads its output and waits for it, so that the controller
learns how a rank ended (which exception, which signal) in the same words whatever launcher started it.

A program begins with

    from mlops_sdk.training.worker import context
    ctx = context()
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import runpy
import select
import shutil
import signal
import sys
import time
import traceback
from typing import NoReturn

from mlops_sdk.errors import MlopsError
from mlops_sdk.training.context import WorkerContext, context, emit
from mlops_sdk.training.jobfile import JobFile
from mlops_sdk.training.messages import MARK, Raised, RankEnded, Started, encode
from mlops_sdk.training.network import interface_of

__all__ = ["WorkerContext", "context", "main"]

_PR_SET_PDEATHSIG = 1
_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}
_MESSAGE = 600
_TRACEBACK = 2000
_DRAIN_S = 1.0
_LOOK_S = 0.2


def main() -> NoReturn:
    """Run the job's program as this rank; does not return."""
    job = JobFile.load()
    for name, source in _MPI.items():
        if name not in os.environ and source in os.environ:
            os.environ[name] = os.environ[source]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_of(job.address)[0])
    rank = int(os.environ["RANK"])
    out, into = os.pipe()
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(out)
        _become_program(into, supervisor)
        sys.exit(_run_program(job, rank))
    os.close(into)
    _supervise(rank, child, out)


def _become_program(into: int, supervisor: int) -> None:
    """Child side: write to the supervisor, end with it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(1)
    os.dup2(into, 1)
    os.dup2(into, 2)
    os.close(into)


def _run_program(job: JobFile, rank: int) -> int:
    emit(encode(Started(rank=rank, pid=os.getpid())))
    sys.argv = [job.module]
    try:
        runpy.run_module(job.module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return _exit_status(stop)
    except BaseException as error:  # noqa: BLE001 - whatever ends the program is reported, also what is no Exception
        emit(encode(_describe(rank, error, job)))
        traceback.print_exc()
        return 1
    return 0


def _exit_status(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    sys.stderr.write(f"{stop.code}\n")
    return 1


def _describe(rank: int, error: BaseException, job: JobFile) -> Raised:
    kind = type(error)
    message = (
        error.what + (f"; seen: {error.seen}" if error.seen else "") if isinstance(error, MlopsError) else str(error)
    )
    next_step = error.next_step if isinstance(error, MlopsError) else ""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        usage = shutil.disk_usage(job.scratch)
        message += f" ({usage.free} of {usage.total} bytes free on {job.scratch})"
        next_step = "ask for machines with more scratch, or keep less on it"
    return Raised(
        rank=rank,
        time=time.time(),
        exception=kind.__name__
        if kind.__module__ in {"builtins", "__main__"}
        else f"{kind.__module__}.{kind.__name__}",
        message=message[:_MESSAGE],
        traceback="".join(traceback.format_exception(error))[-_TRACEBACK:],
        retriable=bool(getattr(error, "retriable", False)),
        next_step=next_step,
    )


def _supervise(rank: int, child: int, out: int) -> NoReturn:
    """Parent side: pass output on, line by line, until the program has ended; then say how and end alike."""
    asked = False

    def pass_on(number: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    status = _pump(rank, child, out)
    ended = RankEnded(rank=rank, status=max(status, 0), signal=max(-status, 0), asked=asked)
    _write(encode(ended).encode() + b"\n")
    os._exit(status if status >= 0 else 128 - status)


def _pump(rank: int, child: int, out: int) -> int:
    """Copy the program's output, each line with its rank, and return its exit status (minus the signal).

    The pipe may outlive the program: a helper process of it can hold the other end. So the program's end is watched
    too, and what is still in the pipe then gets a last `_DRAIN_S`.
    """
    prefix = f"[rank {rank}] ".encode()
    pending, status, deadline = b"", None, math.inf
    while time.monotonic() < deadline:
        if select.select([out], [], [], _LOOK_S)[0]:
            chunk = os.read(out, 1 << 16)
            if not chunk:
                break
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                _write((line if line.startswith(MARK.encode()) else prefix + line) + b"\n")
        elif status is None:
            pid, raw = os.waitpid(child, os.WNOHANG)
            if pid:
                status, deadline = raw, time.monotonic() + _DRAIN_S
    if pending:
        _write(prefix + pending + b"\n")
    if status is None:
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _write(line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        while line:
            line = line[os.write(1, line) :]


if __name__ == "__main__":
    main()
