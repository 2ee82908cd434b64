"""Whether a workload should get whole cards, MIG instances or vGPUs, and why. Pure.

The order of the questions:

1. Does it need more than one card's worth, or talk between cards? Whole cards: MIG instances reach no peer over NVLink
   or PCIe, and a vGPU does only when it is a whole card.
2. Does it need more than half a card's memory? Whole card: the next smaller piece is half.
3. Must its speed and memory be its own (serving, or several tenants on a card), and has the card MIG? MIG.
4. Is it bursty, or has the card no MIG, and can it be shared? vGPU: whoever is busy gets the time the others leave.
5. Else the whole card.

A licence is flagged wherever a piece of an NVIDIA card goes to a virtual machine: MIG itself needs none, a MIG-backed
vGPU does. Nothing here was run on hardware; see `accelerators`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mlops_sdk.capacity.accelerators import Card, MigProfile, Vendor, card_of, check_instances
from mlops_sdk.errors import CardNotDivisible

_UNTRIED: Final = "from the vendor's documents; not run on hardware"


class Use(enum.Enum):
    """What the cards are for."""

    TRAINING = "training"  # busy all the time
    SERVING = "serving"  # must answer in time, whatever its neighbours do
    NOTEBOOK = "notebook"  # busy now and then


class Method(enum.Enum):
    """How a card is given out."""

    PASSTHROUGH = "passthrough"  # whole: to a bare-metal tenant, or by PCI passthrough to one virtual machine
    MIG = "mig"
    VGPU = "vgpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is to run.

    Attributes:
        use: What for.
        memory_gb: That one process needs on its accelerator.
        processes: That work on one job together, one an accelerator.
        copies: Independent jobs of this kind, each with its own accelerator or piece of one.
        virtual: Whether it runs in a virtual machine (Nova); else on a leased machine of its own (Ironic).
        tenants: Whether the copies belong to parties that must not disturb each other.
    """

    use: Use
    memory_gb: float
    processes: int = 1
    copies: int = 1
    virtual: bool = False
    tenants: bool = False

    def __post_init__(self) -> None:
        if self.memory_gb <= 0 or self.processes < 1 or self.copies < 1:
            raise ValueError(f"a workload needs memory, a process and a copy, not {self!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """How to give the workload its accelerators.

    Attributes:
        method: Whole, MIG or vGPU.
        card: Which model.
        profile: Of each MIG instance; empty otherwise.
        per_card: Jobs that one card serves; 0: several cards a job.
        cards: Needed in all.
        why: The reasons, most important first.
        licence: What it needs; empty: none.
        warnings: What the reader should know besides.
    """

    method: Method
    card: Card
    profile: str = ""
    per_card: int = 1
    cards: int = 1
    why: tuple[str, ...] = ()
    licence: str = ""
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        piece = f" {self.profile}, {self.per_card} a card" if self.profile else ""
        licence = f"; needs a licence: {self.licence}" if self.licence else ""
        return f"{self.cards} x {self.card.name} by {self.method.value}{piece}: {'; '.join(self.why)}{licence}"

    def to_json(self) -> dict[str, object]:
        """For the CLI."""
        return {
            "method": self.method.value,
            "card": self.card.name,
            "trait": self.card.trait,
            "profile": self.profile,
            "per_card": self.per_card,
            "cards": self.cards,
            "why": list(self.why),
            "licence": self.licence,
            "warnings": list(self.warnings),
        }


def recommend(card: Card, workload: Workload) -> Recommendation:
    """Passthrough, MIG or vGPU for this workload on this card, and why.

    Raises:
        CardNotDivisible: one process needs more memory than the card has.

    Example:
        >>> from mlops_sdk.capacity.accelerators import card_named
        >>> str(recommend(card_named("H200"), Workload(use=Use.SERVING, memory_gb=16, copies=7)))[:40]
        '1 x H200 by mig 1g.18gb, 7 a card: its m'
    """
    if workload.memory_gb > card.memory_gb:
        raise CardNotDivisible(
            f"a process that needs {workload.memory_gb:g} GB does not fit on one {card.name}",
            seen=f"it has {card.memory_gb} GB",
            next_step="take a larger card, or divide the model over several processes",
        )
    whole = _needs_whole(card, workload)
    if whole:
        return _passthrough(card, workload, whole)
    profile = None if workload.virtual and not card.vgpu_licence else _smallest(card, workload.memory_gb)
    own_pace = workload.use is not Use.NOTEBOOK or workload.tenants
    if profile is not None and (own_pace or not _can_share(card, workload)):
        return _mig(card, workload, profile)
    if _can_share(card, workload):
        return _vgpu(card, workload)
    return _passthrough(card, workload, f"a {card.name} cannot be divided here")


def advise(traits: Iterable[str], workload: Workload) -> Recommendation | None:
    """`recommend` for machines with these traits; None when they name no card that we know: for a quote."""
    card = card_of(traits)
    return None if card is None else recommend(card, workload)


def recommend_instances(card: Card, profile: str, *, per_card: int, virtual: bool = False) -> Recommendation:
    """What a wish for so many MIG instances a card comes to.

    Raises:
        CardNotDivisible: the model has no such profile, holds fewer (never more than seven), or has no vGPU by which
            several virtual machines could have them.
    """
    check_instances(card, {profile: per_card})
    if virtual and not card.vgpu_licence:
        raise CardNotDivisible(
            f"MIG instances of a {card.name} cannot be given to virtual machines",
            seen="there is no vGPU for it",
            next_step="give one virtual machine the whole card, or lease the machine itself",
        )
    return Recommendation(
        method=Method.MIG,
        card=card,
        profile=profile,
        per_card=per_card,
        why=(f"as asked; a {card.name} holds {card.profile(profile).most} of {profile}",),
        licence=card.vgpu_licence if virtual else "",
        warnings=_mig_warnings(virtual=virtual),
    )


def _needs_whole(card: Card, workload: Workload) -> str:
    """Why nothing less than whole cards will do; empty when something less might."""
    if workload.processes > 1:
        link = f" over {card.peers}" if card.peers else ""
        return f"{workload.processes} processes exchange data{link}; pieces of a card reach no peer directly"
    if workload.memory_gb > card.memory_gb / 2:
        return f"it needs {workload.memory_gb:g} of {card.memory_gb} GB; the next smaller piece is half"
    if workload.copies == 1 and workload.use is Use.TRAINING:
        return "one training uses all of a card; dividing it would leave the rest idle"
    return ""


def _smallest(card: Card, memory_gb: float) -> MigProfile | None:
    """The smallest piece with this memory; of equal ones that of which a card holds more."""
    fitting = [p for p in card.mig if p.memory_gb >= memory_gb and p.slices < card.mig[-1].slices]
    if not fitting:
        return None
    least = min(p.memory_gb for p in fitting)
    return min((p for p in fitting if p.memory_gb == least), key=lambda p: -p.most)


def _can_share(card: Card, workload: Workload) -> bool:
    return workload.virtual and card.shareable


def _passthrough(card: Card, workload: Workload, why: str) -> Recommendation:
    several = workload.processes > 1
    how = "PCI passthrough needs no licence" if workload.virtual else "the machine is leased whole"
    return Recommendation(
        method=Method.PASSTHROUGH,
        card=card,
        per_card=0 if several else 1,
        cards=workload.processes * workload.copies,
        why=(why, how),
        warnings=(_UNTRIED,),
    )


def _mig(card: Card, workload: Workload, profile: MigProfile) -> Recommendation:
    check_instances(card, {profile.name: profile.most})
    reasons = [f"its memory, bandwidth and compute are its own: {profile.memory_gb} GB for {workload.memory_gb:g}"]
    if workload.tenants:
        reasons.append("several tenants share the card, and the hardware keeps them apart")
    return Recommendation(
        method=Method.MIG,
        card=card,
        profile=profile.name,
        per_card=profile.most,
        cards=-(-workload.copies // profile.most),
        why=tuple(reasons),
        licence=card.vgpu_licence if workload.virtual else "",
        warnings=_mig_warnings(virtual=workload.virtual),
    )


def _vgpu(card: Card, workload: Workload) -> Recommendation:
    shares = [n for n in card.functions if n > 1 and card.memory_gb / n >= workload.memory_gb]
    if card.functions and not shares:
        return _passthrough(card, workload, f"no share of a {card.name} has {workload.memory_gb:g} GB")
    per_card = max(shares) if shares else max(1, int(card.memory_gb // workload.memory_gb))
    reasons = ["it is busy now and then; a vGPU gets the time that the others leave"]
    if not card.mig:
        reasons = [f"a {card.name} has no MIG", *(reasons if workload.use is Use.NOTEBOOK else [])]
    elif workload.use is not Use.NOTEBOOK:
        reasons = ["no MIG profile fits"]
    return Recommendation(
        method=Method.VGPU,
        card=card,
        per_card=per_card,
        cards=-(-workload.copies // per_card),
        why=tuple(reasons),
        licence=card.vgpu_licence,
        warnings=_vgpu_warnings(card, workload),
    )


def _mig_warnings(*, virtual: bool) -> tuple[str, ...]:
    alone = "one virtual machine alone can be given the whole card and divide it itself, without a licence"
    return ("instances of a card reach no peer over NVLink or PCIe", *((alone,) if virtual else ()), _UNTRIED)


def _vgpu_warnings(card: Card, workload: Workload) -> tuple[str, ...]:
    found: list[str] = []
    if workload.use is Use.SERVING:
        found.append("its speed depends on its neighbours")
    if card.vendor is Vendor.AMD:
        found.append("more than one virtual function a card is a preview of AMD's driver")
    else:
        found.append("which sizes there are is up to the host's driver: see its mdev_supported_types")
    return (*found, _UNTRIED)
