"""Power is real: on starts a machine, off ends every process of it, and the BMC tells which it is."""

from __future__ import annotations

import os
import signal
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops_sdk.local.isolation import members
from support import eventually

Eventually = Callable[..., float]


def processes_with(text: str) -> list[int]:
    """Processes of this computer, in whatever namespace, whose command line has a text; this one apart."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                if text in (path / "cmdline").read_bytes().replace(b"\0", b" ").decode():
                    found.append(int(path.name))
            except OSError:
                continue
    return found


@pytest.fixture(autouse=True)
def _all_off(rack: Any) -> Iterator[None]:
    """Every test leaves the machines off and without media."""
    yield
    for index in range(len(rack.machines)):
        rack.reset(index, "ForceOff")
        for name in ("config-drive.iso", "scratch-mib"):
            (rack.slot(index) / name).unlink(missing_ok=True)


def test_without_media_a_machine_is_on_and_answers_nobody(rack: Any) -> None:
    assert rack.power(0) == "Off"

    assert rack.reset(0, "On") < 1

    assert rack.power(0) == "On"
    eventually(lambda: "no operating system deployed" in rack.console(0), within_s=10)
    assert "Connection refused" in rack.ssh(0, "true").stderr

    assert rack.reset(0, "ForceOff") < 1
    assert rack.power(0) == "Off"


def test_a_config_drive_makes_a_host_with_its_name_and_keys(rack: Any) -> None:
    rack.boot(0, hostname="node-0", run_key="r1")

    assert rack.ssh(0, "hostname; echo $HOME; which python; cat /run/config-drive/meta_data.json").stdout.split("\n")[
        :3
    ] == ["node-0", "/root", "/opt/image/bin/python"]
    assert rack.ssh(0, "python -c 'import torch; print(torch.ones(2).sum().item())'").stdout == "2.0\n"


def test_power_off_ends_every_process(rack: Any) -> None:
    mark = f"mark-{uuid.uuid4().hex}"
    rack.boot(0)
    rack.ssh(0, f"setsid -f bash -c 'trap : TERM HUP INT; while :; do sleep 1; done' {mark} >/dev/null 2>&1")
    assert processes_with(mark) != []

    assert rack.reset(0, "ForceOff") < 1

    assert processes_with(mark) == []
    assert rack.power(0) == "Off"


def test_both_switches_may_be_pressed_twice(rack: Any) -> None:
    rack.boot(0)
    rack.reset(0, "On")
    assert rack.ssh(0, "true").returncode == 0  # the same machine, not a second one

    rack.reset(0, "ForceOff")
    rack.reset(0, "ForceOff")
    assert rack.power(0) == "Off"


def test_a_restart_boots_afresh_and_keeps_the_disk(rack: Any) -> None:
    rack.boot(0)
    rack.ssh(0, "echo kept > /scratch/kept; echo lost > /root/lost; echo lost > /tmp/lost")

    rack.reset(0, "ForceRestart")

    eventually(lambda: rack.ssh(0, "true").returncode == 0, within_s=10)
    assert rack.ssh(0, "cat /scratch/kept; ls /root /tmp").stdout.split() == ["kept", "/root:", "/tmp:"]  # noqa: S108 - on the machine


def test_a_machine_whose_first_process_died_reads_off(rack: Any) -> None:
    rack.boot(0)

    rack.ssh(0, "kill -TERM 1")

    eventually(lambda: rack.power(0) == "Off", within_s=5)
    rack.boot(0)
    assert rack.power(0) == "On"


def test_an_ssh_daemon_that_died_is_started_again(rack: Any) -> None:
    rack.boot(0)

    rack.ssh(0, "pkill -o sshd")  # a machine's own process namespace: the oldest is the daemon

    eventually(lambda: rack.ssh(0, "true").returncode == 0, within_s=10)


def test_an_unreadable_config_drive_is_told_on_the_console(rack: Any) -> None:
    (rack.slot(0) / "config-drive.iso").write_bytes(b"not an image")

    rack.reset(0, "On")

    eventually(lambda: "the config drive is unreadable" in rack.console(0), within_s=10)
    assert rack.power(0) == "On"


def test_only_the_pinned_machine_and_only_the_runs_key_are_let_in(rack: Any, ssh: Callable[..., Any]) -> None:
    from mlops_sdk.identity.ssh_keys import client_key, host_key  # noqa: PLC0415

    rack.boot(0)
    address, good, other = rack.machines[0].address, host_key("k" * 32, uuid.UUID(int=7), 1, 0), uuid.UUID(int=8)

    stranger = ssh(address, "true", key=good, client=client_key("k" * 32, other, 1))
    assert "Permission denied (publickey)" in stranger.stderr
    impostor = ssh(address, "true", key=host_key("k" * 32, other, 1, 0))
    assert "Host key verification failed" in impostor.stderr


def test_a_disk_may_be_small(rack: Any) -> None:
    (rack.slot(0) / "scratch-mib").write_text("4")
    rack.boot(0)

    full = rack.ssh(0, "dd if=/dev/zero of=/scratch/big bs=1M count=8")

    assert "No space left on device" in full.stderr


def test_the_bmc_wants_its_account(rack: Any) -> None:
    for password in ("", "wrong"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            rack.redfish(rack.system(0), password=password)
    assert rack.redfish("/redfish/v1", password="")["RedfishVersion"]


def test_the_bmc_shows_a_gpu_server(rack: Any) -> None:
    system = rack.redfish(rack.system(0))
    devices = [rack.redfish(link["@odata.id"]) for link in system["PCIeDevices"]]
    manager = rack.redfish(system["Links"]["ManagedBy"][0]["@odata.id"])

    assert [device["Model"] for device in devices] == ["H200 SXM5 141GB"] * 8
    assert (system["MemorySummary"]["TotalSystemMemoryGiB"], system["ProcessorSummary"]["Count"]) == (2048, 2)
    assert manager["FirmwareVersion"] == rack.machines[0].bmc_firmware


def test_a_killed_farm_takes_its_machines_along(rack: Any) -> None:
    mark = f"mark-{uuid.uuid4().hex}"
    rack.boot(1)
    rack.ssh(1, f"setsid -f bash -c 'while :; do sleep 1; done' {mark} >/dev/null 2>&1")
    (farm,) = [pid for pid in processes_with("farm.py") if pid in members(rack.process.pid)]

    os.kill(farm, signal.SIGKILL)

    assert eventually(lambda: processes_with(mark) == [], within_s=5) < 2

    def farm_is_back() -> bool:
        try:
            return rack.power(1) == "Off"
        except OSError:
            return False

    eventually(farm_is_back, within_s=30)  # the supervisor started it again
    rack.boot(1)
