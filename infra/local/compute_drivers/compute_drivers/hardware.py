"""The one GPU host of the embedded stack's Nova: what it reports about itself. Pure data.

Two sockets of 64 cores, one NUMA node each, 1 TiB of memory, eight NVIDIA A100 80GB. Of the cards, four are for
passthrough (two a socket), two are divided into vGPUs, two into MIG instances. Besides, two NVIDIA A30, one a
socket, which Cyborg hands out. Only this description is made up; Nova, Placement and Cyborg count, refuse and place as
they do on a real host.
"""

from __future__ import annotations

from typing import Any

VENDOR, PRODUCT = "10de", "20b2"  # NVIDIA A100 SXM4 80GB
CARD_TRAIT = "CUSTOM_GPU_A100_80GB"
PASSTHROUGH_CLASS = "CUSTOM_GPU_A100_80GB"
MIG_CLASS = "CUSTOM_MIG_1G_10GB"
VGPU_CLASS = "VGPU"
WHOLE_CLASS = "PGPU"  # under which Cyborg counts cards that it hands out whole
WHOLE_PRODUCT, WHOLE_TRAIT = "20b7", "CUSTOM_GPU_A30"  # NVIDIA A30 24GB

SOCKETS = 2
CORES = 64  # of a socket
SHARED = 8  # cores of a socket for servers without pinning
MEMORY_MIB = 512 * 1024  # of a socket
DISK_GIB = 20_000

_MIG_INSTANCES = 7  # a card gives at most seven of its smallest instance
_VGPUS = 4  # of a quarter of the card's memory each
_PASSTHROUGH = ("0000:07:00.0", "0000:0f:00.0", "0000:87:00.0", "0000:90:00.0")
_VGPU_CARDS = ("0000:47:00.0", "0000:b7:00.0")
_MIG_CARDS = ("0000:4e:00.0", "0000:bd:00.0")
_WHOLE_CARDS = ("0000:1b:00.0", "0000:9b:00.0")


def socket_of(address: str) -> int:
    """Which socket a card hangs on: buses below 0x80 on the first."""
    return int(int(address.split(":")[1], 16) >= 0x80)  # noqa: PLR2004 - as the line above says


def cores_of(socket: int) -> set[int]:
    """The numbers of a socket's cores."""
    return set(range(socket * CORES, (socket + 1) * CORES))


def shared_of(socket: int) -> set[int]:
    """Its cores for servers without pinning; all others are handed out one by one."""
    return set(range(socket * CORES, socket * CORES + SHARED))


def pci_devices() -> list[dict[str, Any]]:
    """The cards for passthrough, as a virt driver reports them to Nova."""
    return [
        {
            "dev_id": "pci_" + address.replace(":", "_").replace(".", "_"),
            "address": address,
            "vendor_id": VENDOR,
            "product_id": PRODUCT,
            "status": "available",
            "dev_type": "type-PCI",
            "parent_addr": None,
            "numa_node": socket_of(address),
            "label": f"label_{VENDOR}_{PRODUCT}",
        }
        for address in _PASSTHROUGH
    ]


def divided_cards(host: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The divided cards as Placement sees them, below the host: ``{provider: {resource class: inventory}}``."""
    parts = [(address, VGPU_CLASS, _VGPUS) for address in _VGPU_CARDS]
    parts += [(address, MIG_CLASS, _MIG_INSTANCES) for address in _MIG_CARDS]
    return {_provider(host, address): {resource_class: inventory(total)} for address, resource_class, total in parts}


def whole_cards(host: str) -> dict[str, str]:
    """The PCI addresses of the cards that Cyborg hands out, by their provider's name in Placement."""
    return {_provider(host, address): address for address in _WHOLE_CARDS}


def inventory(total: int) -> dict[str, Any]:
    """What Placement counts, without overcommitment."""
    return {
        "total": total,
        "reserved": 0,
        "min_unit": 1,
        "max_unit": total,
        "step_size": 1,
        "allocation_ratio": 1.0,
    }


def _provider(host: str, address: str) -> str:
    return f"{host}_pci_{address.replace(':', '_').replace('.', '_')}"
