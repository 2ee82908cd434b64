"""However a stack ends, nothing of it is left: no process, no interface, no lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_sdk.local import control
from mlops_sdk.local.isolation import is_locked, members
from mlops_sdk.local.layout import Layout
from mlops_sdk.local.process import StackProcess
from support import eventually

ONLY = ("network", "ceph-mon")  # an interface, and a daemon that is not written in Python
GONE_WITHIN_S = 10.0


def ctrl_c(stack: StackProcess) -> None:
    os.killpg(stack.pid, signal.SIGINT)  # what a terminal does


def down(stack: StackProcess) -> None:
    code = f"from mlops_sdk.cli.local import local; local(['down', '--state-dir', {str(stack.layout.state_dir)!r}])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "stopped"


def sigterm(stack: StackProcess) -> None:
    os.kill(stack.pid, signal.SIGTERM)


def sighup(stack: StackProcess) -> None:
    os.killpg(stack.pid, signal.SIGHUP)  # what a closing terminal does


def kill_outer(stack: StackProcess) -> None:
    os.kill(stack.pid, signal.SIGKILL)


def kill_init(stack: StackProcess) -> None:
    os.kill(members(stack.pid)[0], signal.SIGKILL)


def kill_supervisor(stack: StackProcess) -> None:
    init = members(stack.pid)[0]
    (supervisor,) = Path(f"/proc/{init}/task/{init}/children").read_text().split()
    os.kill(int(supervisor), signal.SIGKILL)


@pytest.mark.parametrize("end", [ctrl_c, down, sigterm, sighup, kill_outer, kill_init, kill_supervisor])
def test_an_ended_stack_leaves_nothing(state_dir: Path, end: Callable[[StackProcess], None]) -> None:
    with StackProcess(state_dir, only=ONLY) as stack:
        stack.wait_ready(timeout_s=60)
        inside = members(stack.pid)
        assert len(inside) >= 4  # init, supervisor, network holder, monitor
        assert interfaces(stack.layout) != []

        end(stack)

        assert_gone(stack.layout, inside)


def test_a_stack_ends_with_the_program_that_started_it(state_dir: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from mlops_sdk.local.process import StackProcess;"
        f"stack = StackProcess(Path({str(state_dir)!r}), only={ONLY!r}); stack.wait_ready(timeout_s=60);"
        "print(stack.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        outer = int(parent.stdout.readline())
        inside = members(outer)
        parent.kill()

    assert_gone(Layout.at(state_dir), [outer, *inside])


def test_a_start_that_was_killed_half_way_is_repaired_by_the_next(state_dir: Path) -> None:
    for after_s in (0.8, 2.0, 3.5):  # in the monitor's making, the disk's making, the gateway's first start
        stack = StackProcess(state_dir, only=("ceph-rgw",))
        time.sleep(after_s)
        os.kill(stack.pid, signal.SIGKILL)
        stack.stop()

    with StackProcess(state_dir, only=("ceph-rgw",)) as stack:
        assert stack.wait_ready(timeout_s=90).ready


@pytest.mark.slow
def test_a_monitor_that_crashed_is_in_nobodys_way_now_and_at_the_next_start(state_dir: Path) -> None:
    ceph = state_dir / "ceph"
    with StackProcess(state_dir, only=("ceph-osd",)) as stack:
        stack.wait_ready(timeout_s=60)
        (monitor,) = (pid for pid in members(stack.pid) if Path(f"/proc/{pid}/comm").read_text() == "ceph-mon\n")
        os.kill(monitor, signal.SIGSEGV)
        eventually(lambda: restarted(stack.layout, "ceph-mon"), within_s=30, what="the monitor is there again")
        assert any((ceph / "crash").iterdir())  # it has told of its end
        assert (ceph / "run" / "osd.0.asok").is_socket()  # by which the other one is asked how it is

    with StackProcess(state_dir, only=("ceph-osd",)) as stack:
        assert stack.wait_ready(timeout_s=60).ready


def restarted(layout: Layout, name: str) -> bool:
    return any(s.name == name and s.restarts == 1 and s.state == "ready" for s in control.status(layout).services)


def assert_gone(layout: Layout, inside: list[int]) -> None:
    deadline = time.monotonic() + GONE_WITHIN_S
    while time.monotonic() < deadline and (is_locked(layout) or interfaces(layout) or alive(inside)):
        time.sleep(0.05)
    assert (is_locked(layout), interfaces(layout), alive(inside)) == (False, [], [])
    assert not control.status(layout).running


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def interfaces(layout: Layout) -> list[str]:
    return [path.name for path in Path("/sys/class/net").iterdir() if layout.tag in path.name]
