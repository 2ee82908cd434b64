"""Starts the services in the order of their needs, watches them, restarts what dies, and ends them all.

A service that dies before it is ready ends the stack, with the last lines of its log in the error. One that dies later
is restarted after a pause that doubles (0.5 s to 8 s); every service keeps its state on disk, so a restart is safe. One
that dies five times within a minute ends the stack. So does the loss of the machines' network, which is no process that
could be restarted under those who use it. One that lives but fails three probes in a row is shown as unhealthy.

What a dead service has left running is killed before it is started again. A service may be held from the start, and
with it all that need it; they are brought up when it is released.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mlops_sdk.errors import MlopsError, StackError
from mlops_sdk.local.service import Command, NotReady, Service, State, Unit, in_start_order, with_dependants

HEAVY_AT_ONCE = 2
_PROBE_EVERY_S = 0.1
_LOOK_EVERY_S = 2.0
_PROBE_AGAIN_EVERY_S, _MISSES = 10.0, 3
_DEATHS, _WITHIN_S = 5, 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_TAIL_LINES = 15
_SESSION_FIELD = 3  # of /proc/PID/stat, behind the command's name


class Supervisor:
    """Runs the services of one stack. Lives in one event loop; `run` returns when all services have ended.

    Args:
        services: What to run.
        log_of: The log file of each service.
        environment: Common to all processes.
        changed: Called after each change of a unit.
        hold: These, and what needs them, are not started before they are released.

    Raises:
        ValueError: no such service.
    """

    def __init__(
        self,
        services: tuple[Service, ...],
        *,
        log_of: Callable[[str], Path],
        environment: Mapping[str, str],
        changed: Callable[[Unit], None],
        hold: Iterable[str] = (),
    ) -> None:
        self.units = {s.name: Unit(service=s, log=log_of(s.name)) for s in in_start_order(services)}
        self._environment = dict(environment)
        self._changed = changed
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ready = {name: asyncio.Event() for name in self.units}
        self._heavy = asyncio.Semaphore(HEAVY_AT_ONCE)
        self._held: set[str] = set()
        self._resting = {name: asyncio.Event() for name in self.units}
        self._released = {name: asyncio.Event() for name in self.units}
        self._held_from_start = {name: with_dependants(services, name) for name in hold}
        self._may_start = {name: asyncio.Event() for name in self.units}
        for name in self.units:
            self._allow(name)

    @property
    def ready(self) -> bool:
        """Every service is ready, but for those that are held from the start."""
        return all(unit.state in {State.READY, State.HELD} for unit in self.units.values())

    async def run(self, stop: asyncio.Event, *, all_ready: Callable[[], None]) -> None:
        """Bring everything up, keep it up until `stop` is set, and end it.

        Raises:
            StackError: a service did not start, or keeps dying. Everything has been ended by then.
        """
        tasks = [asyncio.create_task(self._keep(unit)) for unit in self.units.values()]
        tasks.append(asyncio.create_task(self._announce(all_ready)))
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
                tasks = [task for task in tasks if task not in done]
                for task in done:
                    task.result()
        finally:
            stopping.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._stop_all()

    async def hold(self, name: str) -> None:
        """Stop one service and leave it stopped until `release`.

        Raises:
            ValueError: it is not running, or there is no such service with a process.
        """
        unit = self.units.get(name)
        if unit is None or unit.service.command is None:
            raise ValueError(f"there is no service {name!r} with a process")
        if unit.state not in {State.READY, State.UNHEALTHY, State.RESTARTING}:
            raise ValueError(f"it is {unit.state}")
        self._held.add(name)
        await self._stop(unit)
        await self._resting[name].wait()

    async def release(self, name: str) -> None:
        """Start a held service and wait until it is ready, and with it those that were held because they need it."""
        if name in self._held_from_start:
            await self._release_first(name)
            return
        if name not in self._held:
            raise ValueError(f"service {name!r} is not held")
        self._held.discard(name)
        self._released[name].set()
        await self._ready[name].wait()

    async def _release_first(self, name: str) -> None:
        freed = [other for other in self._held_from_start.pop(name) if self._allow(other)]
        for other in freed:
            await self._ready[other].wait()

    def _allow(self, name: str) -> bool:
        """Let a service start, unless it is held for some reason (still)."""
        if any(name in held for held in self._held_from_start.values()):
            self.units[name].state = State.HELD
            return False
        if self.units[name].state is State.HELD:
            self._set(self.units[name], State.WAITING)
        self._may_start[name].set()
        return True

    async def _announce(self, all_ready: Callable[[], None]) -> None:
        for name, event in self._ready.items():
            if self._may_start[name].is_set():
                await event.wait()
        all_ready()

    async def _keep(self, unit: Unit) -> None:
        await self._may_start[unit.service.name].wait()
        for need in unit.service.needs:
            await self._ready[need].wait()
        if unit.service.heavy:
            async with self._heavy:
                await self._bring_up(unit)
        else:
            await self._bring_up(unit)
        if unit.service.command is None:
            await self._watch_step(unit)
            return
        deaths: deque[float] = deque(maxlen=_DEATHS)
        while True:
            code = await self._watch_process(unit)
            await asyncio.to_thread(_kill_session, self._processes[unit.service.name].pid)
            self._ready[unit.service.name].clear()
            if unit.service.name not in self._held:
                await self._pause_before_restart(unit, deaths, code)
                unit.restarts += 1
            await self._stay_held(unit)
            await self._bring_up_again(unit)

    async def _watch_process(self, unit: Unit) -> int:
        """Wait for the exit code; meanwhile, say when the service does not answer, which alone ends nothing."""
        exiting = asyncio.create_task(_exit_of(self._processes[unit.service.name]))
        misses = 0
        try:
            while not exiting.done():
                await asyncio.wait({exiting}, timeout=_PROBE_AGAIN_EVERY_S)
                if exiting.done() or unit.state not in {State.READY, State.UNHEALTHY}:
                    continue
                try:
                    await asyncio.to_thread(unit.service.probe)
                except NotReady as error:
                    misses += 1
                    if misses >= _MISSES:
                        self._set(unit, State.UNHEALTHY, str(error))
                else:
                    misses = 0
                    if unit.state is State.UNHEALTHY:
                        self._set(unit, State.READY)
            return exiting.result()
        finally:
            exiting.cancel()

    async def _watch_step(self, unit: Unit) -> None:
        """A step cannot be restarted under the services that use what it made."""
        while unit.service.alive is not None:
            if not unit.service.alive():
                self._set(unit, State.FAILED, "gone")
                raise _dead(unit, "what it made is gone")
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _bring_up_again(self, unit: Unit) -> None:
        """A failure here is one more death, which the caller counts; only a first start has no second chance."""
        try:
            await self._bring_up(unit)
        except MlopsError:
            await self._end(unit)

    async def _stay_held(self, unit: Unit) -> None:
        name = unit.service.name
        while name in self._held:
            self._set(unit, State.STOPPED, "stopped on request", pid=0)
            self._released[name].clear()
            self._resting[name].set()
            await self._released[name].wait()
        self._resting[name].clear()

    async def _pause_before_restart(self, unit: Unit, deaths: deque[float], code: int) -> None:
        why = unit.detail if unit.state is State.FAILED else _exit_text(code)
        now = time.monotonic()
        recent = [death for death in deaths if now - death < _WITHIN_S]
        deaths.append(now)
        if len(recent) >= _DEATHS - 1:
            self._set(unit, State.FAILED, why)
            raise _dead(unit, f"it died {_DEATHS} times within {_WITHIN_S:.0f} s, last: {why}")
        self._set(unit, State.RESTARTING, why, pid=0)
        await asyncio.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** len(recent)))

    async def _bring_up(self, unit: Unit) -> None:
        started = time.monotonic()
        if unit.state is not State.RESTARTING:
            self._set(unit, State.STARTING)
        try:
            await asyncio.to_thread(unit.service.prepare)
            if unit.service.command is not None:
                command = await asyncio.to_thread(unit.service.command)
                self._processes[unit.service.name] = self._spawn(unit, command)
                await self._until_it_answers(unit, time.monotonic() + unit.service.start_timeout_s)
            await asyncio.to_thread(unit.service.finish)
        except MlopsError as error:
            self._set(unit, State.FAILED, str(error))
            raise
        except Exception as error:  # whatever a service's libraries raise, the reader wants its name and log
            self._set(unit, State.FAILED, str(error))
            raise _dead(unit, f"{type(error).__name__}: {error}") from error
        unit.seconds = time.monotonic() - started
        self._set(unit, State.READY)
        self._ready[unit.service.name].set()

    async def _until_it_answers(self, unit: Unit, deadline: float) -> None:
        process = self._processes[unit.service.name]
        last = ""
        while time.monotonic() < deadline:
            if process.poll() is not None:
                self._set(unit, State.FAILED, _exit_text(process.returncode))
                raise _dead(unit, _exit_text(process.returncode))
            try:
                await asyncio.to_thread(unit.service.probe)
            except NotReady as error:
                last = str(error)
                await asyncio.sleep(_PROBE_EVERY_S)
            else:
                return
        self._set(unit, State.FAILED, f"not ready: {last}")
        raise _dead(unit, f"not ready after {unit.service.start_timeout_s:.0f} s: {last}")

    def _spawn(self, unit: Unit, command: Command) -> subprocess.Popen[bytes]:
        with unit.log.open("ab") as log:
            process = subprocess.Popen(
                command.argv,
                env={**self._environment, **command.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        unit.pid = process.pid
        self._changed(unit)
        return process

    async def _stop_all(self) -> None:
        """End the services, each after those that need it."""
        waiting = dict(reversed(self.units.items()))
        stopped = {name: asyncio.Event() for name in waiting}

        async def after_dependants(unit: Unit) -> None:
            for other in waiting.values():
                if unit.service.name in other.service.needs:
                    await stopped[other.service.name].wait()
            await self._stop(unit)
            await asyncio.to_thread(unit.service.undo)
            if unit.state is State.READY:
                self._set(unit, State.STOPPED)
            stopped[unit.service.name].set()

        await asyncio.gather(*(after_dependants(unit) for unit in waiting.values()))

    async def _stop(self, unit: Unit) -> None:
        self._ready[unit.service.name].clear()
        await self._end(unit)
        if unit.state is not State.FAILED and unit.service.command is not None:
            self._set(unit, State.STOPPED, pid=0)

    async def _end(self, unit: Unit) -> None:
        process = self._processes.get(unit.service.name)
        if process is None:
            return
        _signal_group(process, signal.SIGTERM)
        try:
            await asyncio.wait_for(_exit_of(process), unit.service.stop_timeout_s)
        except TimeoutError:
            _signal_group(process, signal.SIGKILL)
            await _exit_of(process)
        await asyncio.to_thread(_kill_session, process.pid)

    def _set(self, unit: Unit, state: State, detail: str = "", *, pid: int | None = None) -> None:
        unit.state, unit.detail = state, detail
        unit.pid = unit.pid if pid is None else pid
        self._changed(unit)


async def _exit_of(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process, without a thread or a poll: a pidfd becomes readable when it ends."""
    if process.poll() is not None:
        return process.returncode
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    descriptor = os.pidfd_open(process.pid)
    try:
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _kill_session(leader: int) -> None:
    """End what a service that is dead has left running: whatever is in its session, in whichever process group."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[_SESSION_FIELD]) == leader:
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:  # it ended meanwhile
            continue


def _exit_text(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def _dead(unit: Unit, seen: str) -> StackError:
    return StackError(
        f"service {unit.service.name!r} of the embedded stack is not up",
        seen=f"{seen}\n{tail(unit.log)}",
        next_step=f"see {unit.log}",
    )


def tail(path: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log file, indented."""
    try:
        found = path.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        found = []
    return "\n".join(f"    {line}" for line in found) or "    (the log is empty)"
