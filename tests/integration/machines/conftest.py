"""A rack: the network and the BMC farm of a stack of its own, and what a test does with machines."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlops_sdk.identity.ssh_keys import SshKey, client_key, host_key
from mlops_sdk.local.addresses import Addresses, choose_or_load
from mlops_sdk.local.inventory import MachineInventory, reference_inventory
from mlops_sdk.local.layout import Layout, Tools
from mlops_sdk.local.process import StackProcess
from support import eventually

KEY = "k" * 32
RUN = uuid.UUID(int=7)
CLIENT = client_key(KEY, RUN, 1)
BUILD_DRIVE = (
    "import json, sys; from ironic_machine import configdrive;"
    "sys.stdout.buffer.write(configdrive.build(json.load(sys.stdin), node_uuid='u', node_name='n'))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rack:
    """Machines behind their BMCs, without Ironic."""

    process: StackProcess
    layout: Layout
    addresses: Addresses
    password: str
    machines: tuple[MachineInventory, ...]

    def redfish(self, path: str, body: Any = None, *, password: str | None = None) -> Any:
        """GET, or POST when there is a body; JSON in, JSON out."""
        credentials = base64.b64encode(f"mlops:{self.password if password is None else password}".encode()).decode()
        request = urllib.request.Request(  # noqa: S310 - our own BMC
            f"{self.addresses.url('bmc')}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {credentials}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
            content = reply.read()
        return json.loads(content) if content else None

    def system(self, index: int) -> str:
        """Path of a machine's system resource."""
        return f"/redfish/v1/Systems/{self.machines[index].system_uuid}"

    def reset(self, index: int, kind: str) -> float:
        """Ask the BMC for a power change; the seconds it took to answer."""
        began = time.monotonic()
        self.redfish(f"{self.system(index)}/Actions/ComputerSystem.Reset", {"ResetType": kind})
        return time.monotonic() - began

    def power(self, index: int) -> str:
        """The power state that the BMC reports."""
        return self.redfish(self.system(index))["PowerState"]

    def slot(self, index: int) -> Path:
        """The machine's slot."""
        return self.layout.data("machines") / self.machines[index].name

    def boot(self, index: int, *, run_key: str = "", hostname: str = "") -> None:
        """Insert a config drive as Ironic does, power on, wait for SSH."""
        insert_drive(self.slot(index), index, run_key=run_key, hostname=hostname)
        self.reset(index, "On")
        eventually(lambda: self.ssh(index, "true").returncode == 0, within_s=20)

    def ssh(self, index: int, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine."""
        return ssh(self.machines[index].address, command, key=host_key(KEY, RUN, 1, index), **options)

    def console(self, index: int) -> str:
        """What the machine printed."""
        return (self.slot(index) / "console.log").read_text()


def insert_drive(slot: Path, index: int, *, run_key: str, hostname: str) -> None:
    """Put a config drive into a slot."""
    image = subprocess.run(
        [Tools.find().openstack_python, "-c", BUILD_DRIVE],
        input=json.dumps(config_drive(index, run_key=run_key, hostname=hostname)).encode(),
        check=True,
        capture_output=True,
    ).stdout
    (slot / "config-drive.iso").write_bytes(image)


def config_drive(index: int, *, run_key: str, hostname: str) -> dict[str, Any]:
    """The JSON form of a config drive, as a lease makes it."""
    key = host_key(KEY, RUN, 1, index)
    user_data = {
        "hostname": hostname,
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": key.private, "ed25519_public": key.public},
        "ssh_authorized_keys": [CLIENT.public],
    }
    return {
        "meta_data": {"uuid": str(RUN), "name": "n", "hostname": hostname, "mlops": {"run_key": run_key}},
        "user_data": "#cloud-config\n" + json.dumps(user_data),
        "network_data": {},
    }


def ssh(
    address: str, command: str, *, key: SshKey, client: SshKey = CLIENT, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """OpenSSH's client with a pinned host key."""
    folder = Path(f"/tmp/mlops-ssh-{os.getpid()}")  # noqa: S108 - named by our own process id
    folder.mkdir(mode=0o700, exist_ok=True)
    name = uuid.uuid4().hex
    identity, known = folder / name, folder / f"{name}.known"
    identity.touch(mode=0o600)
    identity.write_text(client.private)
    known.write_text(f"{address} {key.public}\n")
    options = {
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(known),
        "GlobalKnownHostsFile": "/dev/null",
        "BatchMode": "yes",
        "ConnectTimeout": "3",
    }
    argv = ["ssh", "-F", "none", "-i", str(identity), *(f"-o{k}={v}" for k, v in options.items()), f"root@{address}"]
    try:
        return subprocess.run([*argv, command], capture_output=True, text=True, timeout=timeout_s, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def rack() -> Iterator[Rack]:
    """Four machines, all off; everything is gone afterwards."""
    layout = Layout.at(Path(f"/tmp/mlops-rack-{os.getpid()}"))  # noqa: S108 - named by our own process id
    try:
        with StackProcess(layout.state_dir, only=("farm",)) as process:
            process.wait_ready(timeout_s=60)
            addresses = choose_or_load(layout)
            yield Rack(
                process=process,
                layout=layout,
                addresses=addresses,
                password=json.loads((layout.data("farm") / "config.json").read_text())["password"],
                machines=reference_inventory(addresses.subnet).machines,
            )
    finally:
        shutil.rmtree(layout.state_dir, ignore_errors=True)


@pytest.fixture(name="ssh")
def _ssh() -> Callable[..., subprocess.CompletedProcess[str]]:
    return ssh


@pytest.fixture(name="config_drive")
def _config_drive() -> Callable[..., dict[str, Any]]:
    return config_drive
