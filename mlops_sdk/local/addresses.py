"""The ports and the subnet of a stack: chosen once per state directory, checked at every start."""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlops_sdk.errors import StackError
from mlops_sdk.local.holders import holder_of
from mlops_sdk.local.layout import Layout, write_private_json

LOOPBACK = "127.0.0.1"
_NAMES = ("rgw", "mlflow", "keystone", "ironic", "bmc", "mon")
# Behind the OSD's ports, where directories of an earlier version have room for them. From `amqp` on: of one profile.
_LATER = ("airflow", "amqp", "amqp_peers", "epmd", "placement", "glance", "neutron", "nova", "cinder", "cyborg")
_OSD_PORTS = 16  # the daemon takes four for its messengers and moves on when one is taken
_LOWEST, _HIGHEST = 20000, 32000  # below the kernel's ephemeral range, so that no outgoing connection takes one
_BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the services of one stack listen. `subnet` is an IPv4 /24; its first host is the stack's own address."""

    subnet: str
    rgw: int
    mlflow: int
    keystone: int
    ironic: int
    bmc: int
    mon: int
    osd_first: int
    airflow: int
    amqp: int
    amqp_peers: int
    epmd: int
    placement: int
    glance: int
    neutron: int
    nova: int
    cinder: int
    cyborg: int

    @property
    def gateway(self) -> str:
        """The stack's address on the machines' network."""
        return str(ipaddress.ip_network(self.subnet)[1])

    @property
    def osd_last(self) -> int:
        """Last port of the OSD's range."""
        return self.osd_first + _OSD_PORTS - 1

    def url(self, service: str, host: str = LOOPBACK) -> str:
        """The HTTP address of a service by its port's name."""
        return f"http://{host}:{self.ports()[service]}"

    def ports(self) -> dict[str, int]:
        """Every named port."""
        return {name: int(getattr(self, name)) for name in (*_NAMES, *_LATER)}


def choose_or_load(layout: Layout) -> Addresses:
    """The addresses of this state directory; the first call chooses and stores them."""
    if layout.ports_json.exists():
        return _load(layout.ports_json)
    first = _free_block(zlib.crc32(str(layout.state_dir).encode()))
    named = {name: first + offset for offset, name in enumerate(_NAMES)}
    osd_first = first + len(_NAMES)
    addresses = Addresses(subnet=_free_subnet(layout.tag), osd_first=osd_first, **named, **_later(osd_first))
    write_private_json(layout.ports_json, asdict(addresses))
    return addresses


def check_free(addresses: Addresses, names: Iterable[str] = (*_NAMES, *_LATER)) -> None:
    """Refuse to start while somebody else listens on one of our ports.

    Raises:
        StackError: names the port and the process that holds it.
    """
    for name in names:
        port = addresses.ports()[name]
        if not _is_free(port):
            raise StackError(
                f"port {port} of the stack's {name} is taken",
                seen=f"held by {holder_of(port)}",
                next_step="stop that process, or remove ports.json from the state directory to choose new ports",
            )


def _load(path: Path) -> Addresses:
    try:
        known: dict[str, Any] = json.loads(path.read_text())
        known = {**_later(known["osd_first"]), **known}
        return Addresses(**known)
    except (KeyError, TypeError, ValueError) as error:
        raise StackError(
            f"{str(path)!r} is damaged", seen=str(error), next_step="remove the state directory and start again"
        ) from error


def _later(osd_first: int) -> dict[str, int]:
    return {name: osd_first + _OSD_PORTS + offset for offset, name in enumerate(_LATER)}


def _free_block(seed: int) -> int:
    blocks = (_HIGHEST - _LOWEST) // _BLOCK
    for attempt in range(blocks):
        first = _LOWEST + (seed + attempt) % blocks * _BLOCK
        if all(_is_free(first + offset) for offset in range(len(_NAMES) + _OSD_PORTS + len(_LATER))):
            return first
    raise StackError(
        f"no {_BLOCK} free ports in a row between {_LOWEST} and {_HIGHEST}", next_step="stop other servers"
    )


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _free_subnet(tag: str) -> str:
    """A /24 in 10.64.0.0/10 that no route of this computer touches."""
    taken = [ipaddress.ip_network(line) for line in _routed_networks()]
    seed = int(tag, 16)
    for attempt in range(64 * 256):
        number = (seed + attempt) % (64 * 256)
        candidate = ipaddress.ip_network(f"10.{64 + number // 256}.{number % 256}.0/24")
        if not any(candidate.overlaps(network) for network in taken):
            return str(candidate)
    raise StackError("no free subnet in 10.64.0.0/10", next_step="remove unused bridges or routes")


def _routed_networks() -> list[str]:
    output = subprocess.run(
        ["ip", "-json", "-4", "route", "show", "table", "all"], check=True, capture_output=True, text=True
    ).stdout
    found: list[str] = []
    for route in json.loads(output or "[]"):
        destination = str(route.get("dst", "default"))
        if destination != "default" and route.get("type", "unicast") != "broadcast":
            found.append(destination)
    return found
