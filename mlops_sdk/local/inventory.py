"""The reference inventory of the embedded stack: four 8x H200 servers on two InfiniBand leaves. Pure data.

With the compute profile come two more on a third leaf, which are set aside for Nova.

Only the hardware is made up: what stands here is what the BMCs report, what Ironic is told, and what the machines'
network uses. Everything follows from the stack's subnet and the node's number, so two calls give equal inventories.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

RESOURCE_CLASS = "gpu.h200.8x"
TRAITS = ("CUSTOM_GPU_H200", "CUSTOM_IB_NDR400", "CUSTOM_RAILS_8")
IMAGE_NAME = "train-1"
METAL_CLASS = "metal.h200.8x"
METAL_SHARD = "nova"

_RAILS = 8
_GPUS = 8
_DRIVES = 8
_NODES_PER_LEAF = 2
_METAL = (5, 6)  # their numbers
_FIRST_NODE_HOST = 11  # node 1 is .11: the bridge has .1, and numbers stay readable


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """A CPU socket."""

    name: str
    vendor: str
    model: str
    cores: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """An accelerator; ids are PCI ids without `0x`."""

    name: str
    model: str
    vendor_id: str
    device_id: str
    serial: str
    memory_gib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """An NVMe drive."""

    name: str
    model: str
    serial: str
    capacity_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPort:
    """A cabled network port and the switch port at the other end.

    Attributes:
        name: `rail0`..`rail7` for InfiniBand, `eth0`, `eth1` for Ethernet; also Ironic's `physical_network`.
        kind: What the link carries.
        mac: Link address; for InfiniBand the 6 bytes that Ironic wants, made from the GUID.
        client_id: DHCP client id of an InfiniBand port ("" for Ethernet).
        switch: Name of the switch.
        switch_id: The switch's chassis id (a MAC).
        switch_port: Port number on the switch.
        gbps: Link rate.
        adapter: Model of the adapter.
    """

    name: str
    kind: Literal["InfiniBand", "Ethernet"]
    mac: str
    client_id: str
    switch: str
    switch_id: str
    switch_port: int
    gbps: int
    adapter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineInventory:
    """One server: identity, address, parts, cabling, versions.

    Attributes:
        system_uuid: The id under which the BMC serves it.
        address: IPv4 address of its SSH daemon.
        leaf: The leaf switch its rails hang on.
        position: Leaf port of its first rail: neighbours in rank order should be neighbours here.
    """

    name: str
    system_uuid: str
    serial: str
    address: str
    leaf: str
    position: int
    spine: str
    rack: str
    memory_gib: int
    bmc_firmware: str
    bios_version: str
    driver: str
    processors: tuple[Processor, ...]
    gpus: tuple[Gpu, ...]
    drives: tuple[Drive, ...]
    infiniband: tuple[NetworkPort, ...]
    ethernet: tuple[NetworkPort, ...]

    @property
    def topology(self) -> dict[str, str | int]:
        """Where it stands in the InfiniBand fabric, as kept in `node.extra["topology"]`."""
        return {"leaf": self.leaf, "position": self.position, "spine": self.spine}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Machines of a stack, what they are for a scheduler, and their image.

    Attributes:
        shard: Of Ironic: which part of its machines somebody else may manage; "" for those that nobody else does.
        unowned: Names of machines that belong to no project: in Ironic only who operates the cloud sees them.
    """

    subnet: str
    resource_class: str
    traits: tuple[str, ...]
    image: str
    machines: tuple[MachineInventory, ...]
    shard: str = ""
    unowned: tuple[str, ...] = ()


def reference_inventory(subnet: str, *, machines: int = 4, image: str = IMAGE_NAME) -> Inventory:
    """The inventory of a stack whose machines live in `subnet` (a /24, such as ``10.77.3.0/24``).

    Example:
        >>> [m.address for m in reference_inventory("10.77.3.0/24").machines]
        ['10.77.3.11', '10.77.3.12', '10.77.3.13', '10.77.3.14']
    """
    network = ipaddress.IPv4Network(subnet)
    return Inventory(
        subnet=str(network),
        resource_class=RESOURCE_CLASS,
        traits=TRAITS,
        image=image,
        machines=tuple(_machine(network, number) for number in range(1, machines + 1)),
    )


def metal_inventory(subnet: str, *, image: str = IMAGE_NAME) -> Inventory:
    """What Nova leases as whole machines: two, of which one belongs to the project of the stack's user.

    Example:
        >>> [m.address for m in metal_inventory("10.77.3.0/24").machines]
        ['10.77.3.15', '10.77.3.16']
    """
    network = ipaddress.IPv4Network(subnet)
    names = ("metal-01", "metal-02")
    return Inventory(
        subnet=str(network),
        resource_class=METAL_CLASS,
        traits=TRAITS,
        image=image,
        machines=tuple(
            replace(_machine(network, number), name=name) for number, name in zip(_METAL, names, strict=True)
        ),
        shard=METAL_SHARD,
        unowned=names[1:],
    )


def farm_config(
    machines: Iterable[MachineInventory],
    *,
    port: int,
    username: str,
    password: str,
    state_dir: str,
    image_dir: str,
    fabric: dict[str, Any],
    scratch_mib: int | None = None,
) -> dict[str, Any]:
    """The configuration file of the BMC farm (`infra/local/farm/farm.py --config`). Holds a password: write it 0600.

    Args:
        machines: Those behind the BMCs.
        port: TCP port on loopback where all BMCs answer.
        username: The BMC account.
        password: Its password.
        state_dir: Where each machine has its slot, `<state_dir>/<name>/`.
        image_dir: The Python environment that machines see read-only at /opt/image.
        fabric: What `network.Fabric.to_json` returns.
        scratch_mib: Size limit of each machine's /scratch; default: the disk the state directory is on.
    """
    return {
        "port": port,
        "username": username,
        "password": password,
        "state_dir": state_dir,
        "image_dir": image_dir,
        "scratch_mib": scratch_mib,
        "fabric": fabric,
        "machines": [asdict(machine) for machine in machines],
    }


def _machine(network: ipaddress.IPv4Network, number: int) -> MachineInventory:
    leaf = (number - 1) // _NODES_PER_LEAF + 1
    slot = (number - 1) % _NODES_PER_LEAF
    return MachineInventory(
        name=f"gpu-{number:02d}",
        system_uuid=f"67707500-0000-4000-8000-{number:012d}",
        serial=f"SN-GPU-{number:04d}",
        address=str(network[_FIRST_NODE_HOST + number - 1]),
        leaf=f"leaf-{leaf:02d}",
        position=slot * _RAILS + 1,
        spine="spine-01",
        rack=f"rack-{leaf:02d}",
        memory_gib=2048,
        bmc_firmware="24.09.17",
        bios_version="2.3.1",
        driver="570.133.20",
        processors=tuple(
            Processor(name=f"CPU{k}", vendor="Intel", model="Xeon Platinum 8480C", cores=56, threads=112)
            for k in (0, 1)
        ),
        gpus=tuple(
            Gpu(
                name=f"GPU{k}",
                model="H200 SXM5 141GB",
                vendor_id="10de",
                device_id="2335",
                serial=f"{number:04d}{k:04d}",
                memory_gib=141,
            )
            for k in range(_GPUS)
        ),
        drives=tuple(
            Drive(name=f"nvme{k}", model="PM9A3", serial=f"S{number:03d}{k:03d}", capacity_bytes=3_840_000_000_000)
            for k in range(_DRIVES)
        ),
        infiniband=tuple(_rail(number, rail, leaf=leaf, slot=slot) for rail in range(_RAILS)),
        ethernet=tuple(_ethernet(number, k) for k in (0, 1)),
    )


def _rail(number: int, rail: int, *, leaf: int, slot: int) -> NetworkPort:
    guid = f"b8:3f:d2:03:00:{number:02x}:00:{rail:02x}"
    return NetworkPort(
        name=f"rail{rail}",
        kind="InfiniBand",
        mac=f"b8:3f:d2:00:{number:02x}:{rail:02x}",
        client_id=f"ff:00:00:00:00:00:02:00:00:02:c9:00:{guid}",
        switch=f"leaf-{leaf:02d}",
        switch_id=f"0c:42:a1:00:00:{leaf:02x}",
        switch_port=slot * _RAILS + rail + 1,
        gbps=400,
        adapter="ConnectX-7",
    )


def _ethernet(number: int, index: int) -> NetworkPort:
    return NetworkPort(
        name=f"eth{index}",
        kind="Ethernet",
        mac=f"02:4d:4c:00:{number:02x}:{index:02x}",
        client_id="",
        switch=f"tor-{index + 1:02d}",
        switch_id=f"0c:42:a1:01:00:{index + 1:02x}",
        switch_port=number,
        gbps=200,
        adapter="BlueField-3",
    )
