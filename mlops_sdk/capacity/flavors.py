"""What a Nova flavor gives, read from its extra specs, and whether that is what was asked for. Pure.

A flavor says how its servers get accelerators in one of several ways: devices passed through (`pci_passthrough:alias`),
vGPUs or MIG instances out of Placement (`resources:VGPU`, `resources:CUSTOM_*`), a Cyborg device profile
(`accel:device_profile`), or whole machines of Ironic (`resources:CUSTOM_<CLASS>=1` with the virtual ones set to 0).
Many a wrong combination is accepted by Nova and found out much later: as a server that no host fits, or as one whose
cards are on the far side of the machine. So a flavor is read before a server is asked for, and refused in one go with
everything that is missing in it or contradicts itself: which extra spec, what was seen, what to set.

The rules are Nova's (34.0, 2026.1): ``nova/virt/hardware.py``, ``nova/pci/stats.py``, the administrators' pages on PCI
passthrough, vGPUs and CPU topologies. The alias itself is in Nova's configuration, which no API shows.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from mlops_sdk.capacity.accelerators import Card, Vendor, card_named, card_of, check_instances
from mlops_sdk.capacity.device_profiles import SPEC as PROFILE_SPEC
from mlops_sdk.capacity.device_profiles import DeviceProfile, profile_faults, profile_warnings
from mlops_sdk.capacity.extra_specs import (
    Fault,
    aliases,
    bare_metal_faults,
    cpu_faults,
    is_pinned,
    machine_class,
    mig_profile,
    not_well_formed,
    numa_faults,
    required_traits,
    totals,
)
from mlops_sdk.errors import CardNotDivisible, FlavorRefused


class Delivery(enum.Enum):
    """How the servers of a flavor get their accelerators."""

    NONE = "none"
    PASSTHROUGH = "passthrough"
    VGPU = "vgpu"
    MIG = "mig"
    CYBORG = "cyborg"
    BARE_METAL = "bare_metal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavor:
    """A flavor as Nova shows it. `specs` is None where this login may not see extra specs.

    `profile`: the device profile that it names, once Cyborg was asked for it.
    """

    id: str
    name: str
    vcpus: int
    ram_mb: int
    disk_gb: int
    ephemeral_gb: int = 0
    specs: Mapping[str, str] | None = field(default_factory=dict[str, str])
    profile: DeviceProfile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a flavor is meant to give; what is empty or 0 is not checked.

    Attributes:
        delivery: How.
        accelerators: How many a server.
        card: Which model, as in `mlops accelerators list`.
        numa_affinity: `hw:pci_numa_affinity_policy`.
        numa_nodes: `hw:numa_nodes`.
        pinned: Whether each vCPU must have a CPU of its own.
        placement_class: Under which Placement counts a passed-through card, if Nova reports them there; the alias has
            it, which no API shows.
    """

    delivery: Delivery | None = None
    accelerators: int = 0
    card: str = ""
    numa_affinity: str = ""
    numa_nodes: int = 0
    pinned: bool = False
    placement_class: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a server of a flavor has.

    Attributes:
        delivery: How it gets its accelerators.
        accelerators: How many; of Cyborg and Ironic, where the flavor does not say, 0 or what is expected.
        card: The model, where a trait or a device class names one that we know.
        profile: Of each MIG instance.
        device_profile: Cyborg's, in words; "" where Cyborg was not asked.
        machine_class: Ironic's resource class, as Placement writes it.
        traits: That its host must have.
        needs: What Placement is asked for, by group ("" is the one without a name) and resource class.
        pinned: Whether each vCPU has a CPU of its own.
        warnings: What the reader should know besides.
    """

    delivery: Delivery
    accelerators: int = 0
    card: Card | None = None
    profile: str = ""
    device_profile: str = ""
    machine_class: str = ""
    traits: tuple[str, ...] = ()
    needs: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    pinned: bool = False
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.delivery is Delivery.NONE:
            return "no accelerators"
        if self.delivery is Delivery.BARE_METAL:
            return f"bare metal of class {self.machine_class}"
        if self.delivery is Delivery.CYBORG and not self.device_profile:
            return "what its Cyborg device profile says"
        what = f"{self.card.name}{f' {self.profile}' if self.profile else ''}" if self.card else "accelerators"
        told = f", device profile {self.device_profile}" if self.device_profile else ""
        return f"{self.accelerators} x {what} by {self.delivery.value}{told}"


def check_flavor(flavor: Flavor, *, expected: Expected | None = None, traits: Iterable[str] = ()) -> Offer:
    """What the flavor gives, if its extra specs agree with each other and give what is expected.

    Args:
        flavor: As Nova shows it.
        expected: What it is meant to give.
        traits: That a request wants; the flavor must require them of the host.

    Raises:
        FlavorRefused: with every missing or contradicting extra spec, and what to set.

    Example:
        >>> gpu = Flavor(id="1", name="gpu", vcpus=8, ram_mb=1, disk_gb=1, specs={"pci_passthrough:alias": "h200:8"})
        >>> str(check_flavor(gpu))
        '8 x accelerators by passthrough'
    """
    wanted = tuple(traits)
    if flavor.specs is None:
        return _unseen(flavor, expected, wanted)
    offer = read_offer(flavor, expected)
    faults = [*contradictions(flavor, offer), *missing(flavor, offer, expected or Expected(), wanted)]
    if faults:
        raise FlavorRefused(
            f"flavor {flavor.name!r} cannot be used as asked",
            seen="; ".join(str(fault) for fault in faults),
            next_step="ask the cloud's operator to set "
            + ", ".join(dict.fromkeys(fault.wanted for fault in faults))
            + "; or take another flavor",
        )
    return offer


def read_offer(flavor: Flavor, expected: Expected | None = None) -> Offer:
    """What the extra specs say, right or wrong: numbers that are none count as 0.

    Of what is expected only `placement_class` counts here, and of whole machines the number of accelerators.
    """
    specs = flavor.specs or {}
    required = tuple(sorted(set(required_traits(specs))))
    resources: Counter[str] = Counter()
    for (_, name), amount in totals(specs).items():
        resources[name] += amount
    alias_counts = [int(match["count"]) for match in aliases(specs) if match is not None]
    plain = Offer(
        delivery=Delivery.NONE,
        card=card_of(required),
        traits=required,
        needs=_needs(flavor),
        pinned=is_pinned(specs),
    )
    machine = machine_class(specs)
    if machine:
        count = expected.accelerators if expected is not None else 0
        return replace(plain, delivery=Delivery.BARE_METAL, machine_class=machine, accelerators=count)
    if alias_counts:
        cards = sum(alias_counts)
        counted = expected.placement_class if expected is not None else ""
        needs = {**plain.needs, **{f"_card{number}": {counted: 1} for number in range(cards) if counted}}
        return replace(plain, delivery=Delivery.PASSTHROUGH, accelerators=cards, needs=needs)
    pieces = {name: amount for name, amount in resources.items() if name == "VGPU" or name.startswith("CUSTOM_")}
    if any(pieces.values()):
        profiles = {profile for name in pieces if (profile := mig_profile(name))}
        return replace(
            plain,
            delivery=Delivery.MIG if profiles else Delivery.VGPU,
            accelerators=sum(pieces.values()),
            profile=profiles.pop() if len(profiles) == 1 else "",
            warnings=tuple(_vgpu_warnings(specs, plain.card)),
        )
    if specs.get(PROFILE_SPEC):
        return _by_cyborg(plain, specs, flavor.profile)
    return plain


def contradictions(flavor: Flavor, offer: Offer) -> Iterator[Fault]:
    """What in a flavor cannot be, or cannot be together."""
    specs = flavor.specs or {}
    yield from not_well_formed(specs)
    yield from cpu_faults(specs)
    if offer.delivery is Delivery.BARE_METAL:
        yield from bare_metal_faults(specs)
        return
    yield from numa_faults(specs, vcpus=flavor.vcpus, ram_mb=flavor.ram_mb)
    yield from profile_faults(specs, flavor.profile)
    if offer.profile and offer.card is not None:
        try:
            check_instances(offer.card, {offer.profile: offer.accelerators})
        except CardNotDivisible as error:
            words = f"{error.what}{f' ({error.seen})' if error.seen else ''}"
            yield Fault(spec="resources:CUSTOM_*", seen=words, wanted="an amount that one card holds")


def missing(flavor: Flavor, offer: Offer, expected: Expected, traits: Iterable[str]) -> Iterator[Fault]:
    """What a flavor was expected to say and does not."""
    specs = flavor.specs or {}
    if expected.delivery is not None and offer.delivery is not expected.delivery:
        spec = _SPEC_OF[expected.delivery]
        yield Fault(spec=spec, seen=f"missing; it gives {offer}", wanted=f"{spec}{_AMOUNT_OF[expected.delivery]}")
    elif expected.accelerators and _is_counted(offer) and offer.accelerators != expected.accelerators:
        spec = _SPEC_OF[Delivery.PASSTHROUGH if offer.delivery is Delivery.NONE else offer.delivery]
        seen = f"{offer.accelerators} a server, expected {expected.accelerators}"
        yield Fault(spec=spec, seen=seen, wanted=f"{spec} to {expected.accelerators}")
    yield from _missing_traits(flavor, offer, expected, traits)
    affinity = specs.get("hw:pci_numa_affinity_policy", "")
    if expected.numa_affinity and affinity != expected.numa_affinity:
        spec = "hw:pci_numa_affinity_policy"
        yield Fault(spec=spec, seen=affinity or "missing", wanted=f"{spec}={expected.numa_affinity}")
    if expected.pinned and not offer.pinned and offer.delivery is not Delivery.BARE_METAL:
        seen = specs.get("hw:cpu_policy", "missing")
        yield Fault(spec="hw:cpu_policy", seen=seen, wanted="hw:cpu_policy=dedicated")
    nodes = specs.get("hw:numa_nodes", "")
    if expected.numa_nodes and nodes != str(expected.numa_nodes):
        yield Fault(spec="hw:numa_nodes", seen=nodes or "missing", wanted=f"hw:numa_nodes={expected.numa_nodes}")


def _by_cyborg(plain: Offer, specs: Mapping[str, str], profile: DeviceProfile | None) -> Offer:
    """What a device profile adds, if it is known."""
    if profile is None or profile.unknown:
        return replace(plain, delivery=Delivery.CYBORG)
    traits = tuple(sorted({*plain.traits, *profile.traits}))
    return replace(
        plain,
        delivery=Delivery.CYBORG,
        accelerators=profile.devices,
        card=card_of(profile.traits) or plain.card,
        device_profile=str(profile),
        traits=traits,
        needs={**plain.needs, **profile.needs},
        warnings=tuple(profile_warnings(specs, profile)),
    )


def _is_counted(offer: Offer) -> bool:
    """Whether it is known how many accelerators there are: of machines of Ironic the flavor does not say."""
    if offer.delivery is Delivery.CYBORG:
        return bool(offer.device_profile)
    return offer.delivery is not Delivery.BARE_METAL


def _missing_traits(flavor: Flavor, offer: Offer, expected: Expected, traits: Iterable[str]) -> Iterator[Fault]:
    """Of the host, or of what a device profile gives; where that is not known, that is the first thing to be said."""
    specs, profile = flavor.specs or {}, flavor.profile
    wanted = list(traits)
    if expected.card:
        card = card_named(expected.card)
        if offer.card is None or offer.card.name != card.name:
            wanted.append(card.trait)
    if profile is not None and profile.unknown:
        return
    place = f" in device profile {profile.name!r}" if profile is not None else ""
    for trait in wanted:
        if trait not in offer.traits:
            said = specs.get(f"trait:{trait}", "missing")
            yield Fault(spec=f"trait:{trait}", seen=f"{said}{place}", wanted=f"trait:{trait}=required{place}")


def _unseen(flavor: Flavor, expected: Expected | None, traits: tuple[str, ...]) -> Offer:
    """Without its extra specs nothing can be promised: only who expects nothing may go on."""
    if traits or (expected is not None and expected != Expected()):
        raise FlavorRefused(
            f"what flavor {flavor.name!r} gives cannot be checked",
            seen="Nova does not show its extra specs to this login",
            next_step="ask the operator for the policy os_compute_api:os-flavor-extra-specs:index, "
            "or expect nothing of it in the settings",
        )
    needs = {"": {"VCPU": flavor.vcpus, "MEMORY_MB": flavor.ram_mb, "DISK_GB": flavor.disk_gb}}
    return Offer(delivery=Delivery.NONE, needs=needs, warnings=("its extra specs are not shown to this login",))


def _needs(flavor: Flavor) -> dict[str, dict[str, int]]:
    """What Nova asks Placement for: the flavor's own sizes, overruled by its resources; 0 takes one away."""
    specs = flavor.specs or {}
    cpu = "PCPU" if specs.get("hw:cpu_policy") == "dedicated" else "VCPU"
    needs: dict[str, dict[str, int]] = {
        "": {cpu: flavor.vcpus, "MEMORY_MB": flavor.ram_mb, "DISK_GB": flavor.disk_gb + flavor.ephemeral_gb}
    }
    for (group, name), amount in totals(specs).items():
        needs.setdefault(group, {})[name] = amount
        if name == "PCPU":
            needs[""].pop("VCPU", None)
    return {
        group: {name: n for name, n in wanted.items() if n} for group, wanted in needs.items() if any(wanted.values())
    }


def _vgpu_warnings(specs: Mapping[str, str], card: Card | None) -> Iterator[str]:
    together = [key for key, value in specs.items() if key.endswith(":VGPU") and value.isdigit() and int(value) > 1]
    if together and (card is None or card.vendor is Vendor.NVIDIA):
        yield f"{together[0]} asks for several vGPUs of one card: NVIDIA's driver gives one; use resources1:VGPU=1, ..."
    if card is not None and card.vgpu_licence:
        yield f"needs a licence: {card.vgpu_licence}"


_SPEC_OF: Mapping[Delivery, str] = {
    Delivery.NONE: "resources",
    Delivery.PASSTHROUGH: "pci_passthrough:alias",
    Delivery.VGPU: "resources:VGPU",
    Delivery.MIG: "resources:CUSTOM_MIG_<PROFILE>",
    Delivery.CYBORG: "accel:device_profile",
    Delivery.BARE_METAL: "resources:CUSTOM_<CLASS>",
}
_AMOUNT_OF: Mapping[Delivery, str] = {
    Delivery.NONE: " to nothing",
    Delivery.PASSTHROUGH: "=NAME:COUNT",
    Delivery.VGPU: "=COUNT",
    Delivery.MIG: "=COUNT",
    Delivery.CYBORG: "=NAME",
    Delivery.BARE_METAL: "=1",
}
