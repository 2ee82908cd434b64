"""What a service of the stack is: what it needs, how it is made ready, started and probed. Plain data and callables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

# Two cores serve everything: a numeric library that starts a thread per core only makes the services fight.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


class State(StrEnum):
    """Where a service stands. HELD: not started, because it was asked to wait for a release."""

    HELD = "held"
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A process to start. `env` comes on top of a minimal environment and may hold secrets, `argv` never."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)


class NotReady(Exception):
    """Raised by a probe: the service does not answer as it should, yet."""


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service, or one step (a service without `command` is ready when its `prepare` is done).

    All callables block and run in a thread; `prepare` and `finish` are idempotent.

    Attributes:
        name: Names the log file too.
        needs: Services that must be ready before `prepare` runs.
        heavy: Counts against the two heavy starts that may run at once.
        address: What people read: where it listens.
        prepare: Files and databases, before the process starts.
        command: The process, asked for after `prepare`.
        probe: Raises `NotReady` until the service answers.
        finish: What can only be made once it answers; the service is ready after it.
        alive: For a step: what it made still stands. Looked at every two seconds; if not, the stack ends.
        undo: What takes back, at the end of the stack, what `prepare` made outside the state directory.
        start_timeout_s: From process start to ready.
        stop_timeout_s: From SIGTERM to SIGKILL.
    """

    name: str
    needs: tuple[str, ...] = ()
    heavy: bool = False
    address: str = ""
    prepare: Callable[[], None] = _nothing
    command: Callable[[], Command] | None = None
    probe: Callable[[], None] = _nothing
    finish: Callable[[], None] = _nothing
    alive: Callable[[], bool] | None = None
    undo: Callable[[], None] = _nothing
    start_timeout_s: float = 90.0
    stop_timeout_s: float = 10.0


@dataclass(slots=True, kw_only=True)
class Unit:
    """A service at run time, as the supervisor knows it and `status` shows it."""

    service: Service
    log: Path
    state: State = State.WAITING
    pid: int = 0
    restarts: int = 0
    seconds: float = 0.0
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """The line of this service in status.json."""
        return {
            "name": self.service.name,
            "state": str(self.state),
            "pid": self.pid,
            "restarts": self.restarts,
            "seconds": round(self.seconds, 1),
            "address": self.service.address,
            "log": str(self.log),
            "detail": self.detail,
        }


def base_environment(home: Path) -> dict[str, str]:
    """The environment of every service: nothing from the caller but PATH and locale, so that no secret leaks in."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        **ONE_THREAD,
    }


def in_start_order(services: tuple[Service, ...]) -> tuple[Service, ...]:
    """The services so that each comes after what it needs.

    Raises:
        ValueError: a need that is not among them, or a circle.
    """
    by_name = {service.name: service for service in services}
    ordered: dict[str, Service] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in ordered:
            return
        if name in path or name not in by_name:
            raise ValueError(f"services cannot be ordered: {' -> '.join((*path, name))}")
        for need in by_name[name].needs:
            visit(need, (*path, name))
        ordered[name] = by_name[name]

    for service in services:
        visit(service.name, ())
    return tuple(ordered.values())


def with_dependants(services: tuple[Service, ...], name: str) -> tuple[str, ...]:
    """The named service and everything that needs it, directly or not."""
    found = [service.name for service in in_start_order(services) if service.name == name]
    if not found:
        raise ValueError(f"no service {name!r}; there are {', '.join(service.name for service in services)}")
    for service in in_start_order(services):
        if not set(found).isdisjoint(service.needs):
            found.append(service.name)
    return tuple(found)


def with_needs(services: tuple[Service, ...], only: tuple[str, ...]) -> tuple[Service, ...]:
    """The named services and everything they need, directly or not."""
    by_name = {service.name: service for service in services}
    wanted: set[str] = set()
    open_names = list(only)
    while open_names:
        name = open_names.pop()
        if name not in by_name:
            raise ValueError(f"no service {name!r}; there are {', '.join(by_name)}")
        if name not in wanted:
            wanted.add(name)
            open_names.extend(by_name[name].needs)
    return tuple(service for service in services if service.name in wanted)
