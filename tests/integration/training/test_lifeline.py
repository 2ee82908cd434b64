"""Nothing of a command survives its life line: real processes on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_sdk.remote.lifeline import marked
from support import eventually

STUBBORN = "import os, signal, time; os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


@pytest.fixture
def name() -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    Path(f"/run/mlops/{name}.lock").unlink(missing_ok=True)


def start(name: str, *command: str, silence_s: float = 60.0) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "mlops_sdk.remote.lifeline", "--name", name, "--silence-s", str(silence_s)]
    return subprocess.Popen(
        [*argv, "--", *command] if command else argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_status_and_output_are_the_commands_own(name: str) -> None:
    line = start(name, "sh", "-c", "echo out; exit 5")
    assert line.stdout is not None
    assert line.stdout.read() == "out\n"  # not communicate(): that closes the line
    assert line.wait(20) == 5


def test_a_command_that_a_signal_ended_is_reported_as_such(name: str) -> None:
    line = start(name, "sh", "-c", "kill -9 $$")
    line.wait(20)
    assert line.returncode == -9


def test_a_command_that_does_not_exist_is_status_127(name: str) -> None:
    assert start(name, "no-such-command").wait(20) == 127


def test_closing_the_line_ends_even_what_has_its_own_session_and_ignores_sigterm(name: str) -> None:
    line = start(name, "sh", "-c", f'{sys.executable} -c "{STUBBORN}" & exec sleep 600')
    eventually(lambda: len(marked(name)) >= 2, within_s=10)
    began = time.monotonic()
    assert line.stdin is not None
    line.stdin.close()
    line.wait(20)
    assert marked(name) == set()
    assert time.monotonic() - began < 5
    assert line.returncode == -15


def test_what_the_command_left_behind_ends_with_it(name: str) -> None:
    line = start(name, "sh", "-c", f'{sys.executable} -c "{STUBBORN}" & sleep 0.5; exit 3')
    assert line.wait(20) == 3
    assert marked(name) == set()


def test_silence_ends_the_command_and_a_word_keeps_it_alive(name: str) -> None:
    line = start(name, "sleep", "600", silence_s=1.0)
    assert line.stdin is not None
    for _ in range(8):
        time.sleep(0.3)
        line.stdin.write(".")
        line.stdin.flush()
        assert line.poll() is None
    line.wait(20)
    assert marked(name) == set()


def test_the_next_one_ends_what_a_killed_one_left(name: str) -> None:
    first = start(name, "sh", "-c", f'{sys.executable} -c "{STUBBORN}"')
    eventually(lambda: len(marked(name)) >= 2, within_s=10)
    first.kill()
    first.wait()
    assert start(name, "true").wait(20) == 0
    assert marked(name) == set()


def test_a_second_one_waits_for_the_first(name: str) -> None:
    first = start(name, "sleep", "1")
    eventually(lambda: len(marked(name)) >= 1, within_s=10)
    began = time.monotonic()
    assert start(name, "true").wait(20) == 0
    assert first.poll() == 0
    assert time.monotonic() - began > 0.3


def test_a_guard_ends_what_others_started_for_the_same_job(name: str) -> None:
    guard = start(name)
    stray = subprocess.Popen(["sleep", "600"], env={"MLOPS_LIFELINE": name, "PATH": "/usr/bin:/bin"})
    eventually(lambda: marked(name) == {stray.pid}, within_s=10)
    assert guard.stdin is not None
    guard.stdin.close()
    assert guard.wait(20) == 0
    assert stray.wait(5) == -15
