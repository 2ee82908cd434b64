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
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mlops_sdk.capacity.accelerators import Card, Vendor, card_named, card_of, check_instances
from mlops_sdk.errors import CardNotDivisible, FlavorRefused

_RESOURCE: Final = re.compile(r"^resources(?P<group>[A-Za-z0-9_-]{0,64}):(?P<name>[A-Z0-9_]+)$")
_TRAIT: Final = re.compile(r"^trait[A-Za-z0-9_-]{0,64}:(?P<name>[A-Z0-9_]+)$")
_ALIAS: Final = re.compile(r"^(?P<name>[^:,]+):(?P<count>[1-9][0-9]*)$")
_MIG: Final = re.compile(r"MIG_?(?:.*_)?(?P<slices>\d+)G_?(?P<memory>\d+)GB")
_VIRTUAL: Final = ("VCPU", "MEMORY_MB", "DISK_GB")
_AFFINITIES: Final = ("required", "socket", "preferred", "legacy")
_CPU_POLICIES: Final = ("dedicated", "mixed", "shared")


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
    """A flavor as Nova shows it. `specs` is None where this login may not see extra specs."""

    id: str
    name: str
    vcpus: int
    ram_mb: int
    disk_gb: int
    ephemeral_gb: int = 0
    specs: Mapping[str, str] | None = field(default_factory=dict[str, str])


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
        accelerators: How many; 0 where the flavor does not say: of Cyborg and Ironic.
        card: The model, where a trait or a device class names one that we know.
        profile: Of each MIG instance.
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
        if self.delivery is Delivery.CYBORG:
            return "what its Cyborg device profile says"
        what = f"{self.card.name}{f' {self.profile}' if self.profile else ''}" if self.card else "accelerators"
        return f"{self.accelerators} x {what} by {self.delivery.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong with a flavor: the extra spec, what it says now, and what to set."""

    spec: str
    seen: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.spec}: {self.seen}"


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

    Of what is expected only `placement_class` counts here.
    """
    specs = flavor.specs or {}
    required = tuple(sorted(set(_required(specs))))
    resources: Counter[str] = Counter()
    for (_, name), amount in _totals(specs).items():
        resources[name] += amount
    alias_counts = [int(match["count"]) for match in _aliases(specs) if match is not None]
    plain = Offer(
        delivery=Delivery.NONE,
        card=card_of(required),
        traits=required,
        needs=_needs(flavor),
        pinned=_is_pinned(specs),
    )
    machine = _machine_class(specs)
    if machine:
        return replace(plain, delivery=Delivery.BARE_METAL, machine_class=machine)
    if alias_counts:
        cards = sum(alias_counts)
        counted = expected.placement_class if expected is not None else ""
        needs = {**plain.needs, **{f"_card{number}": {counted: 1} for number in range(cards) if counted}}
        return replace(plain, delivery=Delivery.PASSTHROUGH, accelerators=cards, needs=needs)
    pieces = {name: amount for name, amount in resources.items() if name == "VGPU" or name.startswith("CUSTOM_")}
    if any(pieces.values()):
        profiles = {profile for name in pieces if (profile := _mig_profile(name))}
        return replace(
            plain,
            delivery=Delivery.MIG if profiles else Delivery.VGPU,
            accelerators=sum(pieces.values()),
            profile=profiles.pop() if len(profiles) == 1 else "",
            warnings=tuple(_vgpu_warnings(specs, plain.card)),
        )
    if specs.get("accel:device_profile"):
        return replace(plain, delivery=Delivery.CYBORG)
    return plain


def contradictions(flavor: Flavor, offer: Offer) -> Iterator[Fault]:
    """What in a flavor cannot be, or cannot be together."""
    specs = flavor.specs or {}
    yield from _not_well_formed(specs)
    yield from _cpu_faults(specs)
    if offer.delivery is Delivery.BARE_METAL:
        yield from _bare_metal_faults(specs)
        return
    yield from _numa_faults(flavor)
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
    elif expected.accelerators and offer.delivery not in _UNCOUNTED and offer.accelerators != expected.accelerators:
        spec = _SPEC_OF[Delivery.PASSTHROUGH if offer.delivery is Delivery.NONE else offer.delivery]
        seen = f"{offer.accelerators} a server, expected {expected.accelerators}"
        yield Fault(spec=spec, seen=seen, wanted=f"{spec} to {expected.accelerators}")
    wanted_traits = list(traits)
    if expected.card:
        card = card_named(expected.card)
        if offer.card is None or offer.card.name != card.name:
            wanted_traits.append(card.trait)
    for trait in wanted_traits:
        if trait not in offer.traits:
            said = specs.get(f"trait:{trait}", "missing")
            yield Fault(spec=f"trait:{trait}", seen=said, wanted=f"trait:{trait}=required")
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


def _not_well_formed(specs: Mapping[str, str]) -> Iterator[Fault]:
    for key, value in specs.items():
        if _RESOURCE.match(key) and not value.isdigit():
            yield Fault(spec=key, seen=f"{value!r} is not a number", wanted=f"{key} to a number")
        if _TRAIT.match(key) and value not in {"required", "forbidden"}:
            yield Fault(spec=key, seen=repr(value), wanted=f"{key}=required")
    for part, match in zip(_alias_parts(specs), _aliases(specs), strict=True):
        if match is None:
            spec = "pci_passthrough:alias"
            yield Fault(spec=spec, seen=f"{part!r} is not NAME:COUNT", wanted=f"{spec}=NAME:COUNT")
    for key in specs:
        if key.partition(":")[2].startswith("CUSTOM_PCI_"):
            words = "Nova attaches only those devices that an alias asks for"
            yield Fault(spec=key, seen=words, wanted="pci_passthrough:alias=NAME:COUNT instead")
    if "accel:device_profile" in specs and not specs["accel:device_profile"].strip():
        spec = "accel:device_profile"
        yield Fault(spec=spec, seen="names no profile", wanted=f"{spec} to the name of a Cyborg device profile")


def _cpu_faults(specs: Mapping[str, str]) -> Iterator[Fault]:
    policy = specs.get("hw:cpu_policy", "")
    asked = {name for (_, name), amount in _totals(specs).items() if amount and name in {"VCPU", "PCPU"}}
    mask = "hw:cpu_dedicated_mask"
    if policy and policy not in _CPU_POLICIES:
        yield Fault(spec="hw:cpu_policy", seen=repr(policy), wanted="hw:cpu_policy=dedicated")
    if policy and asked:
        seen = f"{policy!r} beside resources:{'/'.join(sorted(asked))}: Nova takes one or the other"
        yield Fault(spec="hw:cpu_policy", seen=seen, wanted="one of the two")
    if asked == {"VCPU", "PCPU"}:
        yield Fault(spec="resources:PCPU", seen="beside resources:VCPU: Nova takes one", wanted="one of the two")
    if policy == "mixed" and mask not in specs and "hw:cpu_realtime_mask" not in specs:
        yield Fault(spec=mask, seen="missing, with hw:cpu_policy=mixed", wanted=f"{mask} to the vCPUs that are pinned")
    if policy != "mixed" and mask in specs:
        yield Fault(spec=mask, seen=f"set, with hw:cpu_policy {policy or 'missing'}", wanted="hw:cpu_policy=mixed")
    if "hw:cpu_thread_policy" in specs and not _is_pinned(specs) and policy != "mixed":
        seen = f"set, with hw:cpu_policy {policy or 'missing'}"
        yield Fault(spec="hw:cpu_thread_policy", seen=seen, wanted="hw:cpu_policy=dedicated")


def _numa_faults(flavor: Flavor) -> Iterator[Fault]:
    specs = flavor.specs or {}
    affinity, spec = specs.get("hw:pci_numa_affinity_policy", ""), "hw:pci_numa_affinity_policy"
    if affinity and affinity not in _AFFINITIES:
        yield Fault(spec=spec, seen=repr(affinity), wanted=f"{spec} to one of {', '.join(_AFFINITIES)}")
    shaped = "hw:numa_nodes" in specs or "hw:mem_page_size" in specs or _is_pinned(specs)
    if affinity in {"required", "socket"} and not (shaped or specs.get("hw:cpu_policy") == "mixed"):
        seen = f"{affinity!r} has no effect on a server without NUMA nodes of its own"
        yield Fault(spec=spec, seen=seen, wanted="hw:numa_nodes or hw:cpu_policy=dedicated besides")
    nodes = specs.get("hw:numa_nodes", "")
    if not nodes:
        return
    if not nodes.isdigit() or int(nodes) < 1:
        yield Fault(spec="hw:numa_nodes", seen=repr(nodes), wanted="hw:numa_nodes to a positive number")
        return
    layout = [f"hw:{what}.{number}" for what in ("numa_cpus", "numa_mem") for number in range(int(nodes))]
    given = [key for key in layout if key in specs]
    if not given and (flavor.vcpus % int(nodes) or flavor.ram_mb % int(nodes)):
        seen = f"{nodes} nodes do not divide {flavor.vcpus} vCPUs and {flavor.ram_mb} MB evenly"
        yield Fault(spec="hw:numa_nodes", seen=seen, wanted="hw:numa_cpus.N and hw:numa_mem.N of each node")
    for key in layout if given else ():
        if key not in specs:
            yield Fault(spec=key, seen="missing, while other nodes have theirs", wanted=key)


def _bare_metal_faults(specs: Mapping[str, str]) -> Iterator[Fault]:
    for name in _VIRTUAL:
        if specs.get(f"resources:{name}") != "0":
            seen = specs.get(f"resources:{name}", "missing")
            words = f"{seen}: machines of Ironic have no {name} in Placement, so no host would fit"
            yield Fault(spec=f"resources:{name}", seen=words, wanted=f"resources:{name}=0")
    for key in ("pci_passthrough:alias", "resources:VGPU", "accel:device_profile"):
        if key in specs:
            yield Fault(spec=key, seen=f"{specs[key]!r} on a machine without hypervisor", wanted=f"{key} away")
    classes = [name for (_, name), amount in _totals(specs).items() if amount and name.startswith("CUSTOM_")]
    if len(classes) > 1 or any(_totals(specs)["", name] != 1 for name in classes if ("", name) in _totals(specs)):
        seen = f"{', '.join(sorted(classes))}: a server is one machine of one class"
        yield Fault(spec="resources:CUSTOM_*", seen=seen, wanted="one resources:CUSTOM_<CLASS>=1")


def _machine_class(specs: Mapping[str, str]) -> str:
    """Of Ironic, when the flavor is of its machines: a class of its own, and something virtual set to 0."""
    if not any(specs.get(f"resources:{name}") == "0" for name in _VIRTUAL):
        return ""
    classes = sorted(name for (_, name), amount in _totals(specs).items() if amount and name.startswith("CUSTOM_"))
    return classes[0] if classes else ""


def _needs(flavor: Flavor) -> dict[str, dict[str, int]]:
    """What Nova asks Placement for: the flavor's own sizes, overruled by its resources; 0 takes one away."""
    specs = flavor.specs or {}
    cpu = "PCPU" if specs.get("hw:cpu_policy") == "dedicated" else "VCPU"
    needs: dict[str, dict[str, int]] = {
        "": {cpu: flavor.vcpus, "MEMORY_MB": flavor.ram_mb, "DISK_GB": flavor.disk_gb + flavor.ephemeral_gb}
    }
    for (group, name), amount in _totals(specs).items():
        needs.setdefault(group, {})[name] = amount
        if name == "PCPU":
            needs[""].pop("VCPU", None)
    return {
        group: {name: n for name, n in wanted.items() if n} for group, wanted in needs.items() if any(wanted.values())
    }


def _totals(specs: Mapping[str, str]) -> dict[tuple[str, str], int]:
    """Amounts by group and resource class."""
    found: dict[tuple[str, str], int] = {}
    for key, value in specs.items():
        match = _RESOURCE.match(key)
        if match is not None:
            found[match["group"], match["name"]] = int(value) if value.isdigit() else 0
    return found


def _required(specs: Mapping[str, str]) -> Iterator[str]:
    for key, value in specs.items():
        match = _TRAIT.match(key)
        if match is not None and value == "required":
            yield match["name"]


def _alias_parts(specs: Mapping[str, str]) -> list[str]:
    text = specs.get("pci_passthrough:alias")
    return [] if text is None else [part.strip() for part in text.split(",")]


def _aliases(specs: Mapping[str, str]) -> list[re.Match[str] | None]:
    return [_ALIAS.match(part) for part in _alias_parts(specs)]


def _is_pinned(specs: Mapping[str, str]) -> bool:
    asked = any(name == "PCPU" and amount for (_, name), amount in _totals(specs).items())
    return specs.get("hw:cpu_policy") == "dedicated" or asked


def _mig_profile(resource_class: str) -> str:
    """The profile in the name of a resource class, as in ``CUSTOM_MIG_1G_18GB``; "" when there is none."""
    match = _MIG.search(resource_class)
    return f"{int(match['slices'])}g.{int(match['memory'])}gb" if match else ""


def _vgpu_warnings(specs: Mapping[str, str], card: Card | None) -> Iterator[str]:
    together = [key for key, value in specs.items() if key.endswith(":VGPU") and value.isdigit() and int(value) > 1]
    if together and (card is None or card.vendor is Vendor.NVIDIA):
        yield f"{together[0]} asks for several vGPUs of one card: NVIDIA's driver gives one; use resources1:VGPU=1, ..."
    if card is not None and card.vgpu_licence:
        yield f"needs a licence: {card.vgpu_licence}"


_UNCOUNTED: Final = {Delivery.CYBORG, Delivery.BARE_METAL}  # how many there are, the flavor does not say
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
