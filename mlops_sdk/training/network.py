"""Which network interface of this machine carries its inventory address (Linux)."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct

from mlops_sdk.errors import NodeFailed

_SIOCGIFADDR = 0x8915
_SIOCGIFNETMASK = 0x891B


def interface_of(address: str) -> tuple[str, str]:
    """Name of the network interface with this IPv4 address, and its network (``10.0.0.0/24``).

    Raises:
        NodeFailed: no interface has it.
    """
    wanted = ipaddress.IPv4Address(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        names = [name for _, name in socket.if_nameindex()]
        for name in names:
            if _ask(handle, name, _SIOCGIFADDR) == wanted:
                mask = _ask(handle, name, _SIOCGIFNETMASK)
                return name, str(ipaddress.IPv4Network(f"{wanted}/{mask}", strict=False))
    raise NodeFailed(
        f"this machine has no network interface with its inventory address {address}",
        seen=f"interfaces: {', '.join(names)}",
        next_step="correct the address in the inventory",
    )


def _ask(handle: socket.socket, name: str, request: int) -> ipaddress.IPv4Address | None:
    try:
        reply = fcntl.ioctl(handle.fileno(), request, struct.pack("256s", name.encode()[:15]))
    except OSError:
        return None
    return ipaddress.IPv4Address(reply[20:24])
