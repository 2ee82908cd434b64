"""The network of an embedded stack: a bridge with a firewall, in a network namespace that a process holds.

    host's namespace                     the fabric's namespace                     a machine's namespace
    mlh-<tag>  <subnet>.1   ---veth---  host --- fabric0 (bridge) --- gpu-01 ---veth---  eth0  <subnet>.11

Nothing is pinned to a file or name: each namespace lives as long as the processes in it, and takes its interfaces
(and their other ends) with it. So a stack that is killed leaves no interface behind. Only the host end has a name
outside, made from the stack's tag; a left-over is swept before it is made again.

The firewall drops by default and keeps no state. Let through are: everything between machines of one run; TCP from the
stack to port 22 of machines; TCP from machines to the stack's published ports; and the packets that answer these
(source port matches, not an opening SYN). Addresses are bound to bridge ports, so a machine cannot borrow another's.
The BMC farm enters each machine when it powers on (set `ports`) and its peers (set `peers`), Nova's host its servers
(`server_ports`, `server_peers`). Static hosts are known from the start; what they serve is open to the stack.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from mlops_sdk.errors import StackError

_BRIDGE = "fabric0"
_HOST_PORT = "host"
_TABLE = "mlops"
_SSH = 22
_TIMEOUT_S = 20
_NOT_OPENING = "tcp flags & (syn | ack) != syn"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAddress:
    """An IPv4 address that this computer already has."""

    interface: str
    network: ipaddress.IPv4Network


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticHost:
    """A host that is always on the bridge, under its name; `serves` is its one port that is open to the stack."""

    name: str
    mac: str
    address: str
    serves: int


class Fabric:
    """The running network of one stack. Use as a context manager, or call `stop`.

    Attributes:
        interface: Name of the interface in the host's namespace.
        subnet: The machines' network.
        address: The stack's own address in it: where services for machines listen.
        pid: The process that holds the namespace.
    """

    def __init__(self, *, holder: subprocess.Popen[bytes], interface: str, subnet: ipaddress.IPv4Network) -> None:
        self._holder = holder
        self.interface = interface
        self.subnet = subnet
        self.address = str(subnet[1])
        self.pid = holder.pid

    @classmethod
    def start(
        cls, tag: str, subnet: str, *, published_ports: Sequence[int], hosts: Sequence[StaticHost] = ()
    ) -> Fabric:
        """Make the network; what an earlier one with the same tag left is removed first.

        Args:
            tag: Names the stack (`Layout.tag`); at most 11 characters, for the kernel allows names of 15.
            subnet: A /24.
            published_ports: TCP ports at the stack's address that machines may connect to (S3).
            hosts: Beside the machines.

        Raises:
            StackError: when another interface has an address in the subnet, or the kernel refuses (root is needed).
        """
        network = ipaddress.IPv4Network(subnet)
        interface = f"mlh-{tag}"
        _sweep(interface)
        _refuse_conflict(network, host_addresses())
        holder = _hold_namespace()
        fabric = cls(holder=holder, interface=interface, subnet=network)
        try:
            _run(["ip", "link", "add", interface, "type", "veth", "peer", "name", _HOST_PORT, "netns", str(holder.pid)])
            _inside(holder.pid, ["ip", "-batch", "-"], _bridge_commands())
            _inside(holder.pid, ["nft", "-f", "-"], ruleset(network, published_ports, hosts))
            _run(["ip", "address", "add", f"{fabric.address}/{network.prefixlen}", "dev", interface])
            _run(["ip", "link", "set", interface, "addrgenmode", "none", "up"])
        except BaseException:
            fabric.stop()
            raise
        return fabric

    def stop(self) -> None:
        """End the network. Machines that are still on lose it. Idempotent."""
        _sweep(self.interface)
        if self._holder.stdin is not None:
            self._holder.stdin.close()
        self._holder.kill()
        self._holder.wait()

    @property
    def alive(self) -> bool:
        """Whether the namespace is still held."""
        return self._holder.poll() is None

    def to_json(self) -> dict[str, Any]:
        """What the BMC farm needs to plug machines in (`inventory.farm_config`)."""
        return {
            "pid": self.pid,
            "bridge": _BRIDGE,
            "table": _TABLE,
            "prefix_length": self.subnet.prefixlen,
            "stack_address": self.address,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def host_addresses() -> list[HostAddress]:
    """All IPv4 addresses of this computer, with their networks."""
    found: list[HostAddress] = []
    for link in json.loads(_run(["ip", "-json", "-4", "address", "show"]) or "[]"):
        for info in link.get("addr_info", []):
            network = ipaddress.IPv4Network(f"{info['local']}/{info['prefixlen']}", strict=False)
            found.append(HostAddress(interface=str(link["ifname"]), network=network))
    return found


def ruleset(subnet: ipaddress.IPv4Network, published_ports: Sequence[int], hosts: Sequence[StaticHost] = ()) -> str:
    """The firewall, in nft's language."""
    known = "".join(
        f"""
    ether type arp iifname "{host.name}" ether saddr {host.mac} arp saddr ip {host.address} goto arp_from_machine
    ether type ip iifname "{host.name}" ether saddr {host.mac} ip saddr {host.address} goto from_machine"""
        for host in hosts
    )
    asked = "".join(
        f"\n    ip saddr {subnet[1]} ip daddr {host.address} tcp dport {host.serves} accept" for host in hosts
    )
    answers = "".join(
        f"""
    oifname "{_HOST_PORT}" ip saddr {host.address} ip daddr {subnet[1]} tcp sport {host.serves} {_NOT_OPENING} accept"""
        for host in hosts
    )
    stack = subnet[1]
    published = ", ".join(str(port) for port in sorted(set(published_ports))) or "0"
    return f"""
table bridge {_TABLE} {{
  # who may speak: bridge port, link address, IPv4 address of each machine that is on
  set ports {{ type ifname . ether_addr . ipv4_addr; }}
  # who may speak to whom: ordered pairs of machines of the same run
  set peers {{ type ipv4_addr . ipv4_addr; }}
  # the same of Nova's servers: each set has one writer
  set server_ports {{ type ifname . ether_addr . ipv4_addr; }}
  set server_peers {{ type ipv4_addr . ipv4_addr; }}

  chain forward {{
    type filter hook forward priority 0; policy drop;
    iifname "{_HOST_PORT}" goto from_stack
    ether type arp iifname . ether saddr . arp saddr ip @ports goto arp_from_machine
    ether type ip iifname . ether saddr . ip saddr @ports goto from_machine
    ether type arp iifname . ether saddr . arp saddr ip @server_ports goto arp_from_machine
    ether type ip iifname . ether saddr . ip saddr @server_ports goto from_machine{known}
  }}
  chain from_stack {{
    ether type arp arp saddr ip {stack} accept
    ip saddr {stack} tcp dport {_SSH} accept{asked}
    ip saddr {stack} tcp sport {{ {published} }} {_NOT_OPENING} accept
    drop
  }}
  chain arp_from_machine {{
    arp daddr ip {stack} accept
    arp saddr ip . arp daddr ip @peers accept
    arp saddr ip . arp daddr ip @server_peers accept
    drop
  }}
  chain from_machine {{
    oifname "{_HOST_PORT}" ip daddr {stack} tcp dport {{ {published} }} accept
    oifname "{_HOST_PORT}" ip daddr {stack} tcp sport {_SSH} {_NOT_OPENING} accept{answers}
    oifname != "{_HOST_PORT}" ip saddr . ip daddr @peers accept
    oifname != "{_HOST_PORT}" ip saddr . ip daddr @server_peers accept
    drop
  }}
}}
"""


def _bridge_commands() -> str:
    return f"""
link set lo up
link add {_BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0
link set {_BRIDGE} addrgenmode none up
link set {_HOST_PORT} master {_BRIDGE} addrgenmode none up
"""


def _refuse_conflict(subnet: ipaddress.IPv4Network, addresses: Iterable[HostAddress]) -> None:
    for address in addresses:
        if subnet.overlaps(address.network):
            raise StackError(
                f"the machines' network {str(subnet)!r} is already in use on this computer",
                seen=f"interface {address.interface!r} has an address in {str(address.network)!r}",
                next_step="stop the stack or service that owns the interface, or choose another subnet in the stack's "
                "ports.json",
            )


def _hold_namespace() -> subprocess.Popen[bytes]:
    """A process that does nothing but hold a new network namespace, and ends when we do (its input closes)."""
    holder = subprocess.Popen(
        ["unshare", "--net", "--", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if holder.stdout is None or holder.stdout.readline() != b"ready\n":
        _, error = holder.communicate()
        raise StackError(
            "the network namespace of the stack could not be made",
            seen=error.decode(errors="replace").strip(),
            next_step="run as root, on a kernel with network namespaces",
        )
    return holder


def _sweep(interface: str) -> None:
    """Remove an interface if it is there. The kernel may be removing it at the same time; that is fine."""
    subprocess.run(["ip", "link", "delete", interface], capture_output=True, check=False, timeout=_TIMEOUT_S)


def _inside(pid: int, command: list[str], text: str) -> None:
    _run(["nsenter", f"--net=/proc/{pid}/ns/net", "--", *command], text)


def _run(command: list[str], text: str | None = None) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    except FileNotFoundError as error:
        raise StackError(
            f"the program {command[0]!r} is not installed",
            seen=str(error),
            next_step="run `make up`, which installs it",
        ) from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        seen = error.stderr if isinstance(error.stderr, str) and error.stderr else str(error)
        raise StackError(
            f"the network of the stack could not be set up: {' '.join(command)!r} failed",
            seen=seen.strip(),
            next_step="run as root, on a kernel with veth, bridge and nf_tables for bridges",
        ) from error
    return done.stdout
