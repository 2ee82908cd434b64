"""What a test does to a machine of the embedded stack from outside."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from mlops_sdk.local.isolation import members


class Cable:
    """The network cable of a machine; without it the machine goes on running, and its BMC answers.

    Args:
        stack_pid: The stack's process.
        address: The machine's.
    """

    def __init__(self, stack_pid: int, address: str) -> None:
        self._enter = _enter(stack_pid, address)

    def pull(self) -> None:
        """Nobody reaches it any more, and it reaches nobody."""
        subprocess.run([*self._enter, "link", "set", "eth0", "down"], check=True)


def _enter(stack_pid: int, address: str) -> Sequence[str]:
    """How to run `ip` in the machine's network namespace: through one process of each that the stack has."""
    seen: set[str] = set()
    for pid in members(stack_pid):
        try:
            namespace = str(Path(f"/proc/{pid}/ns/net").readlink())
        except OSError:  # it has ended
            continue
        if namespace in seen:
            continue
        seen.add(namespace)
        enter = ["nsenter", "-t", str(pid), "-n", "ip"]
        shown = subprocess.run([*enter, "-o", "-4", "addr"], capture_output=True, text=True, check=False).stdout
        if f" {address}/" in shown:
            return enter
    raise AssertionError(f"no process is on a machine at {address}")
