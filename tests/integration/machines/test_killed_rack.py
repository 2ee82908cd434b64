"""A stack that is killed while machines run takes them, and every interface, along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from mlops_sdk.local.isolation import members
from support import eventually


def test_kill_9_of_a_stack_with_running_machines_leaves_nothing(rack: Any) -> None:
    for index in (0, 1):
        rack.boot(index, run_key="aaaa")
        rack.ssh(index, "setsid -f sleep 600 >/dev/null 2>&1")
    # a machine's processes are in a namespace below the stack's; the stack's include the machines' power supplies
    supplies = members(rack.process.pid)
    inside = [pid for supply in supplies for pid in descendants(supply)]
    assert len(inside) > len(supplies)

    os.kill(rack.process.pid, signal.SIGKILL)

    eventually(lambda: [pid for pid in {*supplies, *inside} if Path(f"/proc/{pid}").exists()] == [], within_s=5)
    eventually(lambda: [name for name in interfaces() if rack.layout.tag in name] == [], within_s=5)


def descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(inner for child in children for inner in descendants(child))]


def interfaces() -> list[str]:
    output = subprocess.run(["ip", "-json", "link"], check=True, capture_output=True, text=True).stdout
    return [link["ifname"] for link in json.loads(output)]
