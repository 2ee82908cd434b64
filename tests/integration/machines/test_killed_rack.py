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
    eventually(lambda: jobs(rack) == 2, within_s=10)  # what runs on the machines is among the stack's processes
    inside = members(rack.process.pid)

    os.kill(rack.process.pid, signal.SIGKILL)

    eventually(lambda: [pid for pid in inside if Path(f"/proc/{pid}").exists()] == [], within_s=5)
    eventually(lambda: [name for name in interfaces() if rack.layout.tag in name] == [], within_s=5)


def jobs(rack: Any) -> int:
    """How many of the stack's processes are what the test started on its machines."""
    return sum(command_of(pid) == b"sleep\x00600\x00" for pid in members(rack.process.pid))


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def interfaces() -> list[str]:
    output = subprocess.run(["ip", "-json", "link"], check=True, capture_output=True, text=True).stdout
    return [link["ifname"] for link in json.loads(output)]
