"""Runs on a machine: one command, and nothing of it survives the connection that started it.

    python -m mlops_sdk.remote.lifeline --name NAME [--silence-s S] -- COMMAND...
    python -m mlops_sdk.remote.lifeline --name NAME [--silence-s S]            (guard: no command of its own)

Standard input is the life line: whoever started us writes a byte now and then. When it closes, or stays silent for
`--silence-s`, everything ends: SIGTERM, 1.5 s later SIGKILL. "Everything" is found in two ways, because launchers
put their workers into sessions of their own: by descent (we are the sub-reaper of all orphans) and by a mark in the
environment (`MLOPS_LIFELINE=NAME`), which also catches what another daemon started for the same job. At most one life
line of a name runs on a machine; a later one waits for the lock and, unless it only guards, sweeps what an earlier one
may have left.

Exit: the command's own status, or its own signal. 200: the lock stayed taken. Standard library only, Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

MARK = "MLOPS_LIFELINE"
LOCKED = 200
_TERM_GRACE_S = 1.5
_LOCK_WAIT_S = 20.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command on the life line; does not return."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    if not _take_lock(options.name):
        sys.stderr.write(f"lifeline: another one named {options.name!r} did not end within {_LOCK_WAIT_S:g} s\n")
        sys.exit(LOCKED)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if not options.command:
        _watch(None, options.silence_s)
        end_everything(options.name)
        sys.exit(0)
    end_everything(options.name)
    os.environ[MARK] = options.name
    status = _watch(_start(options.command), options.silence_s)
    end_everything(options.name)
    _exit_like(status)


def marked(name: str) -> set[int]:
    """Processes, other than us, that carry the mark of this name in their environment."""
    wanted = f"{MARK}={name}".encode()
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found


def end_everything(name: str, grace_s: float = _TERM_GRACE_S) -> None:
    """SIGTERM to all our descendants and to all marked processes, SIGKILL to what is left after `grace_s`."""
    started = time.monotonic()
    told: set[int] = set()
    while True:
        _reap()
        alive = _alive(_descendants(os.getpid()) | marked(name))
        if not alive:
            return
        late = time.monotonic() - started > grace_s
        for pid in alive if late else alive - told:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        told |= alive
        time.sleep(0.05)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lifeline")
    parser.add_argument("--name", required=True)
    parser.add_argument("--silence-s", type=float, default=60.0)
    parser.add_argument("command", nargs="*")
    return parser.parse_args(argv)


def _take_lock(name: str) -> bool:
    """Hold the machine's one lock of this name until we exit."""
    directory = Path("/run/mlops")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                return False
            time.sleep(0.1)
        else:
            return True


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - single-threaded here
        )
    except OSError as error:
        sys.stderr.write(f"lifeline: cannot start {command[0]!r}: {error}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _watch(child: subprocess.Popen[bytes] | None, silence_s: float) -> int:
    """Wait until the child ends or the line breaks; the child's wait status, or SIGTERM for a broken line."""
    heard = time.monotonic()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, _only_wake)
    signal.set_wakeup_fd(wake_write)
    ended_by_request = [False]

    def on_stop(*_: object) -> None:
        ended_by_request[0] = True

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, on_stop)
    while True:
        if child is not None and child.poll() is not None:
            return child.returncode
        ready, _, _ = select.select([0, wake_read], [], [], max(0.0, min(1.0, heard + silence_s - time.monotonic())))
        if wake_read in ready:
            os.read(wake_read, 512)
        if 0 in ready:
            if not os.read(0, 4096):
                return -signal.SIGTERM
            heard = time.monotonic()
        if ended_by_request[0] or time.monotonic() - heard > silence_s:
            return -signal.SIGTERM


def _only_wake(_number: int, _frame: object) -> None:
    """The wake-up descriptor does the work; without a handler it would not be written to."""


def _descendants(root: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), []):
            found.add(pid)
            waiting.append(pid)
    return found


def _alive(pids: set[int]) -> set[int]:
    """Without zombies: those are somebody else's to reap."""
    living: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}:
                living.add(pid)
    return living


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _exit_like(status: int) -> NoReturn:
    """End as the command ended: same status, or the same signal (without a core file)."""
    sys.stdout.flush()
    if status >= 0:
        sys.exit(status)
    signal.set_wakeup_fd(-1)
    if -status not in {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(-status, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError):
        import resource  # noqa: PLC0415 - only on this path

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), -status)
    sys.exit(128 - status)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    main()
