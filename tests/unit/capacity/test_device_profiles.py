"""What a Cyborg device profile asks for, and which flavors that name one are refused, with what to set."""

from dataclasses import replace

import pytest

from mlops_sdk.capacity.device_profiles import NO_CYBORG, NOT_SHOWN, DeviceProfile, profile_of
from mlops_sdk.capacity.flavors import Delivery, Expected, Flavor, check_flavor, read_offer
from mlops_sdk.errors import FlavorRefused

ONE = {"resources:PGPU": "1", "trait:CUSTOM_GPU_A30": "required", "trait:CUSTOM_OLD": "forbidden"}
A30 = DeviceProfile(name="a30", groups=(ONE,))
PAIR = DeviceProfile(name="pair", groups=(ONE, ONE))
PLAIN = Flavor(id="1", name="gpu", vcpus=8, ram_mb=1024, disk_gb=10)


def flavor(profile: DeviceProfile | None = A30, **specs: str) -> Flavor:
    named = {"accel:device_profile": profile.name if profile else "a30"}
    more = {key.replace("__", ":"): value for key, value in specs.items()}
    return replace(PLAIN, specs={**named, **more}, profile=profile)


def test_a_profile_says_what_the_flavor_does_not():
    offer = check_flavor(flavor(PAIR, trait__CUSTOM_FAST="required"), traits=["CUSTOM_GPU_A30", "CUSTOM_FAST"])
    assert (offer.delivery, offer.accelerators) == (Delivery.CYBORG, 2)
    assert offer.card is not None
    assert offer.card.name == "A30"
    assert offer.traits == ("CUSTOM_FAST", "CUSTOM_GPU_A30")
    group = "PGPU=1 CUSTOM_GPU_A30=required CUSTOM_OLD=forbidden"
    assert str(offer) == f"2 x A30 by cyborg, device profile pair ({group}; {group})"
    assert offer.needs == {
        "": {"VCPU": 8, "MEMORY_MB": 1024, "DISK_GB": 10},
        "_device_profile0": {"PGPU": 1},
        "_device_profile1": {"PGPU": 1},
    }
    check_flavor(flavor(PAIR), expected=Expected(delivery=Delivery.CYBORG, accelerators=2, card="A30"))


@pytest.mark.parametrize(
    ("wrong", "expected", "seen", "cure"),
    [
        (A30, Expected(accelerators=2), "accel:device_profile: 1 a server, expected 2", "accel:device_profile to 2"),
        (
            A30,
            Expected(card="H200"),
            "trait:CUSTOM_GPU_H200: missing in device profile 'a30'",
            "trait:CUSTOM_GPU_H200=required in device profile 'a30'",
        ),
        (
            DeviceProfile(name="a30", groups=({"trait:CUSTOM_GPU_A30": "required"},)),
            Expected(),
            "group 0 of device profile 'a30' asks for no resource",
            "a resource in each group of device profile 'a30'",
        ),
        (DeviceProfile(name="a30", unknown=NO_CYBORG), Expected(card="A30"), NO_CYBORG, "set Cyborg up"),
        (DeviceProfile(name="a30", unknown=NOT_SHOWN), Expected(), NOT_SHOWN, "cyborg:device_profile:get_all"),
        (
            profile_of({"accel:device_profile": "a31"}, {"b": A30, "a30": A30}),
            Expected(card="A30"),
            "'a31': Cyborg has no device profile of this name; it has a30, b",
            "openstack accelerator device profile create a31",
        ),
    ],
)
def test_a_profile_that_does_not_give_it_is_refused_with_what_to_set(
    wrong: DeviceProfile, expected: Expected, seen: str, cure: str
):
    with pytest.raises(FlavorRefused) as caught:
        check_flavor(flavor(wrong), expected=expected)
    assert seen in caught.value.seen
    assert cure in caught.value.next_step
    assert caught.value.seen.count(";") == seen.count(";"), "one fault, not one and what follows from it"


def test_what_the_flavor_asks_for_besides_would_be_taken_twice():
    with pytest.raises(FlavorRefused, match=r"resources:PGPU: 1, and device profile 'a30' asks for PGPU already"):
        check_flavor(flavor(resources__PGPU="1"))
    check_flavor(flavor(resources__PGPU="0"))


def test_warnings_of_a_profile():
    several = DeviceProfile(name="two", groups=({"resources:PGPU": "2"},))
    offer = read_offer(flavor(several, hw__numa_nodes="1"))
    assert "group 0 of device profile two asks for 2 of one device" in offer.warnings[0]
    assert "NUMA" in offer.warnings[1]
    assert read_offer(flavor(PAIR)).warnings == ()


def test_without_asking_cyborg_nothing_is_said_or_refused():
    offer = check_flavor(flavor(None), expected=Expected(delivery=Delivery.CYBORG, accelerators=3))
    assert str(offer) == "what its Cyborg device profile says"
    assert profile_of({}, NO_CYBORG) is None
