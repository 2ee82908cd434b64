"""A rank's supervisor tells how its program ended: real processes on this machine, no launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from mlops_sdk.config import S3Settings
from mlops_sdk.training.jobfile import VARIABLE, FileRef, JobFile
from mlops_sdk.training.messages import Message, Progress, Raised, RankEnded, Started, decode

HEAD = "from mlops_sdk.training.worker import context\nimport os, signal, sys, time\nctx = context()\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    process: subprocess.Popen[str]

    def next_message(self, kind: type[Message]) -> Message:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = decode(line)
            if isinstance(message, kind):
                return message
        pytest.fail(f"no {kind}")

    def finish(self) -> tuple[list[Message], list[str]]:
        """All messages, and all other lines."""
        output = self.process.communicate(timeout=30)[0].splitlines()
        messages = [decode(line) for line in output]
        return [m for m in messages if m], [line for line, m in zip(output, messages, strict=True) if m is None]


Start = Callable[..., Rank]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def start(program: str, **variables: str) -> Rank:
        (tmp_path / "toy_program.py").write_text(HEAD + program)
        job = JobFile(
            run_id=uuid.UUID(int=7),
            run_key="aaaaaaaaaaaa",
            attempt=4,
            module="toy_program",
            args={"steps": 3},
            prefix="runs/aaaaaaaaaaaa",
            address="127.0.0.1",
            scratch=str(tmp_path),
            s3=S3Settings(endpoint="http://127.0.0.1:9", access_key_id="id", secret_access_key=SecretStr("secret")),
            bundle=FileRef(name="bundle.tar", key="bundles/x", sha256="0" * 64, size=1),
        )
        (tmp_path / "job.json").write_bytes(job.to_bytes())
        ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        return Rank(
            process=subprocess.Popen(
                [sys.executable, "-m", "mlops_sdk.training.worker"],
                env={
                    **os.environ,
                    **(variables or ranks),
                    VARIABLE: f"{tmp_path}/job.json",
                    "PYTHONPATH": str(tmp_path),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )

    return start


def test_the_program_knows_who_it_is_and_its_output_carries_its_rank(start: Start) -> None:
    rank = start("print(ctx.rank, ctx.world_size, ctx.attempt, ctx.args['steps'], os.environ['GLOO_SOCKET_IFNAME'])")
    messages, lines = rank.finish()
    assert lines == ["[rank 1] 1 2 4 3 lo"]
    assert rank.process.returncode == 0
    assert [type(m) for m in messages] == [Started, RankEnded]


def test_mpirun_names_the_ranks_in_its_own_words(start: Start) -> None:
    mpi = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    _, lines = start("print(ctx.rank, ctx.world_size, ctx.local_rank, os.environ['RANK'])", **mpi).finish()
    assert lines == ["[rank 3] 3 4 1 3"]


def test_an_exception_is_reported_with_its_words(start: Start) -> None:
    rank = start("raise ValueError('no such token')")
    messages, lines = rank.finish()
    assert rank.process.returncode == 1
    raised = next(m for m in messages if isinstance(m, Raised))
    assert (raised.rank, raised.exception, raised.message) == (1, "ValueError", "no such token")
    assert "toy_program.py" in raised.traceback
    assert not raised.retriable
    assert messages[-1] == RankEnded(rank=1, status=1, signal=0, asked=False)
    assert lines[-1] == "[rank 1] ValueError: no such token"


def test_an_outage_is_reported_as_retriable_with_its_next_step(start: Start) -> None:
    messages, _ = start("ctx.store.get('x')").finish()
    raised = next(m for m in messages if isinstance(m, Raised))
    assert raised.exception == "mlops_sdk.errors.ServiceUnavailable"
    assert raised.retriable
    assert "S3 endpoint" in raised.next_step


def test_what_is_no_exception_is_reported_too(start: Start) -> None:
    messages, _ = start("class Odd(BaseException): pass\nraise Odd('strange')").finish()
    assert next(m for m in messages if isinstance(m, Raised)).message == "strange"


def test_a_full_disk_says_how_full(start: Start) -> None:
    messages, _ = start("import errno; raise OSError(errno.ENOSPC, 'No space left on device')").finish()
    raised = next(m for m in messages if isinstance(m, Raised))
    assert "bytes free on" in raised.message
    assert "scratch" in raised.next_step


@pytest.mark.parametrize(
    ("program", "status", "signal_"),
    [("sys.exit(3)", 3, 0), ("os._exit(4)", 4, 0), ("os.kill(os.getpid(), 11)", 0, 11)],
)
def test_how_the_process_ended_is_told_apart(start: Start, program: str, status: int, signal_: int) -> None:
    rank = start(program)
    messages, _ = rank.finish()
    assert messages[-1] == RankEnded(rank=1, status=status, signal=signal_, asked=False)
    assert rank.process.returncode != 0


def test_killing_the_program_is_seen_at_once(start: Start) -> None:
    rank = start("time.sleep(600)")
    started = rank.next_message(Started)
    assert isinstance(started, Started)
    os.kill(started.pid, signal.SIGKILL)
    assert rank.next_message(RankEnded) == RankEnded(rank=1, status=0, signal=9, asked=False)
    assert rank.process.wait(10) == 128 + 9


def test_killing_the_supervisor_kills_the_program(start: Start) -> None:
    rank = start("time.sleep(600)")
    started = rank.next_message(Started)
    assert isinstance(started, Started)
    rank.process.kill()
    rank.process.wait()
    give_up = time.monotonic() + 5
    while Path(f"/proc/{started.pid}").exists():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_a_launcher_that_asks_to_stop_is_passed_on_and_noted(start: Start) -> None:
    rank = start("time.sleep(600)")
    rank.next_message(Started)
    rank.process.terminate()
    assert rank.next_message(RankEnded) == RankEnded(rank=1, status=0, signal=15, asked=True)


def test_a_helper_that_keeps_the_output_open_does_not_hold_the_rank(start: Start) -> None:
    began = time.monotonic()
    rank = start("import subprocess; subprocess.Popen(['sleep', '8']); print('done')")
    assert rank.process.wait(7) == 0
    assert time.monotonic() - began < 7


def test_only_rank_0_speaks_for_all(start: Start) -> None:
    program = "ctx.log_metrics(5, {'loss': 2.5}); ctx.report_result({'a': 1})"
    messages, _ = start(program).finish()
    assert not [m for m in messages if isinstance(m, Progress)]
    messages, _ = start("ctx.log_metrics(5, {'loss': 2})", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0").finish()
    assert Progress(rank=0, step=5, metrics={"loss": 2.0}) in messages
