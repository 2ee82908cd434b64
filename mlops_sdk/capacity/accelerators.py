"""Facts about accelerators: memory, how a card can be divided, which licence that needs, by what names clouds know it.

One table, `CARDS`. **None of it was run on hardware by us**: it is what the vendors and the PCI ID database say.

- MIG profiles and how many of each: NVIDIA Multi-Instance GPU User Guide, "Supported GPUs" and "Supported MIG
  Profiles"; for GB200, B300 and GB300 NVIDIA's mig-parted, ``deployments/systemd/config-default.yaml`` (2026-08).
  Where an instance may begin: the same guide's ``nvidia-smi mig -lgipp`` of H100 and A30; the RTX PRO 6000 is taken to
  be laid out as the A30, which also has four slices.
- Peer to peer, MIG in a guest: the same guide, "Deployment Considerations"; NVIDIA AI Enterprise, "Peer-To-Peer CUDA
  Transfers" (a vGPU has it only when it is a whole card).
- vGPU and its licence: NVIDIA AI Enterprise, "NVIDIA vGPU for Compute" ("licensed exclusively through NVIDIA AI
  Enterprise") and its reference of vGPU types by architecture.
- AMD: virtual functions a card by release 9.4.0.K of AMD's GIM driver (open source, no licence; more than one is a
  preview on the MI300X); partitions: AMD SMI, "GPU partitioning".
- Vendor and device ids: pci.ids of 2026-08-22.

Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mlops_sdk.errors import CardNotDivisible

MOST_INSTANCES: Final = 7
AI_ENTERPRISE: Final = "NVIDIA AI Enterprise"


class Vendor(enum.Enum):
    """Who makes it; the value is its PCI vendor id."""

    NVIDIA = "10de"
    AMD = "1002"


@dataclass(frozen=True, slots=True, kw_only=True)
class MigProfile:
    """A size of MIG instance.

    Attributes:
        name: As NVIDIA's tools write it: ``1g.18gb``.
        memory_gb: Of one instance, rounded as in its name.
        slices: Of the card's memory that it takes.
        starts: At which slice it may begin.
    """

    name: str
    memory_gb: int
    slices: int
    starts: tuple[int, ...]

    @property
    def most(self) -> int:
        """How many of it one card holds."""
        return len(self.starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One model of accelerator.

    Attributes:
        name: Short, as in ``H200``.
        vendor: Who makes it.
        memory_gb: As the vendor counts.
        device_ids: PCI device ids of its variants.
        mig: Its MIG profiles, smallest first; empty: it has no MIG.
        vgpu_licence: What sharing it between virtual machines must be licensed as; empty: nothing, or there is no vGPU
            for it (not in NVIDIA's reference: the Grace superchips).
        functions: Into how many virtual functions it can be divided; empty: it has no fixed ones (NVIDIA: what the
            host's driver offers; AMD without them: it cannot be shared).
        peers: The link over which whole cards reach each other's memory; empty: PCIe only.
    """

    name: str
    vendor: Vendor
    memory_gb: int
    device_ids: tuple[str, ...]
    mig: tuple[MigProfile, ...] = ()
    vgpu_licence: str = ""
    functions: tuple[int, ...] = ()
    peers: str = ""

    @property
    def most_instances(self) -> int:
        """MIG instances that one card can hold, 0 without MIG."""
        return max((profile.most for profile in self.mig), default=0)

    @property
    def shareable(self) -> bool:
        """Whether several virtual machines can share one card without MIG."""
        return bool(self.vgpu_licence) or any(number > 1 for number in self.functions)

    @property
    def trait(self) -> str:
        """The trait by which machines with this card are asked for."""
        return "CUSTOM_GPU_" + self.name.upper().replace(" ", "_")

    @property
    def placement_classes(self) -> tuple[str, ...]:
        """Resource classes under which Nova's PCI tracking shows it in Placement, unless it is configured otherwise."""
        return tuple(f"CUSTOM_PCI_{self.vendor.value}_{device}".upper() for device in self.device_ids)

    def profile(self, name: str) -> MigProfile:
        """One of its MIG profiles.

        Raises:
            CardNotDivisible: it has no such profile.
        """
        for profile in self.mig:
            if profile.name == name:
                return profile
        has = ", ".join(profile.name for profile in self.mig) or "no MIG profile at all"
        raise CardNotDivisible(
            f"card {self.name!r} has no MIG profile {name!r}", seen=f"it has {has}", next_step="ask for one of its own"
        )


def _seven(*sizes: int) -> tuple[MigProfile, ...]:
    """Profiles of a card with seven compute and eight memory slices, by their memory: 1, 2, 4 and 8 eighths."""
    one, two, half, whole = sizes
    return (
        MigProfile(name=f"1g.{one}gb", memory_gb=one, slices=1, starts=(0, 1, 2, 3, 4, 5, 6)),
        MigProfile(name=f"1g.{two}gb", memory_gb=two, slices=2, starts=(0, 2, 4, 6)),
        MigProfile(name=f"2g.{two}gb", memory_gb=two, slices=2, starts=(0, 2, 4)),
        MigProfile(name=f"3g.{half}gb", memory_gb=half, slices=4, starts=(0, 4)),
        MigProfile(name=f"4g.{half}gb", memory_gb=half, slices=4, starts=(0,)),
        MigProfile(name=f"7g.{whole}gb", memory_gb=whole, slices=8, starts=(0,)),
    )


def _four(*sizes: int) -> tuple[MigProfile, ...]:
    """Profiles of a card with four slices."""
    one, half, whole = sizes
    return (
        MigProfile(name=f"1g.{one}gb", memory_gb=one, slices=1, starts=(0, 1, 2, 3)),
        MigProfile(name=f"2g.{half}gb", memory_gb=half, slices=2, starts=(0, 2)),
        MigProfile(name=f"4g.{whole}gb", memory_gb=whole, slices=4, starts=(0,)),
    )


def _nvidia(
    name: str,
    memory_gb: int,
    device_ids: tuple[str, ...],
    *,
    mig: tuple[MigProfile, ...] = (),
    peers: str = "NVLink",
    vgpu: bool = True,
) -> Card:
    return Card(
        name=name,
        vendor=Vendor.NVIDIA,
        memory_gb=memory_gb,
        device_ids=device_ids,
        mig=mig,
        vgpu_licence=AI_ENTERPRISE if vgpu else "",
        peers=peers,
    )


def _amd(name: str, memory_gb: int, device_ids: tuple[str, ...], *, functions: tuple[int, ...]) -> Card:
    return Card(
        name=name,
        vendor=Vendor.AMD,
        memory_gb=memory_gb,
        device_ids=device_ids,
        functions=functions,
        peers="Infinity Fabric",
    )


CARDS: Final[tuple[Card, ...]] = (
    _nvidia("GB300", 278, ("31c2", "31c3"), mig=_seven(35, 70, 139, 278), vgpu=False),
    _nvidia("B300", 269, ("3182",), mig=_seven(34, 67, 135, 269)),
    _nvidia("GB200", 186, ("2941",), mig=_seven(23, 47, 93, 186), vgpu=False),
    _nvidia("B200", 180, ("2901",), mig=_seven(23, 45, 90, 180)),
    _nvidia("H200", 141, ("2335",), mig=_seven(18, 35, 71, 141)),
    _nvidia("H200 NVL", 141, ("233b",), mig=_seven(18, 35, 71, 141)),
    _nvidia("GH200", 96, ("2342",), mig=_seven(12, 24, 48, 96), vgpu=False),
    _nvidia("H100", 80, ("2330",), mig=_seven(10, 20, 40, 80)),
    _nvidia("H100 PCIe", 80, ("2331",), mig=_seven(10, 20, 40, 80)),
    _nvidia("H100 NVL", 94, ("2321",), mig=_seven(12, 24, 47, 94)),
    _nvidia("H20", 96, ("2329",), mig=_seven(12, 24, 48, 96)),
    _nvidia("A100 80GB", 80, ("20b2", "20b5"), mig=_seven(10, 20, 40, 80)),
    _nvidia("A100 40GB", 40, ("20b0", "20b1", "20f1"), mig=_seven(5, 10, 20, 40)),
    _nvidia("A30", 24, ("20b7",), mig=_four(6, 12, 24)),
    _nvidia("RTX PRO 6000", 96, ("2bb5",), mig=_four(24, 48, 96), peers=""),
    _nvidia("L40S", 48, ("26b9",), peers=""),
    _nvidia("L40", 48, ("26b5",), peers=""),
    _nvidia("L4", 24, ("27b8",), peers=""),
    _nvidia("A40", 48, ("2235",)),
    _nvidia("A10", 24, ("2236",), peers=""),
    _nvidia("T4", 16, ("1eb8",), peers=""),
    _nvidia("V100 32GB", 32, ("1db5", "1db6", "1df6")),
    _amd("MI355X", 288, ("75a3",), functions=(1, 2, 8)),
    _amd("MI350X", 288, ("75a0",), functions=(1, 2, 8)),
    _amd("MI325X", 256, ("74a5",), functions=(1,)),
    _amd("MI300X", 192, ("74a1",), functions=(1, 8)),
    _amd("MI250X", 128, ("7408", "740c"), functions=()),
    _amd("MI210", 64, ("740f",), functions=(1,)),
)


def card_named(name: str) -> Card:
    """A card of the table, however it is written: ``h200 nvl``, ``CUSTOM_GPU_H200_NVL``, ``10de:233b``.

    Raises:
        CardNotDivisible: it is not in the table.
    """
    wanted = _plain(name)
    for card in CARDS:
        ids = {_plain(f"{card.vendor.value}:{device}") for device in card.device_ids}
        if wanted in {_plain(card.name), _plain(card.trait), *ids}:
            return card
    raise CardNotDivisible(
        f"accelerator {name!r} is not in our table",
        seen=f"known: {', '.join(card.name for card in CARDS)}",
        next_step="see `mlops accelerators list`; nothing is recommended for a card that we know nothing about",
    )


def card_of(traits: Iterable[str]) -> Card | None:
    """The card that a machine's traits name, or None."""
    named = set(traits)
    return next((card for card in CARDS if card.trait in named), None)


def check_instances(card: Card, wanted: Mapping[str, int]) -> None:
    """Check that one card can hold these MIG instances together, counted by profile.

    Raises:
        CardNotDivisible: no MIG, more instances than the model has, or a mix that does not fit beside each other.
    """
    count = sum(wanted.values())
    if not card.mig:
        raise CardNotDivisible(
            f"card {card.name!r} has no MIG", next_step="ask for a whole card, or share it as a vGPU where it can be"
        )
    profiles = [card.profile(name) for name, number in wanted.items() for _ in range(number)]
    if count > card.most_instances:
        raise CardNotDivisible(
            f"{count} MIG instances were asked for on one {card.name}",
            seen=f"it holds at most {card.most_instances}; no card holds more than {MOST_INSTANCES}",
            next_step="spread them over more cards",
        )
    if not _placed(sorted(profiles, key=lambda p: (-p.slices, p.most)), frozenset()):
        asked = ", ".join(f"{number} x {name}" for name, number in wanted.items())
        raise CardNotDivisible(
            f"{asked} do not fit on one {card.name} together",
            seen=", ".join(f"{p.name} can begin at {p.most} places" for p in card.mig),
            next_step="ask for fewer or smaller instances a card",
        )


def _placed(profiles: list[MigProfile], taken: frozenset[int]) -> bool:
    """Whether all of them find a place; at most seven, so trying all places is quick."""
    if not profiles:
        return True
    first, rest = profiles[0], profiles[1:]
    for start in first.starts:
        place = frozenset(range(start, start + first.slices))
        if not place & taken and _placed(rest, taken | place):
            return True
    return False


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())
