"""The extra specs of a Nova flavor by themselves: how each is read, and what in them cannot be. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_RESOURCE: Final = re.compile(r"^resources(?P<group>[A-Za-z0-9_-]{0,64}):(?P<name>[A-Z0-9_]+)$")
_TRAIT: Final = re.compile(r"^trait[A-Za-z0-9_-]{0,64}:(?P<name>[A-Z0-9_]+)$")
_ALIAS: Final = re.compile(r"^(?P<name>[^:,]+):(?P<count>[1-9][0-9]*)$")
_MIG: Final = re.compile(r"MIG_?(?:.*_)?(?P<slices>\d+)G_?(?P<memory>\d+)GB")
_VIRTUAL: Final = ("VCPU", "MEMORY_MB", "DISK_GB")
_AFFINITIES: Final = ("required", "socket", "preferred", "legacy")
_CPU_POLICIES: Final = ("dedicated", "mixed", "shared")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong with a flavor: the extra spec, what it says now, and what to set."""

    spec: str
    seen: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.spec}: {self.seen}"


def not_well_formed(specs: Mapping[str, str]) -> Iterator[Fault]:
    """Values that are none of their kind."""
    for key, value in specs.items():
        if _RESOURCE.match(key) and not value.isdigit():
            yield Fault(spec=key, seen=f"{value!r} is not a number", wanted=f"{key} to a number")
        if _TRAIT.match(key) and value not in {"required", "forbidden"}:
            yield Fault(spec=key, seen=repr(value), wanted=f"{key}=required")
    for part, match in zip(alias_parts(specs), aliases(specs), strict=True):
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


def cpu_faults(specs: Mapping[str, str]) -> Iterator[Fault]:
    """What Nova does not take together about CPUs."""
    policy = specs.get("hw:cpu_policy", "")
    asked = {name for (_, name), amount in totals(specs).items() if amount and name in {"VCPU", "PCPU"}}
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
    if "hw:cpu_thread_policy" in specs and not is_pinned(specs) and policy != "mixed":
        seen = f"set, with hw:cpu_policy {policy or 'missing'}"
        yield Fault(spec="hw:cpu_thread_policy", seen=seen, wanted="hw:cpu_policy=dedicated")


def numa_faults(specs: Mapping[str, str], *, vcpus: int, ram_mb: int) -> Iterator[Fault]:
    """What is wrong about NUMA nodes, for a flavor of this size."""
    affinity, spec = specs.get("hw:pci_numa_affinity_policy", ""), "hw:pci_numa_affinity_policy"
    if affinity and affinity not in _AFFINITIES:
        yield Fault(spec=spec, seen=repr(affinity), wanted=f"{spec} to one of {', '.join(_AFFINITIES)}")
    shaped = "hw:numa_nodes" in specs or "hw:mem_page_size" in specs or is_pinned(specs)
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
    if not given and (vcpus % int(nodes) or ram_mb % int(nodes)):
        seen = f"{nodes} nodes do not divide {vcpus} vCPUs and {ram_mb} MB evenly"
        yield Fault(spec="hw:numa_nodes", seen=seen, wanted="hw:numa_cpus.N and hw:numa_mem.N of each node")
    for key in layout if given else ():
        if key not in specs:
            yield Fault(spec=key, seen="missing, while other nodes have theirs", wanted=key)


def bare_metal_faults(specs: Mapping[str, str]) -> Iterator[Fault]:
    """What does not go with a machine of Ironic."""
    for name in _VIRTUAL:
        if specs.get(f"resources:{name}") != "0":
            seen = specs.get(f"resources:{name}", "missing")
            words = f"{seen}: machines of Ironic have no {name} in Placement, so no host would fit"
            yield Fault(spec=f"resources:{name}", seen=words, wanted=f"resources:{name}=0")
    for key in ("pci_passthrough:alias", "resources:VGPU", "accel:device_profile"):
        if key in specs:
            yield Fault(spec=key, seen=f"{specs[key]!r} on a machine without hypervisor", wanted=f"{key} away")
    classes = [name for (_, name), amount in totals(specs).items() if amount and name.startswith("CUSTOM_")]
    if len(classes) > 1 or any(totals(specs)["", name] != 1 for name in classes if ("", name) in totals(specs)):
        seen = f"{', '.join(sorted(classes))}: a server is one machine of one class"
        yield Fault(spec="resources:CUSTOM_*", seen=seen, wanted="one resources:CUSTOM_<CLASS>=1")


def machine_class(specs: Mapping[str, str]) -> str:
    """Of Ironic, when the flavor is of its machines: a class of its own, and something virtual set to 0."""
    if not any(specs.get(f"resources:{name}") == "0" for name in _VIRTUAL):
        return ""
    classes = sorted(name for (_, name), amount in totals(specs).items() if amount and name.startswith("CUSTOM_"))
    return classes[0] if classes else ""


def totals(specs: Mapping[str, str]) -> dict[tuple[str, str], int]:
    """Amounts by group and resource class."""
    found: dict[tuple[str, str], int] = {}
    for key, value in specs.items():
        match = _RESOURCE.match(key)
        if match is not None:
            found[match["group"], match["name"]] = int(value) if value.isdigit() else 0
    return found


def required_traits(specs: Mapping[str, str]) -> Iterator[str]:
    """The traits that a host must have."""
    for key, value in specs.items():
        match = _TRAIT.match(key)
        if match is not None and value == "required":
            yield match["name"]


def alias_parts(specs: Mapping[str, str]) -> list[str]:
    """What stands between the commas of the alias."""
    text = specs.get("pci_passthrough:alias")
    return [] if text is None else [part.strip() for part in text.split(",")]


def aliases(specs: Mapping[str, str]) -> list[re.Match[str] | None]:
    """The same as names and counts; None for a part that is not that."""
    return [_ALIAS.match(part) for part in alias_parts(specs)]


def is_pinned(specs: Mapping[str, str]) -> bool:
    """Whether each vCPU has a CPU of its own."""
    asked = any(name == "PCPU" and amount for (_, name), amount in totals(specs).items())
    return specs.get("hw:cpu_policy") == "dedicated" or asked


def mig_profile(resource_class: str) -> str:
    """The profile in the name of a resource class, as in ``CUSTOM_MIG_1G_18GB``; "" when there is none."""
    match = _MIG.search(resource_class)
    return f"{int(match['slices'])}g.{int(match['memory'])}gb" if match else ""
