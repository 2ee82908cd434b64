"""A running stack seen from outside: its status, its end, and single services stopped and started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_sdk.errors import StackError
from mlops_sdk.local.isolation import depth, holder, inner_pid, is_locked, members
from mlops_sdk.local.layout import Layout

_STOP_TIMEOUT_S = 45.0
_ORDER_TIMEOUT_S = 300.0
_FINE = frozenset({"ready", "held"})
_STACK_DEPTH = 2  # PID namespaces: this computer's, the stack's


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One service of a stack. `pid` is numbered as this process sees it; 0: no process."""

    name: str
    state: str
    pid: int
    restarts: int
    seconds: float
    address: str
    log: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StackStatus:
    """A stack as a whole. `ready` means running and every service ready, but for those held from the start."""

    running: bool
    ready: bool
    pid: int
    ready_s: float | None
    error: str
    services: tuple[ServiceStatus, ...]


def status(layout: Layout) -> StackStatus:
    """What runs in a state directory, by its lock and by what its supervisor last wrote."""
    running = is_locked(layout)
    said = _last_word(layout)
    pid = holder(layout) if running else 0
    outside = {inner_pid(member): member for member in members(pid)} if running else {}
    services = tuple(_service(line, outside, running=running) for line in said.get("services", []))
    return StackStatus(
        running=running,
        ready=running and bool(services) and all(service.state in _FINE for service in services),
        pid=pid,
        ready_s=said.get("ready_s"),
        error=str(said.get("error", "")),
        services=services,
    )


def stop(layout: Layout, *, timeout_s: float = _STOP_TIMEOUT_S) -> bool:
    """End a stack: ask, wait, then kill. False when none was running.

    Raises:
        StackError: it is still there after the kill.
    """
    if not is_locked(layout):
        return False
    outer = holder(layout)
    inside = members(outer)
    _signal(inside[0] if inside else outer, signal.SIGTERM)
    if _wait_until_free(layout, timeout_s):
        return True
    _signal(outer, signal.SIGKILL)
    if not _wait_until_free(layout, 10.0):
        raise StackError(
            f"the stack in {str(layout.state_dir)!r} did not end",
            seen=f"process {outer} still holds {layout.lock}",
            next_step="end that process",
        )
    return True


def machine_processes(layout: Layout) -> list[int]:
    """The processes on the machines behind BMCs: what the farm runs in PID namespaces below the stack's own.

    Numbered as this process sees them.
    """
    farm = next((service.pid for service in status(layout).services if service.name == "farm"), 0)
    return [pid for pid in members(farm) if depth(pid) > _STACK_DEPTH] if farm else []


def leftovers(layout: Layout, processes: Sequence[int]) -> list[str]:
    """What is left of a stack that ended: its lock, its interfaces, and those of `processes` that still live."""
    links = subprocess.run(["ip", "-json", "link"], check=True, capture_output=True, text=True).stdout
    found = [f"lock {layout.lock}"] if is_locked(layout) else []
    found += [f"interface {link['ifname']}" for link in json.loads(links) if layout.tag in link["ifname"]]
    return found + [f"process {pid}" for pid in processes if Path(f"/proc/{pid}").exists()]


def hold(layout: Layout, service: str) -> None:
    """Stop one service of a running stack and leave it stopped."""
    _order(layout, "hold", service)


def release(layout: Layout, service: str) -> None:
    """Start a held service, and those that were held because they need it; returns when they are ready."""
    _order(layout, "release", service)


@contextmanager
def held(layout: Layout, service: str) -> Generator[None]:
    """Within the block, the service is down.

    Example:
        >>> with held(layout, "mlflow"):  # doctest: +SKIP
        ...     register_model()  # meets a refused connection
    """
    hold(layout, service)
    try:
        yield
    finally:
        release(layout, service)


def _order(layout: Layout, order: str, service: str) -> None:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ORDER_TIMEOUT_S)
            connection.connect(str(layout.control_socket))
            connection.sendall(json.dumps({"order": order, "service": service}).encode() + b"\n")
            reply = json.loads(connection.makefile().readline() or '{"error": "no answer"}')
    except OSError as error:
        raise StackError(
            f"the stack in {str(layout.state_dir)!r} takes no orders", seen=str(error), next_step="is it running?"
        ) from error
    if reply["error"]:
        raise StackError(f"could not {order} service {service!r}", seen=reply["error"], next_step="see its log")


def _service(line: dict[str, Any], outside: dict[int, int], *, running: bool) -> ServiceStatus:
    pid = outside.get(int(line["pid"]), 0)
    state = line["state"] if running else "stopped"
    if state == "ready" and line["pid"] and not pid:
        state = "restarting"  # it has just died, and the supervisor has not written that down yet
    known: dict[str, Any] = {**line, "pid": pid, "state": state}
    return ServiceStatus(**known)


def _last_word(layout: Layout) -> dict[str, Any]:
    try:
        return json.loads(layout.status_json.read_text())
    except (OSError, ValueError):
        return {}


def _wait_until_free(layout: Layout, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while is_locked(layout):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
