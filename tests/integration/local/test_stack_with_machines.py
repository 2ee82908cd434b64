"""A stack that is killed while machines run takes them along, and the next start repairs what it finds."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from mlops_sdk.config import Settings
from mlops_sdk.local import control
from mlops_sdk.local.inventory import RESOURCE_CLASS
from mlops_sdk.local.isolation import members
from mlops_sdk.local.process import StackProcess
from support import deploy_by_hand, eventually, operator_of

ONLY = ("nodes", "settings")


@pytest.mark.slow
def test_killing_a_stack_ends_its_machines_and_the_next_start_finds_them_off(state_dir: Path) -> None:
    with StackProcess(state_dir, only=ONLY) as stack:
        stack.wait_ready(timeout_s=180)
        operator = operator_of(json.loads(stack.layout.admin_json.read_text()))
        cloud = operator.baremetal
        cloud.create_allocation(name="test", resource_class=RESOURCE_CLASS)
        eventually(lambda: cloud.get_allocation("test").state == "active", within_s=60)
        node_id = str(cloud.get_allocation("test").node_id)
        settings = Settings.load(stack.layout.client_toml)
        deploy_by_hand(operator, node_id, {"meta_data": {"uuid": node_id}}, settings=settings)
        eventually(lambda: cloud.get_node(node_id).provision_state == "active", within_s=60)
        inside = members(stack.pid)
        assert control.machine_processes(stack.layout)
        mounts = Path("/proc/self/mounts").read_text()
        assert str(state_dir) not in mounts  # machines mount in namespaces of their own

        os.kill(stack.pid, signal.SIGKILL)
        eventually(lambda: control.leftovers(stack.layout, inside) == [], within_s=60)

    with StackProcess(state_dir, only=ONLY) as stack:
        stack.wait_ready(timeout_s=120)
        assert control.machine_processes(stack.layout) == []
        cloud = operator_of(json.loads(stack.layout.admin_json.read_text())).baremetal
        assert cloud.get_node(node_id).provision_state == "active"  # somebody's: left alone
        cloud.set_node_provision_state(node_id, "deleted")
        eventually(lambda: cloud.get_node(node_id).provision_state == "available", within_s=60)
        assert control.status(stack.layout).ready
