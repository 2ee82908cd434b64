"""Nodes in the stack's Ironic: deployed with a config drive, torn down, cleaned with evidence, repaired."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openstack.exceptions
import pytest
from keystoneauth1.exceptions import ClientException

from mlops_sdk.identity.ssh_keys import host_key
from mlops_sdk.local.enroll import BmcAccess, enroll
from mlops_sdk.local.inventory import reference_inventory
from mlops_sdk.local.isolation import members
from support import deploy_by_hand, eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(180)]

CLASS = "gpu.h200.8x"
NODE = "gpu-04"  # allocations of other tests may take any; these pin one


class Cloud:
    """What an operator does with nodes."""

    def __init__(self, stack: Any, operator: Any) -> None:
        self.stack = stack
        self.root = stack.state_dir / "machines"
        self.connection = operator
        self.api = self.connection.baremetal
        farm = json.loads((stack.state_dir / "farm" / "config.json").read_text())
        self.inventory = reference_inventory(str(_network(farm)))
        self.bmc = BmcAccess(url=stack.admin["bmc_url"], username=farm["username"], password=farm["password"])

    def enroll(self) -> float:
        """Enrol again; the seconds it took."""
        began = time.monotonic()
        enroll(
            self.connection,
            self.inventory,
            bmc=self.bmc,
            owner_project_id=self.stack.admin["projects"]["ml-research"],
            machine_root=self.root,
            deploy_interface="machine-faults",
        )
        return time.monotonic() - began

    def node(self, name: str = NODE) -> Any:
        return self.api.get_node(name)

    def fault(self, **faults: str) -> None:
        """Make the node fail as named; nothing named: heal it."""
        self.api.patch_node(NODE, [{"op": "add", "path": "/extra/fault", "value": faults}])

    def allocate(self) -> Any:
        """Take the node for somebody who is no run of ours."""
        name = f"operator-{uuid.uuid4().hex[:8]}"
        self.api.create_allocation(
            resource_class=CLASS,
            name=name,
            candidate_nodes=[self.node().id],
            owner=self.stack.admin["projects"]["ml-research"],
        )
        self.wait(lambda: self.api.get_allocation(name).state == "active")
        return name

    def ask_to_deploy(self, drive: dict[str, Any]) -> None:
        deploy_by_hand(self.connection, NODE, drive, settings=self.stack.settings)

    def deploy(self, drive: dict[str, Any], state: str = "active") -> float:
        began = time.monotonic()
        self.ask_to_deploy(drive)
        self.wait(lambda: self.node().provision_state == state)
        return time.monotonic() - began

    def tear_down(self, state: str = "available") -> float:
        began = time.monotonic()
        self.api.set_node_provision_state(NODE, "deleted")
        self.wait(lambda: self.node().provision_state == state)
        return time.monotonic() - began

    def wait(self, holds: Callable[[], bool], within_s: float = 60) -> None:
        deadline = time.monotonic() + within_s
        while not holds():
            node = self.node()
            assert time.monotonic() < deadline, f"{node.provision_state}: {node.last_error}"
            time.sleep(0.1)

    def answers(self) -> bool:
        """Ironic is up."""
        try:
            return bool(self.node().provision_state)
        except (openstack.exceptions.SDKException, ClientException):
            return False

    def stack_process(self, text: str) -> int:
        """The process of the stack whose command line has a text."""
        found = [pid for pid in members(self.stack.pid) if text in Path(f"/proc/{pid}/cmdline").read_bytes().decode()]
        assert len(found) == 1
        return found[0]


def _network(farm: dict[str, Any]) -> str:
    return f"{farm['fabric']['stack_address'].rsplit('.', 1)[0]}.0/{farm['fabric']['prefix_length']}"


@pytest.fixture(scope="module")
def shared_cloud(stack: Any, operator: Any) -> Cloud:
    return Cloud(stack, operator)


@pytest.fixture
def cloud(shared_cloud: Cloud) -> Iterator[Cloud]:
    """The node is healed and given back after each test."""
    yield shared_cloud
    node = shared_cloud.node()
    if (node.extra or {}).get("fault"):
        shared_cloud.fault()
    if node.allocation_id and node.provision_state == "available":
        shared_cloud.api.delete_allocation(node.allocation_id)
    elif node.allocation_id:
        shared_cloud.wait(lambda: shared_cloud.node().provision_state not in {"deploying", "deleting", "cleaning"})
        shared_cloud.api.set_node_provision_state(node, "deleted")
    shared_cloud.wait(lambda: not shared_cloud.node().allocation_id)
    shared_cloud.enroll()


@pytest.fixture
def drive(config_drive: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return config_drive(0, run_key="operator", hostname="deployed")


@pytest.fixture
def shell(ssh: Callable[..., Any], shared_cloud: Cloud) -> Callable[[str], subprocess.CompletedProcess[str]]:
    key = host_key("k" * 32, uuid.UUID(int=7), 1, 0)
    address = shared_cloud.node().extra["address"]
    return lambda command: ssh(address, command, key=key)


def test_a_node_is_deployed_logged_in_to_torn_down_and_cleaned(
    cloud: Cloud, drive: dict[str, Any], shell: Callable[..., Any]
) -> None:
    began = datetime.now(UTC)
    cloud.allocate()

    cloud.deploy(drive)
    eventually(lambda: shell("true").returncode == 0, within_s=20)
    assert cloud.node().power_state == "power on"
    assert shell("hostname; echo secret > /scratch/secret").stdout == "deployed\n"

    cloud.tear_down()

    node, slot = cloud.node(), cloud.root / NODE
    assert (node.power_state, node.allocation_id, node.instance_id) == ("power off", None, None)
    assert node.extra["cleaned"]["steps"] == ["erase_scratch"]
    assert datetime.fromisoformat(node.extra["cleaned"]["finished_at"]) > began
    assert node.extra["cleaned"]["erased_entries"] == 1
    assert list((slot / "scratch").iterdir()) == []
    assert not (slot / "config-drive.iso").exists()
    assert shell("true").returncode != 0


def test_private_keys_of_a_config_drive_stay_private(cloud: Cloud, drive: dict[str, Any]) -> None:
    cloud.allocate()
    cloud.deploy(drive)

    slot = cloud.root / NODE
    assert (slot / "config-drive.iso").stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in json.dumps(cloud.node().to_dict(), default=str)
    logs = [path for path in cloud.stack.layout.log("x").parent.glob("*.log") if path.is_file()]
    assert [p.name for p in (*logs, slot / "console.log") if b"BEGIN OPENSSH PRIVATE" in p.read_bytes()] == []


def test_the_inventory_is_in_ironic(cloud: Cloud) -> None:
    node = cloud.node()
    machine = cloud.inventory.machines[3]
    ports = list(cloud.api.ports(details=True, node=node.id))
    rails = {port.physical_network: port for port in ports if port.physical_network.startswith("rail")}
    hardware = cloud.api.get_node_inventory(node)["inventory"]

    assert node.owner == cloud.stack.admin["projects"]["ml-research"]
    assert (node.resource_class, sorted(node.traits)) == (CLASS, sorted(cloud.inventory.traits))
    assert node.extra["topology"] == {"leaf": "leaf-02", "position": 9, "spine": "spine-01"}
    assert (node.extra["driver"], node.extra["bmc_firmware"]) == (machine.driver, machine.bmc_firmware)
    assert (len(ports), len(rails)) == (10, 8)
    assert rails["rail2"].local_link_connection["switch_info"] == "leaf-02"
    assert rails["rail2"].local_link_connection["port_id"] == "11"
    assert rails["rail2"].extra["client-id"] == machine.infiniband[2].client_id
    assert node.properties["memory_mb"] == 2048 * 1024  # what the BMC told the inspection
    assert [d["product_id"] for d in hardware["pci_devices"]] == ["0x2335"] * 8
    assert len(hardware["disks"]) == 8


def test_enrolling_again_takes_no_time_and_changes_nothing(cloud: Cloud) -> None:
    before = [(node.name, node.updated_at) for node in cloud.api.nodes(details=True)]

    assert cloud.enroll() < 1

    assert [(node.name, node.updated_at) for node in cloud.api.nodes(details=True)] == before


def test_enrolling_leaves_an_owned_node_alone(cloud: Cloud, drive: dict[str, Any], shell: Callable[..., Any]) -> None:
    cloud.allocate()
    cloud.deploy(drive)

    cloud.enroll()

    assert cloud.node().provision_state == "active"


def test_a_node_that_never_boots_is_active_and_silent(
    cloud: Cloud, drive: dict[str, Any], shell: Callable[..., Any]
) -> None:
    cloud.fault(deploy="no-boot")
    cloud.allocate()

    cloud.deploy(drive)

    assert cloud.node().power_state == "power on"
    time.sleep(2)
    assert "Connection refused" in shell("true").stderr
    cloud.tear_down()


def test_a_failed_deployment_leaves_nothing_running_and_can_be_torn_down(cloud: Cloud, drive: dict[str, Any]) -> None:
    cloud.fault(deploy="fail")
    cloud.allocate()

    cloud.deploy(drive, state="deploy failed")

    assert "injected fault" in cloud.node().last_error
    assert cloud.node().power_state == "power off"
    assert not (cloud.root / NODE / "config-drive.iso").exists()
    cloud.tear_down()


def test_a_deployment_that_hangs_can_be_torn_down(cloud: Cloud, drive: dict[str, Any]) -> None:
    cloud.fault(deploy="hang")
    cloud.allocate()

    cloud.deploy(drive, state="wait call-back")

    cloud.tear_down()


def test_a_failed_cleaning_is_kept_back_until_it_is_repeated(cloud: Cloud, drive: dict[str, Any]) -> None:
    cloud.allocate()
    cloud.deploy(drive)
    before = cloud.node().extra["cleaned"]
    cloud.fault(clean="fail")

    cloud.tear_down(state="clean failed")

    assert cloud.node().is_maintenance
    assert cloud.node().extra["cleaned"] == before  # no evidence of what did not happen
    cloud.fault()
    cloud.enroll()
    node = cloud.node()
    assert (node.provision_state, node.is_maintenance) == ("available", False)
    assert node.extra["cleaned"]["finished_at"] > before["finished_at"]


@pytest.mark.parametrize(
    ("request_", "during", "after"), [("active", "deploying", "deploy failed"), ("deleted", "deleting", "error")]
)
def test_a_conductor_that_dies_half_way_leaves_a_node_that_its_owner_can_give_back(
    cloud: Cloud, drive: dict[str, Any], request_: str, during: str, after: str
) -> None:
    name = cloud.allocate()
    if request_ == "deleted":
        cloud.deploy(drive)
    farm = cloud.stack_process("farm.py")
    os.kill(farm, signal.SIGSTOP)  # the BMC does not answer, so the conductor is in the middle of it
    try:
        if request_ == "active":
            cloud.ask_to_deploy(drive)
        else:
            cloud.api.set_node_provision_state(NODE, request_)
        cloud.wait(lambda: cloud.node().provision_state == during)
        with cloud.stack.held("ironic"):
            os.kill(farm, signal.SIGCONT)
    finally:
        os.kill(farm, signal.SIGCONT)
    cloud.wait(lambda: cloud.answers() and cloud.node().provision_state == after)

    cloud.enroll()  # somebody holds it: not ours to repair
    assert cloud.node().provision_state == after
    assert name in [a.name for a in cloud.api.allocations()]

    cloud.tear_down()
    assert cloud.node().extra["cleaned"]
    assert name not in [a.name for a in cloud.api.allocations()]


def test_slots_hold_no_media_of_nodes_that_are_free(cloud: Cloud) -> None:
    free = [node.name for node in cloud.api.nodes(details=True) if node.provision_state == "available"]

    assert [name for name in free if (Path(cloud.root) / name / "config-drive.iso").exists()] == []
