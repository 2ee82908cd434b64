"""What a device profile of Cyborg asks for, and whether a flavor that names it can be used. Pure.

A flavor with `accel:device_profile` says nothing itself: the profile does, in groups of resources and traits. Nova asks
Placement for each group as one thing of one provider, then Cyborg for one accelerator request for each resource in it
(``nova/accelerator/cyborg.py`` of Nova 34, ``cyborg/api/controllers/v2/arqs.py`` of Cyborg 17).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from mlops_sdk.capacity.extra_specs import Fault, totals

SPEC: Final = "accel:device_profile"
NO_CYBORG: Final = "the cloud's catalogue has no service of type 'accelerator' (Cyborg)"
NOT_SHOWN: Final = "Cyborg shows this login no device profiles"
_RESOURCE, _TRAIT = "resources:", "trait:"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """A device profile that a flavor names.

    Attributes:
        name: As in the flavor.
        groups: As Cyborg shows them.
        unknown: Why nothing is known of it, in words; "" where `groups` are known.
    """

    name: str
    groups: tuple[Mapping[str, str], ...] = ()
    unknown: str = ""

    @property
    def devices(self) -> int:
        """How many accelerators a server gets: one for each resource, whatever its class."""
        return sum(amount for wanted in self.needs.values() for amount in wanted.values())

    @property
    def needs(self) -> dict[str, dict[str, int]]:
        """What Placement is asked for, by group and resource class, as in `Offer.needs`."""
        return {
            f"_device_profile{number}": {
                key.removeprefix(_RESOURCE): int(value)
                for key, value in group.items()
                if key.startswith(_RESOURCE) and value.isdigit() and int(value)
            }
            for number, group in enumerate(self.groups)
        }

    @property
    def traits(self) -> tuple[str, ...]:
        """What the devices must have."""
        return tuple(
            sorted(
                {
                    key.removeprefix(_TRAIT)
                    for group in self.groups
                    for key, value in group.items()
                    if key.startswith(_TRAIT) and value == "required"
                }
            )
        )

    def __str__(self) -> str:
        """Its name, and what is in each group.

        Example:
            >>> str(DeviceProfile(name="a30", groups=({"resources:PGPU": "1", "trait:CUSTOM_GPU_A30": "required"},)))
            'a30 (PGPU=1 CUSTOM_GPU_A30=required)'
        """
        if self.unknown:
            return f"{self.name} ({self.unknown})"
        groups = (" ".join(f"{key.partition(':')[2]}={value}" for key, value in group.items()) for group in self.groups)
        return f"{self.name} ({'; '.join(groups)})"


def profile_of(specs: Mapping[str, str], known: Mapping[str, DeviceProfile] | str) -> DeviceProfile | None:
    """The profile that extra specs name; None where they name none.

    Args:
        specs: Of a flavor.
        known: Cyborg's profiles by name, or why there are none to see.

    Example:
        >>> profile_of({"accel:device_profile": "a30"}, {}).unknown
        'Cyborg has no device profile of this name; it has none'
    """
    name = specs.get(SPEC, "")
    if not name:
        return None
    if isinstance(known, str):
        return DeviceProfile(name=name, unknown=known)
    others = ", ".join(sorted(known)) or "none"
    lacking = DeviceProfile(name=name, unknown=f"Cyborg has no device profile of this name; it has {others}")
    return known.get(name, lacking)


def profile_faults(specs: Mapping[str, str], profile: DeviceProfile | None) -> Iterator[Fault]:
    """What in a flavor's device profile cannot be, or cannot be together with the flavor."""
    if profile is None:
        return
    if profile.unknown:
        yield Fault(spec=SPEC, seen=f"{profile.name!r}: {profile.unknown}", wanted=_cure(profile))
        return
    for number, wanted in enumerate(profile.needs.values()):
        if not wanted:
            words = f"group {number} of device profile {profile.name!r} asks for no resource"
            yield Fault(spec=SPEC, seen=words, wanted=f"a resource in each group of device profile {profile.name!r}")
    asked = {name for wanted in profile.needs.values() for name in wanted}
    for (group, name), amount in totals(specs).items():
        if amount and name in asked:
            spec = f"resources{group}:{name}"
            words = f"{amount}, and device profile {profile.name!r} asks for {name} already: Placement would take both"
            yield Fault(spec=spec, seen=words, wanted=f"no {spec}")


def profile_warnings(specs: Mapping[str, str], profile: DeviceProfile) -> Iterator[str]:
    """What whoever takes a flavor with this profile should know."""
    for number, wanted in enumerate(profile.needs.values()):
        if sum(wanted.values()) > 1:
            yield (
                f"group {number} of device profile {profile.name} asks for {sum(wanted.values())} of one device: "
                "where each card is a device, use a group for each"
            )
    if specs.get("hw:numa_nodes") or specs.get("hw:pci_numa_affinity_policy"):
        yield "on which NUMA node a card of Cyborg hangs, Nova does not look"


def named_profiles(specs: Iterable[Mapping[str, str] | None]) -> bool:
    """Whether any of these flavors names a device profile: only then Cyborg has to be asked."""
    return any(SPEC in each for each in specs if each is not None)


def _cure(profile: DeviceProfile) -> str:
    if profile.unknown == NO_CYBORG:
        return f"Cyborg up, with a device profile {profile.name!r}"
    if profile.unknown == NOT_SHOWN:
        return "the policy cyborg:device_profile:get_all so that this login may read them"
    return f"{SPEC} to a profile that there is (`openstack accelerator device profile create {profile.name} ...`)"
