"""One PID and mount namespace around the whole stack, so that nothing outlives it.

The command that the user started becomes `unshare`; below it the first process of a new PID namespace does nothing but
reap and pass signals on, and its one child supervises. Whichever of the three dies, by whatever signal, the kernel
ends everything in the namespace.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mlops_sdk.errors import StackError
from mlops_sdk.local.layout import Layout

LOCK_VARIABLE = "MLOPS_STACK_LOCK_FD"


def take_lock(layout: Layout) -> int:
    """Become the one process that runs this state directory.

    Returns:
        A file descriptor that holds the lock for as long as it, or a copy in a child, stays open.

    Raises:
        StackError: names the process that runs it already.
    """
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StackError(
            f"the state directory {str(layout.state_dir)!r} already runs a stack",
            seen=f"held by process {holder(layout) or 'unknown'}",
            next_step=f"use that one, or stop it: mlops local down --state-dir {layout.state_dir}",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "since": time.time()}).encode(), 0)
    return descriptor


def is_locked(layout: Layout) -> bool:
    """Some process runs this state directory right now."""
    try:
        descriptor = os.open(layout.lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(layout: Layout) -> int:
    """The process id of who runs, or last ran, this state directory; 0 when nobody did."""
    try:
        return int(json.loads(layout.lock.read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return 0


def enter_namespace(lock: int, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by one that runs ``python -m mlops_sdk.local`` with `arguments` in namespaces of its own."""
    os.set_inheritable(lock, True)
    os.environ[LOCK_VARIABLE] = str(lock)
    inner = [sys.executable, "-m", "mlops_sdk.local", *arguments]
    flags = ["--pid", "--mount", "--mount-proc", "--fork", "--kill-child=SIGKILL"]
    os.execvp("unshare", ["unshare", *flags, *inner])  # noqa: S606 - argv list; replacing this process is the point


def become_init() -> None:
    """Fork: the child returns, this process stays behind as the namespace's first one.

    It reaps every orphan, passes SIGTERM and SIGHUP on to the child, and ends with the child's status; by that the
    kernel ends whatever is left. A Ctrl-C reaches the child directly, from the terminal.
    """
    if os.getpid() != 1:
        raise StackError("this program is started by `mlops local up`", next_step="use that command")
    child = os.fork()
    if child == 0:
        os.set_inheritable(int(os.environ.pop(LOCK_VARIABLE)), False)
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: os.kill(child, number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def members(outer_pid: int) -> list[int]:
    """The processes below `unshare`, as this namespace numbers them; its direct child (the namespace's first) leads."""
    first = _children(outer_pid)
    if not first:
        return []
    namespace = _pid_namespace(first[0])
    others = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and int(p.name) != first[0]]
    return [first[0], *(pid for pid in others if _pid_namespace(pid) == namespace)]


def inner_pid(pid: int) -> int:
    """The number by which a process knows itself in its innermost PID namespace; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[-1]) for line in status.splitlines() if line.startswith("NSpid:")), 0)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _pid_namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""
