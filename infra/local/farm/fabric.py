"""Plug machines into the stack's network: their bridge port, their addresses, and whom they may talk to.

The network itself (bridge, firewall) is made by `mlops_sdk.local.network`; this side fills two of its sets.
"""

from __future__ import annotations

import itertools
import subprocess
import threading
from dataclasses import dataclass
from typing import Any

_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plug:
    """A machine on the bridge; `name` is also the name of its bridge port."""

    name: str
    mac: str
    address: str
    run_key: str


class Fabric:
    """The bridge's firewall as who plugs machines in sees it. Thread-safe.

    Args:
        config: What `mlops_sdk.local.network.Fabric.to_json` returns.
        sets: The names of its two sets; whoever fills them is the only one.
    """

    def __init__(self, config: dict[str, Any], sets: tuple[str, str] = ("ports", "peers")) -> None:
        self.pid = int(config["pid"])
        self._sets = sets
        self._table = f"bridge {config['table']}"
        self._plugs: dict[str, Plug] = {}
        self._lock = threading.Lock()

    def admit(self, plug: Plug) -> None:
        """Let a machine talk to the stack and to the machines of its run; replaces what it was allowed before."""
        with self._lock:
            self._apply({**self._plugs, plug.name: plug})

    def expel(self, name: str) -> None:
        """Let a machine talk to nobody."""
        with self._lock:
            self._apply({key: plug for key, plug in self._plugs.items() if key != name})

    def _apply(self, plugs: dict[str, Plug]) -> None:
        """Replace both sets in one transaction."""
        ports = ", ".join(f'"{plug.name}" . {plug.mac} . {plug.address}' for plug in plugs.values())
        peers = ", ".join(f"{a} . {b}" for a, b in peer_pairs(plugs.values()))
        lines = [f"flush set {self._table} {name}" for name in self._sets]
        lines += [
            f"add element {self._table} {name} {{ {text} }}"
            for name, text in zip(self._sets, (ports, peers), strict=True)
            if text
        ]
        subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", "nft", "-f", "-"],
            input="\n".join(lines) + "\n",
            text=True,
            check=True,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
        self._plugs = plugs


def peer_pairs(plugs: Any) -> list[tuple[str, str]]:
    """The ordered pairs of addresses that belong to one run; a machine without a run has no peers."""
    return [(a.address, b.address) for a, b in itertools.permutations(plugs, 2) if a.run_key and a.run_key == b.run_key]
