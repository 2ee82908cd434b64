"""What a machine sees of its computer, and who can talk to whom."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
LISTEN = (
    'setsid -f python -c \'import socket; s = socket.create_server(("", 5555)); '
    '[s.accept()[0].sendall(b"hello") for _ in range(9)]\' >/dev/null 2>&1'
)


@contextmanager
def serving(address: str, port: int) -> Iterator[None]:
    """A server of ours that greets whoever connects."""
    with socket.create_server((address, port)) as server:

        def greet() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"hello")

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def reach(rack: Any, index: int, address: str, port: int) -> str:
    """What a machine reads when it connects somewhere; the error's name when it cannot."""
    code = (
        f"import socket; s = socket.create_connection(({address!r}, {port}), timeout=2); s.settimeout(2); "
        "print(s.recv(9).decode())"
    )
    done = rack.ssh(index, f'python -c "{code}" 2>&1 | tail -1')
    return done.stdout.strip().split(":")[0]


@pytest.fixture(scope="module")
def trio(rack: Any) -> Any:
    """Machines 0 and 1 of one run, 2 of another."""
    for index, run_key in enumerate(("aaaa", "aaaa", "bbbb")):
        rack.boot(index, run_key=run_key)
        rack.ssh(index, LISTEN)
    yield rack
    for index in range(3):
        rack.reset(index, "ForceOff")


def test_machines_of_a_run_talk_on_any_port(trio: Any) -> None:
    assert reach(trio, 0, trio.machines[1].address, 5555) == "hello"
    assert reach(trio, 1, trio.machines[0].address, 5555) == "hello"
    assert reach(trio, 0, "gpu-02", 5555) == "hello"  # by name too


def test_machines_of_different_runs_do_not_talk_at_all(trio: Any) -> None:
    for port in (5555, 22):
        assert reach(trio, 2, trio.machines[0].address, port) in {"TimeoutError", "OSError"}
        assert reach(trio, 0, trio.machines[2].address, port) in {"TimeoutError", "OSError"}


def test_from_the_stack_only_ssh_reaches_a_machine(trio: Any) -> None:
    assert trio.ssh(0, "true").returncode == 0
    with pytest.raises(TimeoutError):
        socket.create_connection((trio.machines[0].address, 5555), timeout=2)


def test_a_machine_reaches_the_published_ports_of_the_stack_and_no_other(trio: Any) -> None:
    stack, other = trio.addresses.gateway, trio.addresses.osd_last
    with serving(stack, trio.addresses.rgw), serving(stack, trio.addresses.mlflow), serving(stack, other):
        assert reach(trio, 0, stack, trio.addresses.rgw) == "hello"
        assert reach(trio, 0, stack, trio.addresses.mlflow) == "TimeoutError"
        assert reach(trio, 0, stack, other) == "TimeoutError"


def test_a_machine_reaches_nothing_else(trio: Any) -> None:
    assert reach(trio, 0, "192.0.2.2", 80) == "OSError"  # no route
    assert trio.ssh(0, "ip route").stdout.split()[0] == trio.addresses.subnet


def test_root_cannot_take_another_address(trio: Any) -> None:
    other = trio.machines[3].address

    assert "Operation not permitted" in trio.ssh(2, f"ip address add {other}/24 dev eth0").stderr
    assert "Operation not permitted" in trio.ssh(2, "ip link set eth0 address 02:00:00:00:00:09").stderr


def test_a_machine_that_goes_off_and_comes_back_in_another_run_changes_sides(trio: Any) -> None:
    trio.reset(1, "ForceOff")
    trio.boot(1, run_key="bbbb")
    trio.ssh(1, LISTEN)

    assert reach(trio, 2, trio.machines[1].address, 5555) == "hello"
    assert reach(trio, 0, trio.machines[1].address, 5555) in {"TimeoutError", "OSError"}


def test_neither_the_repository_nor_the_state_nor_other_processes_are_visible(trio: Any) -> None:
    hidden = (
        REPOSITORY / "pyproject.toml",
        REPOSITORY / "mlops_sdk",
        trio.layout.state_dir,
        "/home",
        "/mnt",
        "/boot/init",
    )
    seen = trio.ssh(0, f"ls -d {' '.join(map(str, hidden))}; ps ax | wc -l")

    assert seen.stderr.count("No such file or directory") == len(hidden)
    assert int(seen.stdout) < 15


def test_the_system_is_read_only_and_root_cannot_change_that(trio: Any) -> None:
    for command, refusal in {
        "touch /usr/x": "Read-only file system",
        "touch /opt/image/x": "Read-only file system",
        "mount -o remount,rw /usr": "permission denied",
        "mknod /tmp/disk b 254 0": "Operation not permitted",
        "echo 1 > /proc/sys/vm/drop_caches": "Read-only file system",
        "chroot /proc/1/root true && nsenter --target 1 --net true": "Operation not permitted",
    }.items():
        done = trio.ssh(0, command)
        assert (done.returncode != 0, refusal in done.stderr) == (True, True), (command, done.stderr)
