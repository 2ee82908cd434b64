"""The supervisor with real, tiny processes: order, limits, deaths, restarts, orders."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_sdk.errors import StackError
from mlops_sdk.local.service import Command, NotReady, Service, State, Unit
from mlops_sdk.local.supervisor import Supervisor

ENVIRONMENT = {"PATH": os.environ["PATH"]}


def sh(script: str) -> Callable[[], Command]:
    return lambda: Command(argv=("sh", "-c", script))


def supervisor_of(tmp_path: Path, *services: Service, changed: Callable[[Unit], None] = lambda _: None) -> Supervisor:
    return Supervisor(services, log_of=lambda name: tmp_path / f"{name}.log", environment=ENVIRONMENT, changed=changed)


async def run_until_ready(supervisor: Supervisor) -> tuple[asyncio.Task[None], asyncio.Event]:
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(supervisor.run(stop, all_ready=ready.set))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    if task.done():
        task.result()
    return task, stop


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.02)


async def test_a_service_starts_after_what_it_needs_and_ends_before_it(tmp_path: Path) -> None:
    events: list[str] = []

    def changed(unit: Unit) -> None:
        if unit.state in (State.READY, State.STOPPED):
            events.append(f"{unit.service.name} {unit.state}")

    supervisor = supervisor_of(
        tmp_path,
        Service(name="top", needs=("step",), command=sh("exec sleep 60")),
        Service(name="step", needs=("base",)),
        Service(name="base", command=sh("exec sleep 60")),
        changed=changed,
    )
    task, stop = await run_until_ready(supervisor)
    assert supervisor.ready
    stop.set()
    await task
    assert events == ["base ready", "step ready", "top ready", "top stopped", "step stopped", "base stopped"]


async def test_at_most_two_heavy_services_start_at_once(tmp_path: Path) -> None:
    running: set[str] = set()
    most = 0

    def service(name: str) -> Service:
        def probe() -> None:
            running.discard(name)

        def prepare() -> None:
            nonlocal most
            running.add(name)
            most = max(most, len(running))
            time.sleep(0.1)

        return Service(name=name, heavy=True, prepare=prepare, command=sh("exec sleep 60"), probe=probe)

    task, stop = await run_until_ready(supervisor_of(tmp_path, *(service(name) for name in "abcd")))
    stop.set()
    await task
    assert most == 2


async def test_a_service_that_dies_at_start_ends_the_stack_and_its_log_is_quoted(tmp_path: Path) -> None:
    supervisor = supervisor_of(
        tmp_path,
        Service(name="fine", command=sh("exec sleep 60")),
        Service(name="broken", command=sh("echo the disk is on fire; exit 3"), probe=never_ready),
    )
    with pytest.raises(StackError) as caught:
        await run_until_ready(supervisor)
    assert "'broken'" in caught.value.what
    assert "exit status 3" in caught.value.seen
    assert "the disk is on fire" in caught.value.seen
    assert str(tmp_path / "broken.log") in caught.value.next_step
    assert supervisor.units["fine"].state is State.STOPPED


async def test_a_service_that_never_answers_ends_the_stack_with_the_probes_last_word(tmp_path: Path) -> None:
    service = Service(name="deaf", command=sh("exec sleep 60"), probe=never_ready, start_timeout_s=0.3)
    with pytest.raises(StackError, match="nobody home"):
        await run_until_ready(supervisor_of(tmp_path, service))


async def test_a_service_that_dies_later_is_restarted_and_counted(tmp_path: Path) -> None:
    supervisor = supervisor_of(tmp_path, Service(name="mortal", command=sh("exec sleep 60")))
    task, stop = await run_until_ready(supervisor)
    unit = supervisor.units["mortal"]
    first = unit.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: unit.state is State.READY and unit.pid != first)
    assert unit.restarts == 1
    stop.set()
    await task


async def test_a_service_that_keeps_dying_ends_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_sdk.local.supervisor._FIRST_PAUSE_S", 0.01)
    supervisor = supervisor_of(tmp_path, Service(name="doomed", command=sh("sleep 0.05; echo again; exit 1")))
    task, _ = await run_until_ready(supervisor)
    with pytest.raises(StackError, match="died 5 times"):
        await task


async def test_a_held_service_stays_down_until_it_is_released(tmp_path: Path) -> None:
    supervisor = supervisor_of(tmp_path, Service(name="held", command=sh("exec sleep 60")))
    task, stop = await run_until_ready(supervisor)
    unit = supervisor.units["held"]
    with pytest.raises(ValueError, match="not held"):
        await supervisor.release("held")
    await supervisor.hold("held")
    assert unit.state is State.STOPPED
    assert not supervisor.ready
    with pytest.raises(ValueError, match="it is stopped"):
        await supervisor.hold("held")
    await supervisor.release("held")
    assert supervisor.ready
    assert unit.restarts == 0
    stop.set()
    await task


async def test_a_service_that_ignores_sigterm_is_killed_with_all_its_children(tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 61 & echo $! > {tmp_path}/child; wait; wait"
    supervisor = supervisor_of(tmp_path, Service(name="stubborn", command=sh(script), stop_timeout_s=0.3))
    task, stop = await run_until_ready(supervisor)
    await until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().strip() != "")
    child = int((tmp_path / "child").read_text())
    stop.set()
    await task
    await until(lambda: not alive(child))


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def never_ready() -> None:
    raise NotReady("nobody home")


async def test_a_restart_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_sdk.local.supervisor._FIRST_PAUSE_S", 0.01)
    # starts, fails twice at start, then starts again
    tries = f"echo x >> {tmp_path}/tries; case $(wc -l < {tmp_path}/tries) in 2|3) exit 9;; esac"
    script = f"{tries}; touch {tmp_path}/up; exec sleep 60"

    def probe() -> None:
        if not (tmp_path / "up").exists():
            raise NotReady("not yet")

    supervisor = supervisor_of(tmp_path, Service(name="shaky", command=sh(script), probe=probe))
    task, stop = await run_until_ready(supervisor)
    unit = supervisor.units["shaky"]
    (tmp_path / "up").unlink()
    os.kill(unit.pid, signal.SIGKILL)
    await until(lambda: unit.restarts == 3 and unit.state is State.READY)
    stop.set()
    await task


async def test_a_step_whose_work_is_gone_ends_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_sdk.local.supervisor._LOOK_EVERY_S", 0.02)
    made = tmp_path / "made"
    step = Service(name="step", prepare=made.touch, alive=made.exists)
    user = Service(name="user", needs=("step",), command=sh("exec sleep 60"))
    supervisor = supervisor_of(tmp_path, step, user)
    task, _ = await run_until_ready(supervisor)
    made.unlink()
    with pytest.raises(StackError, match=r"'step'.*is not up"):
        await task
    assert supervisor.units["user"].state is State.STOPPED


async def test_a_service_that_lives_but_does_not_answer_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_sdk.local.supervisor._PROBE_AGAIN_EVERY_S", 0.02)
    deaf = tmp_path / "deaf"

    def probe() -> None:
        if deaf.exists():
            raise NotReady("hangs")

    supervisor = supervisor_of(tmp_path, Service(name="one", command=sh("exec sleep 60"), probe=probe))
    task, stop = await run_until_ready(supervisor)
    unit = supervisor.units["one"]
    deaf.touch()
    await until(lambda: unit.state is State.UNHEALTHY and unit.detail == "hangs")
    assert not supervisor.ready
    deaf.unlink()
    await until(lambda: supervisor.ready)
    assert unit.restarts == 0
    stop.set()
    await task


async def test_a_held_service_and_what_needs_it_start_when_it_is_released(tmp_path: Path) -> None:
    services = (
        Service(name="other", command=sh("exec sleep 60")),
        Service(name="step", needs=("other",), prepare=(tmp_path / "prepared").touch),
        Service(name="user", needs=("step",), command=sh("exec sleep 60")),
    )
    supervisor = Supervisor(
        services,
        log_of=lambda name: tmp_path / f"{name}.log",
        environment=ENVIRONMENT,
        changed=lambda _: None,
        hold=("step",),
    )
    task, stop = await run_until_ready(supervisor)
    states = {name: unit.state for name, unit in supervisor.units.items()}
    assert states == {"other": State.READY, "step": State.HELD, "user": State.HELD}
    assert supervisor.ready
    assert not (tmp_path / "prepared").exists()

    await supervisor.release("step")

    assert {unit.state for unit in supervisor.units.values()} == {State.READY}
    with pytest.raises(ValueError, match="not held"):
        await supervisor.release("step")
    await supervisor.hold("user")  # once started, it is like any other
    await supervisor.release("user")
    stop.set()
    await task


def test_a_service_that_is_to_be_held_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no service 'nobody'"):
        Supervisor((), log_of=lambda _: tmp_path, environment={}, changed=lambda _: None, hold=("nobody",))


async def test_what_a_dead_service_left_in_its_session_is_ended_before_the_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_sdk.local.supervisor._FIRST_PAUSE_S", 0.01)
    # a child in a process group of its own, as Airflow's task processes are
    child = "import os, time; os.setpgid(0, 0); print(os.getpid(), flush=True); time.sleep(60)"
    script = f"python3 -c '{child}' >> {tmp_path}/children & wait"
    supervisor = supervisor_of(tmp_path, Service(name="one", command=sh(script)))
    task, stop = await run_until_ready(supervisor)

    def children() -> list[int]:
        path = tmp_path / "children"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    await until(lambda: len(children()) == 1)
    os.kill(supervisor.units["one"].pid, signal.SIGKILL)
    await until(lambda: len(children()) == 2)
    assert not alive(children()[0])
    stop.set()
    await task
    await until(lambda: not alive(children()[1]))
