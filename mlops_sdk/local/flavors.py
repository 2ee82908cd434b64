"""The flavors, network and limits of the embedded stack's Nova. Pure data.

The host behind them (`infra/local/compute_drivers`): two NUMA nodes with 56 cores each to pin, eight A100 80GB, of
which four are passed through, two are divided into four vGPUs, and two into seven MIG instances; and two A30, which
Cyborg hands out. Behind the last flavor are whole machines of Ironic (`inventory.metal_inventory`), where the stack
has these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

CARD_TRAIT: Final = "CUSTOM_GPU_A100_80GB"
MIG_CLASS: Final = "CUSTOM_MIG_1G_10GB"
METAL_FLAVOR: Final = "gpu.h200.metal"
METAL_RESOURCE: Final = "CUSTOM_METAL_H200_8X"  # `inventory.METAL_CLASS` as Placement writes it
CYBORG_TRAIT: Final = "CUSTOM_GPU_A30"
PROFILES: Final = {"a30": ({"resources:PGPU": "1", f"trait:{CYBORG_TRAIT}": "required"},)}  # Cyborg's: groups by name
NETWORK: Final = "machines"
_PINNED: Final = {"hw:cpu_policy": "dedicated", "hw:numa_nodes": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavor:
    """A flavor as an operator makes it."""

    name: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    extra_specs: Mapping[str, str] = field(default_factory=dict[str, str])


FLAVORS: Final = (
    Flavor(
        name="gpu.a100.pt",
        vcpus=16,
        memory_mib=131_072,
        disk_gib=200,
        extra_specs={"pci_passthrough:alias": "a100:1", "hw:pci_numa_affinity_policy": "required", **_PINNED},
    ),
    Flavor(
        name="gpu.a100.vgpu",
        vcpus=4,
        memory_mib=32_768,
        disk_gib=50,
        extra_specs={"resources:VGPU": "1", f"trait:{CARD_TRAIT}": "required", **_PINNED},
    ),
    Flavor(
        name="gpu.a100.mig",
        vcpus=2,
        memory_mib=16_384,
        disk_gib=50,
        extra_specs={f"resources:{MIG_CLASS}": "1", f"trait:{CARD_TRAIT}": "required", **_PINNED},
    ),
    Flavor(
        name="gpu.a30.cyborg",
        vcpus=8,
        memory_mib=65_536,
        disk_gib=100,
        extra_specs={"accel:device_profile": "a30", **_PINNED},
    ),
    Flavor(name="cpu.small", vcpus=1, memory_mib=2_048, disk_gib=10),
    Flavor(
        name=METAL_FLAVOR,
        vcpus=224,
        memory_mib=2_097_152,
        disk_gib=3_576,
        extra_specs={
            f"resources:{METAL_RESOURCE}": "1",
            "resources:VCPU": "0",
            "resources:MEMORY_MB": "0",
            "resources:DISK_GB": "0",
            "trait:CUSTOM_GPU_H200": "required",
        },
    ),
)

EXPECTED: Final[Mapping[str, Mapping[str, str | int | bool]]] = {
    "gpu.a100.pt": {
        "delivery": "passthrough",
        "accelerators": 1,
        "numa_affinity": "required",
        "numa_nodes": 1,
        "pinned": True,
        "placement_class": CARD_TRAIT,
    },
    "gpu.a100.vgpu": {"delivery": "vgpu", "accelerators": 1, "card": "A100 80GB", "pinned": True},
    "gpu.a100.mig": {"delivery": "mig", "accelerators": 1, "card": "A100 80GB", "pinned": True},
    "gpu.a30.cyborg": {"delivery": "cyborg", "accelerators": 1, "card": "A30", "pinned": True},
    "cpu.small": {"delivery": "none"},
    METAL_FLAVOR: {"delivery": "bare_metal", "accelerators": 8, "card": "H200"},
}
