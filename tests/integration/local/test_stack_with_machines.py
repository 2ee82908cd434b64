"""A stack that is killed while machines run takes them along, and the next start repairs what it finds."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openstack

from mlops_sdk.local import control
from mlops_sdk.local.inventory import RESOURCE_CLASS
from mlops_sdk.local.isolation import is_locked, members
from mlops_sdk.local.process import StackProcess

ONLY = ("nodes", "settings")


def test_killing_a_stack_ends_its_machines_and_the_next_start_finds_them_off(state_dir: Path) -> None:
    with StackProcess(state_dir, only=ONLY) as stack:
        stack.wait_ready(timeout_s=180)
        cloud = connect(state_dir)
        cloud.create_allocation(name="test", resource_class=RESOURCE_CLASS)
        until(lambda: cloud.get_allocation("test").state == "active")
        node_id = str(cloud.get_allocation("test").node_id)
        cloud.set_node_provision_state(node_id, "active", config_drive={"meta_data": {"uuid": node_id}})
        until(lambda: cloud.get_node(node_id).provision_state == "active")
        inside = members(stack.pid)
        assert machine_processes(inside) != []
        mounts = Path("/proc/self/mounts").read_text()
        assert str(state_dir) not in mounts  # machines mount in namespaces of their own

        os.kill(stack.pid, signal.SIGKILL)
        until(lambda: not is_locked(stack.layout) and not any(Path(f"/proc/{pid}").exists() for pid in inside))
        until(lambda: [p.name for p in Path("/sys/class/net").iterdir() if stack.layout.tag in p.name] == [])

    with StackProcess(state_dir, only=ONLY) as stack:
        stack.wait_ready(timeout_s=120)
        assert machine_processes(members(stack.pid)) == []
        cloud = connect(state_dir)
        assert cloud.get_node(node_id).provision_state == "active"  # somebody's: left alone
        cloud.set_node_provision_state(node_id, "deleted")
        until(lambda: cloud.get_node(node_id).provision_state == "available")
        assert control.status(stack.layout).ready


def connect(state_dir: Path) -> Any:
    admin = json.loads((state_dir / "admin.json").read_text())
    cloud = openstack.connect(
        auth={
            "auth_url": admin["auth_url"],
            "username": admin["admin_username"],
            "password": admin["admin_password"],
            "user_domain_id": "default",
            "system_scope": "all",
        },
        region_name=admin["region"],
        load_yaml_config=False,
        load_envvars=False,
    )
    return cloud.baremetal


def machine_processes(pids: list[int]) -> list[int]:
    """Those with a PID namespace below the stack's own: each machine that is on has one."""
    return [pid for pid in pids if namespace(pid) not in {"", namespace(pids[0])}]


def namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""


def until(condition: Callable[[], bool], *, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)
