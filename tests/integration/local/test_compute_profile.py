"""The compute profile of the embedded stack: servers of each flavor, limits, faults, crashes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.exceptions import ConflictException, HttpException

from mlops_sdk.errors import StackError
from mlops_sdk.local import control
from mlops_sdk.local.isolation import members
from mlops_sdk.local.layout import Tools
from mlops_sdk.local.process import StackProcess
from mlops_sdk.remote.ssh import connect
from support import eventually
from support_compute import ComputeHandle, Keys, address_of, create, gone, heal, settled, take_back_servers

pytestmark = [pytest.mark.stack, pytest.mark.slow]

GPUS = {
    "gpu.a100.pt": "CUSTOM_GPU_A100_80GB",
    "gpu.a100.vgpu": "VGPU",
    "gpu.a100.mig": "CUSTOM_MIG_1G_10GB",
}


@pytest.fixture
def cloud(compute: ComputeHandle) -> Iterator[Any]:
    """Our project's user; whatever the test made is taken back."""
    yield compute.user()
    take_back_servers(compute.operator())


@pytest.mark.parametrize("flavor", [*GPUS, "cpu.small"])
def test_a_server_of_each_flavor_is_made_listed_reached_and_deleted(
    compute: ComputeHandle, cloud: Any, flavor: str
) -> None:
    keys = Keys()
    made = create(
        cloud, compute.offers, name=f"ml-{flavor}", flavor=flavor, user_data=keys.user_data, metadata={"run": "one"}
    )
    server = settled(cloud, made)
    assert (server.status, server.fault) == ("ACTIVE", None)
    listed = [(one.name, one.metadata) for one in cloud.compute.servers(details=True, name=f"^ml-{flavor}$")]
    assert listed == [(f"ml-{flavor}", {"run": "one"})]
    if flavor in GPUS:
        assert allocated(compute, server.id)[GPUS[flavor]] == 1
        assert allocated(compute, server.id)["PCPU"] >= 2
    (port,) = cloud.network.ports(device_id=server.id)
    assert (port.status, port.device_owner) == ("ACTIVE", "compute:nova")
    said = asyncio.run(on_machine(keys, address_of(server), ["hostname"]))
    assert said.strip() == f"ml-{flavor}".replace(".", "-")

    cloud.compute.delete_server(server)

    gone(cloud, server)
    assert list(cloud.network.ports(device_id=server.id)) == []
    assert allocated(compute, server.id) == {}
    assert not slot_of(compute, server.id).exists()


def test_more_cards_than_there_are_is_no_valid_host_and_not_an_endless_wait(compute: ComputeHandle, cloud: Any) -> None:
    servers = [create(cloud, compute.offers, name=f"card-{n}", flavor="gpu.a100.pt") for n in range(5)]
    found = [settled(cloud, server) for server in servers]
    assert sorted(server.status for server in found) == ["ACTIVE"] * 4 + ["ERROR"]
    (refused,) = [server for server in found if server.status == "ERROR"]
    assert "No valid host was found" in refused.fault["message"]
    assert allocated(compute, refused.id) == {}


def test_a_project_has_a_limit_of_its_own(compute: ComputeHandle, cloud: Any) -> None:
    stranger = compute.stranger()
    for number in range(compute.offers["instances"]["other-team"]):
        create(stranger, compute.offers, name=f"theirs-{number}", flavor="cpu.small")
    with pytest.raises(HttpException) as caught:
        create(stranger, compute.offers, name="one-more", flavor="cpu.small")
    assert caught.value.status_code == 403
    assert "Quota exceeded for instances" in str(caught.value)
    assert list(cloud.compute.servers()) == []


@pytest.mark.parametrize(("fault", "status"), [("spawn", "ERROR"), ("slow", "BUILD"), ("no-boot", "ACTIVE")])
def test_a_server_that_fails_as_told_can_be_deleted(
    compute: ComputeHandle, cloud: Any, fault: str, status: str
) -> None:
    server = create(cloud, compute.offers, name=f"bad-{fault}", flavor="cpu.small", metadata={"fault": fault})
    eventually(
        lambda: (
            cloud.compute.get_server(server.id).status == status
            and cloud.compute.get_server(server.id).task_state in {None, "spawning"}
        ),
        within_s=60,
        what=f"it is {status}",
    )
    cloud.compute.delete_server(server)
    gone(cloud, server)
    assert list(cloud.network.ports(device_id=server.id)) == []
    assert allocated(compute, server.id) == {}


def test_a_server_that_cannot_be_ended_goes_to_error_and_is_gone_once_it_can(
    compute: ComputeHandle, cloud: Any
) -> None:
    server = settled(
        cloud, create(cloud, compute.offers, name="stuck", flavor="cpu.small", metadata={"fault": "destroy"})
    )
    cloud.compute.delete_server(server)
    eventually(lambda: cloud.compute.get_server(server.id).status == "ERROR", within_s=60, what="it is in ERROR")
    assert len(list(cloud.network.ports(device_id=server.id))) == 1
    with pytest.raises(ConflictException):
        cloud.compute.delete_server_metadata(server, keys=["fault"])
    heal(compute.operator(), server)
    cloud.compute.delete_server(server)
    gone(cloud, server)


def test_a_volume_is_made_attached_and_removed(compute: ComputeHandle, cloud: Any) -> None:
    server = settled(cloud, create(cloud, compute.offers, name="with-volume", flavor="cpu.small"))
    volume = cloud.block_storage.create_volume(name="data", size=2, metadata={"run": "one"})
    cloud.block_storage.wait_for_status(volume, "available", ["error"], interval=0.5, wait=60)
    file = compute.layout.data("cinder") / "files" / f"volume-{volume.id}"
    assert file.stat().st_size == 2 * 1024**3
    cloud.compute.create_volume_attachment(server, volume_id=volume.id, delete_on_termination=True)
    cloud.block_storage.wait_for_status(volume, "in-use", ["error"], interval=0.5, wait=60)

    cloud.compute.delete_server(server)

    gone(cloud, server)
    eventually(lambda: not file.exists(), within_s=60, what="the volume went with its server")


def test_a_host_that_crashed_starts_its_servers_again(compute: ComputeHandle, cloud: Any) -> None:
    keys = Keys()
    server = settled(
        cloud,
        create(cloud, compute.offers, name="survivor", flavor="gpu.a100.vgpu", user_data=keys.user_data),
    )
    address = address_of(server)
    first = asyncio.run(on_machine(keys, address, ["cat", "/proc/sys/kernel/random/boot_id", "/proc/1/stat"]))
    before = compute.service("nova-compute")

    os.kill(before.pid, signal.SIGKILL)

    eventually(
        lambda: compute.service("nova-compute").restarts > before.restarts and control.status(compute.layout).ready,
        within_s=120,
        what="nova-compute is back",
    )
    second = asyncio.run(on_machine(keys, address, ["cat", "/proc/sys/kernel/random/boot_id", "/proc/1/stat"]))
    assert first != second
    assert cloud.compute.get_server(server.id).status == "ACTIVE"


def test_no_secret_is_an_argument_or_logged_and_nothing_listens_beyond_loopback(compute: ComputeHandle) -> None:
    secrets = {k: v for k, v in json.loads(compute.layout.secrets_json.read_text()).items() if len(v) > 36}
    inside = set(members(compute.pid))
    commands = [Path(f"/proc/{pid}/cmdline").read_text(errors="replace") for pid in inside if alive(pid)]
    logs = [path.read_text(errors="replace") for path in (compute.layout.state_dir / "logs").iterdir()]
    assert [name for name, value in secrets.items() if any(value in text for text in (*commands, *logs))] == []
    lines = subprocess.run(["ss", "-Hltnp"], check=True, capture_output=True, text=True).stdout.splitlines()
    ours = [line.split()[3] for line in lines if any(f"pid={pid}," in line for pid in inside)]
    bridge = compute.settings.s3.node_endpoint.removeprefix("http://").rpartition(":")[0]
    assert {address.rpartition(":")[0] for address in ours} <= {"127.0.0.1", "[::1]", bridge}  # ::1: epmd's own choice


def test_a_killed_stack_leaves_no_broker_behind(state_dir: Path) -> None:
    with StackProcess(state_dir, only=("rabbitmq",), profiles=("compute",)) as stack:
        stack.wait_ready(timeout_s=120)
        inside = members(stack.pid)
        names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in inside}
        assert {"epmd", "beam.smp"} <= names
        os.kill(stack.pid, signal.SIGKILL)
        eventually(lambda: not any(alive(pid) for pid in inside), within_s=10, what="all its processes are gone")


@pytest.mark.parametrize("profiles", ["compute", "compute,cloud"])
def test_a_profile_that_is_not_there_is_named(profiles: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_COMPUTE_PYTHON", str(tmp_path / "python"))
    with pytest.raises(StackError) as caught:
        Tools.find().check_profiles(profiles.split(","))
    assert ("cloud" in str(caught.value)) is ("cloud" in profiles)
    assert ("make setup-compute" in str(caught.value)) is ("cloud" not in profiles)


def allocated(compute: ComputeHandle, consumer: str) -> dict[str, int]:
    """What Placement counts for a server, by resource class."""
    reply = (
        compute.operator()
        .session.get(f"/allocations/{consumer}", endpoint_filter={"service_type": "placement"})
        .json()["allocations"]
    )
    found: dict[str, int] = {}
    for part in reply.values():
        for resource_class, amount in part["resources"].items():
            found[resource_class] = found.get(resource_class, 0) + amount
    return found


def slot_of(compute: ComputeHandle, server_id: str) -> Path:
    return compute.layout.data("nova") / "servers" / f"vm-{server_id[:8]}"


async def on_machine(keys: Keys, address: str, argv: list[str]) -> str:
    connection = await connect(keys.at(address), timeout_s=30)
    try:
        return await connection.run(argv)
    finally:
        await connection.close()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists()
