"""haproxy in front of the slots: its backend as a file, its runtime API, what it says about its servers. Pure.

The file and the runtime API say the same thing: the file is written first, so a haproxy that restarts at any moment
comes up with a slot that serves.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mlops_sdk.errors import ServingError

BACKEND = "vllm"
BACKEND_FILE = "backend.cfg"
VERSIONS_FILE = "versions.map"
NO_VERSION = "none"
LOOK = (f"show servers state {BACKEND}", f"show stat {BACKEND} 4 -1")
_MAINT, _DRAIN = 0x01 | 0x02 | 0x20, 0x08 | 0x10  # haproxy's management guide, `show servers state`: srv_admin_state
_RUNNING = {1, 2}  # srv_op_state: starting, running


class Admin(StrEnum):
    """What a server was told: take requests; finish what you have; be out."""

    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server of the backend. `up`: haproxy's own check of it passes; `sessions`: requests in flight."""

    admin: Admin
    up: bool
    sessions: int


def backend(folder: str, ports: Mapping[str, int], ready: Sequence[str]) -> str:
    """The backend's part of haproxy's configuration, with only the `ready` slots enabled."""
    servers = [
        f"  server {slot} 127.0.0.1:{port}{'' if slot in ready else ' disabled'}"
        for slot, port in sorted(ports.items())
    ]
    return "\n".join(
        (
            "# written at each roll-out",
            f"backend {BACKEND}",
            "  balance leastconn",
            "  option httpchk GET /health",
            "  default-server check inter 1s fall 2 rise 1",
            f"  http-response set-header x-mlops-model-version %[srv_name,map({folder}/{VERSIONS_FILE},{NO_VERSION})]",
            *servers,
            "",
        )
    )


def versions(of_slots: Mapping[str, str]) -> str:
    """The map from slot to model version, from which each answer gets its header."""
    return "".join(f"{slot} {version or NO_VERSION}\n" for slot, version in sorted(of_slots.items()))


def order(slot: str, admin: Admin) -> str:
    """The command that changes a server's state."""
    return f"set server {BACKEND}/{slot} state {admin}"


def announce(folder: str, slot: str, version: str, *, known: bool = True) -> str:
    """The command that changes a slot's version in the running proxy; one that is not `known` there is added."""
    return f"{'set' if known else 'add'} map {folder}/{VERSIONS_FILE} {slot} {version or NO_VERSION}"


def unknown(reply: str) -> bool:
    """Whether the running proxy has no entry to change: it came up with a map that lacks the slot."""
    return "entry not found" in reply


def refused(reply: str) -> bool:
    """Whether a reply to a command that changes something says that nothing was changed: success is silence."""
    return bool(reply.strip())


def read_servers(replies: Sequence[str]) -> dict[str, Server]:
    """The servers, from the replies to `LOOK`.

    Raises:
        ServingError: haproxy has no such backend.
    """
    state, stat = replies
    sessions = {row["svname"]: int(row["scur"] or 0) for row in _table(stat, ",")}
    found: dict[str, Server] = {}
    for row in _table(state.partition("\n")[2], " "):
        flags = int(row["srv_admin_state"])
        admin = Admin.MAINT if flags & _MAINT else Admin.DRAIN if flags & _DRAIN else Admin.READY
        up = int(row["srv_op_state"]) in _RUNNING
        found[row["srv_name"]] = Server(admin=admin, up=up, sessions=sessions.get(row["srv_name"], 0))
    if not found:
        raise ServingError(
            f"haproxy on the serving host has no servers in backend {BACKEND!r}",
            seen=state[:200],
            next_step=f"load {BACKEND_FILE} from the target's proxy folder into haproxy's configuration",
        )
    return found


def _table(text: str, separator: str) -> list[dict[str, str]]:
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.strip()]
    return list(csv.DictReader(lines, delimiter=separator))
