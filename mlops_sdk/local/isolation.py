"""One PID and mount namespace around the whole stack, so that nothing outlives it.

Three processes stand one above the other: the command that the user started, which waits and passes signals on; the
first process of a new PID namespace, which reaps, and passes signals on; and the supervisor. Whichever of them dies, by
whatever signal, the kernel ends everything in the namespace: the second is killed when the first dies, and the first
process of a namespace takes all others with it.
"""

from __future__ import annotations

import ctypes
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

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000
_PR_SET_PDEATHSIG = 1
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_MS_HARDENED = 0x2 | 0x4 | 0x8  # nosuid, nodev, noexec
_NAMED_NETWORKS = Path("/run/netns")


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
    """Run ``python -m mlops_sdk.local`` with `arguments` in namespaces of its own, and exit with its status."""
    os.set_inheritable(lock, True)
    os.environ[LOCK_VARIABLE] = str(lock)
    _call("unshare", _CLONE_NEWPID)  # of the children, not of this process
    child = os.fork()
    if child == 0:
        _become_first(arguments)
    _stay_behind(child)


def _become_first(arguments: Sequence[str]) -> NoReturn:
    _call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL))
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    _call("mount", b"proc", b"/proc", b"proc", _MS_HARDENED, None)
    # What a service names in /run/netns goes with the stack, because nobody else sees it.
    _NAMED_NETWORKS.mkdir(exist_ok=True)
    _call("mount", b"tmpfs", str(_NAMED_NETWORKS).encode(), b"tmpfs", _MS_HARDENED, None)
    inner = [sys.executable, "-m", "mlops_sdk.local", *arguments]
    os.execv(sys.executable, inner)  # noqa: S606 - an argv list; this process is replaced


def _call(name: str, *arguments: int | bytes | None) -> None:
    """Call the C library; Python 3.11 has no wrappers for these."""
    if getattr(_LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise StackError(
            "the stack's namespaces could not be made",
            seen=f"{name}: {os.strerror(number)}",
            next_step="run as root, on a kernel with PID and mount namespaces",
        )


def _stay_behind(child: int) -> NoReturn:
    """Pass SIGTERM and SIGHUP on to the child, wait for it, and exit as it did.

    A Ctrl-C reaches the supervisor directly, from the terminal.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: os.kill(child, number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def become_init() -> None:
    """Fork: the child returns, this process stays behind as the namespace's first one.

    It reaps every orphan, passes SIGTERM and SIGHUP on to the child, and ends with the child's status; by that the
    kernel ends whatever is left.
    """
    if os.getpid() != 1:
        raise StackError("this program is started by `mlops local up`", next_step="use that command")
    child = os.fork()
    if child == 0:
        os.set_inheritable(int(os.environ.pop(LOCK_VARIABLE)), False)
        return
    _stay_behind(child)


def members(outer_pid: int) -> list[int]:
    """The processes of a stack below its outermost one, as we number them; parents come before their children.

    What is orphaned inside is adopted by the first process of the namespace, so the tree holds everything, machines
    with PID namespaces of their own included.
    """
    children: dict[int, list[int]] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            children.setdefault(_parent(process), []).append(int(process.name))
    found: list[int] = []
    waiting = [outer_pid]
    while waiting:
        below = children.get(waiting.pop(0), [])
        found += below
        waiting += below
    return found


def inner_pid(pid: int) -> int:
    """The number by which the stack's namespace knows a process; 0 when it is gone, or not in such a namespace."""
    numbers = _numbers(pid)
    return numbers[1] if len(numbers) > 1 else 0


def depth(pid: int) -> int:
    """In how many nested PID namespaces a process is, this computer's own included; 0 when it is gone."""
    return len(_numbers(pid))


def _numbers(pid: int) -> list[int]:
    """By which number each PID namespace, from the outermost one inwards, knows a process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return []
    line = next((line for line in status.splitlines() if line.startswith("NSpid:")), "")
    return [int(number) for number in line.split()[1:]]


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
