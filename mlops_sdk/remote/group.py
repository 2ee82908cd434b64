"""One command on each of many machines; the first that fails ends all of them.

Each command runs under `mlops_sdk.remote.lifeline`, so ending one is closing its standard input, and a lost connection
ends it too. From the first failure to the last process gone: `settle_s` (for the others to say what happened to them)
+ 1.5 s (SIGTERM to SIGKILL) + a round trip, under 5 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import asyncssh

from mlops_sdk.remote.end import End
from mlops_sdk.remote.ssh import Connection

_HEARTBEAT_S = 5.0
_END_S = 6.0
_MAX_LINE = 1 << 20

OnLine = Callable[[int, str], None]
"""Called with the index of the command and one line of its output, without the line end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run on one machine. `argv` empty: only guard the name, end when the group ends.

    Attributes:
        connection: The machine.
        name: Name of the life line; one per job and machine.
        argv: The command; no secrets, others on the machine can read it.
        env: Additional environment; no secrets.
        python: Interpreter on the machine that has this library.
    """

    connection: Connection
    name: str
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    python: str = "/opt/image/bin/python"


async def run_group(
    commands: Sequence[Command], *, on_line: OnLine, abort: asyncio.Event | None = None, settle_s: float = 0.7
) -> list[End]:
    """Run all to their end. Never raises for what happens on the machines: the ends tell.

    An exception of `on_line` ends all and is raised.

    Args:
        commands: One per machine. Guards (without argv) end when the others have.
        on_line: Output, standard output and error alike, as it arrives.
        abort: Set by the caller to end all; set by us when the first command fails.
        settle_s: How long the others may still end by themselves after the first failure.
    """
    if not commands:
        return []
    abort = abort or asyncio.Event()
    closing = asyncio.Event()
    tasks = [asyncio.create_task(_run_one(i, command, on_line, abort, closing)) for i, command in enumerate(commands)]
    workers = [task for task, command in zip(tasks, commands, strict=True) if command.argv]
    failed = asyncio.create_task(abort.wait())
    finished = asyncio.create_task(asyncio.wait(workers))
    try:
        await asyncio.wait([finished, failed], return_when=asyncio.FIRST_COMPLETED)
        if abort.is_set():
            await asyncio.wait([finished], timeout=settle_s)
        closing.set()
        return list(await asyncio.gather(*tasks))
    except BaseException:
        closing.set()
        with contextlib.suppress(BaseException):
            await asyncio.shield(asyncio.wait(tasks, timeout=_END_S))
        raise
    finally:
        for task in (failed, finished, *tasks):
            task.cancel()


async def _run_one(index: int, command: Command, on_line: OnLine, abort: asyncio.Event, closing: asyncio.Event) -> End:
    end = await _run(index, command, on_line, abort, closing)
    if not end.ok and not (end.by_us and not command.argv):
        abort.set()
    return end


async def _run(index: int, command: Command, on_line: OnLine, abort: asyncio.Event, closing: asyncio.Event) -> End:
    argv = [command.python, "-m", "mlops_sdk.remote.lifeline", "--name", command.name, "--", *command.argv]
    env = [f"{key}={value}" for key, value in sorted(command.env.items())]
    try:
        process = await command.connection.raw.create_process(
            shlex.join(["env", *env, *argv]), encoding=None, stderr=asyncssh.STDOUT
        )
    except (asyncssh.Error, OSError) as error:
        return End(lost=str(error) or type(error).__name__)
    reader = asyncio.create_task(_read_lines(index, process, on_line))
    reader.add_done_callback(lambda task: abort.set() if not task.cancelled() and task.exception() else None)
    beat = asyncio.create_task(_heartbeat(process))
    done = asyncio.create_task(process.wait_closed())
    stop = asyncio.create_task(closing.wait())
    by_us = False
    try:
        await asyncio.wait([done, stop], return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            by_us = True
            with contextlib.suppress(OSError, asyncssh.Error):
                process.stdin.write_eof()
            await asyncio.wait([done], timeout=_END_S)
        await asyncio.wait([reader], timeout=1.0)
    finally:
        for task in (reader, beat, stop, done):
            task.cancel()
        process.close()
    if reader.done() and not reader.cancelled() and (error := reader.exception()):
        raise error
    return _end_of(process, command.connection, by_us=by_us)


def _end_of(process: asyncssh.SSHClientProcess[bytes], connection: Connection, *, by_us: bool) -> End:
    if process.exit_signal is not None:
        return End(signal=process.exit_signal[0], by_us=by_us)
    if process.exit_status is None:
        state = "no exit status came back" if connection.is_open() else "the connection broke"
        return End(lost=state, by_us=by_us)
    return End(status=process.exit_status, by_us=by_us)


async def _read_lines(index: int, process: asyncssh.SSHClientProcess[bytes], on_line: OnLine) -> None:
    pending = b""
    while True:
        try:
            chunk = await process.stdout.read(1 << 16)
        except (asyncssh.Error, OSError):
            chunk = b""
        *lines, pending = (pending + chunk).split(b"\n")
        if (not chunk and pending) or len(pending) > _MAX_LINE:
            lines, pending = [*lines, pending], b""
        for line in lines:
            on_line(index, line.decode(errors="replace").rstrip("\r"))
        if not chunk:
            return


async def _heartbeat(process: asyncssh.SSHClientProcess[bytes]) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            process.stdin.write(b".")
