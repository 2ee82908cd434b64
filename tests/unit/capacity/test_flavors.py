"""What a Nova flavor gives, and which extra specs a refusal names."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.capacity.flavors import Delivery, Expected, Flavor, check_flavor
from mlops_sdk.errors import FlavorRefused

IRONIC = {
    "resources:CUSTOM_GPU_H200_8X": "1",
    "resources:VCPU": "0",
    "resources:MEMORY_MB": "0",
    "resources:DISK_GB": "0",
}


def flavor(specs: Mapping[str, str] | None, *, vcpus: int = 64, ram_mb: int = 65536) -> Flavor:
    return Flavor(id="f", name="gpu", vcpus=vcpus, ram_mb=ram_mb, disk_gb=100, ephemeral_gb=20, specs=specs)


def refusal(specs: Mapping[str, str] | None, expected: Expected | None = None, traits: tuple[str, ...] = ()) -> str:
    with pytest.raises(FlavorRefused) as caught:
        check_flavor(flavor(specs), expected=expected, traits=traits)
    return str(caught.value)


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ({}, "no accelerators"),
        ({"pci_passthrough:alias": "h200:8, nic:1"}, "9 x accelerators by passthrough"),
        ({"pci_passthrough:alias": "h200:8", "trait:CUSTOM_GPU_H200": "required"}, "8 x H200 by passthrough"),
        ({"resources:VGPU": "1", "trait:CUSTOM_GPU_A40": "required"}, "1 x A40 by vgpu"),
        ({"resources1:VGPU": "1", "resources2:VGPU": "1"}, "2 x accelerators by vgpu"),
        ({"resources:CUSTOM_MIG_1G_18GB": "2", "trait:CUSTOM_GPU_H200": "required"}, "2 x H200 1g.18gb by mig"),
        ({"accel:device_profile": "fpga"}, "what its Cyborg device profile says"),
        (IRONIC, "bare metal of class CUSTOM_GPU_H200_8X"),
    ],
)
def test_what_a_flavor_gives_is_read_from_its_extra_specs(specs: dict[str, str], said: str):
    assert str(check_flavor(flavor(specs))) == said


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ({"pci_passthrough:alias": "h200"}, "'h200' is not NAME:COUNT"),
        ({"pci_passthrough:alias": "h200:0"}, "'h200:0' is not NAME:COUNT"),
        ({"resources:CUSTOM_PCI_10DE_2335": "1"}, "pci_passthrough:alias=NAME:COUNT instead"),
        ({"resources:VGPU": "some"}, "resources:VGPU: 'some' is not a number"),
        ({"trait:CUSTOM_X": "yes"}, "trait:CUSTOM_X: 'yes'"),
        ({"hw:pci_numa_affinity_policy": "always"}, "required, socket, preferred, legacy"),
        (
            {"pci_passthrough:alias": "h200:8", "hw:pci_numa_affinity_policy": "required"},
            "has no effect on a server without NUMA nodes",
        ),
        ({"hw:cpu_policy": "dedicated", "resources:PCPU": "64"}, "Nova takes one or the other"),
        ({"hw:cpu_policy": "mixed"}, "hw:cpu_dedicated_mask: missing"),
        ({"hw:cpu_dedicated_mask": "0-3"}, "hw:cpu_policy missing"),
        ({"hw:cpu_thread_policy": "isolate"}, "hw:cpu_policy=dedicated"),
        ({"hw:numa_nodes": "none"}, "hw:numa_nodes: 'none'"),
        ({"hw:numa_nodes": "3"}, "3 nodes do not divide 64 vCPUs"),
        ({"hw:numa_nodes": "2", "hw:numa_cpus.0": "0-31"}, "hw:numa_cpus.1: missing, while other nodes have theirs"),
        ({"accel:device_profile": " "}, "names no profile"),
        (
            {"resources:CUSTOM_MIG_1G_18GB": "8", "trait:CUSTOM_GPU_H200": "required"},
            "8 MIG instances were asked for on one H200",
        ),
        ({**IRONIC, "resources:DISK_GB": "40"}, "machines of Ironic have no DISK_GB in Placement"),
        ({**IRONIC, "resources:CUSTOM_GPU_H200_8X": "2"}, "one machine of one class"),
        ({**IRONIC, "resources:VGPU": "1"}, "on a machine without hypervisor"),
    ],
)
def test_extra_specs_that_contradict_each_other_are_named(specs: dict[str, str], words: str):
    assert words in refusal(specs)


def test_a_half_written_bare_metal_flavor_names_each_missing_zero():
    said = refusal({"resources:CUSTOM_BM": "1", "resources:VCPU": "0"})
    assert "set resources:MEMORY_MB=0, resources:DISK_GB=0" in said


def test_what_is_expected_and_missing_is_named_in_one_go():
    wanted = Expected(
        delivery=Delivery.PASSTHROUGH,
        accelerators=8,
        card="H200",
        numa_affinity="required",
        numa_nodes=2,
        pinned=True,
    )
    said = refusal({}, wanted, ("CUSTOM_NVLINK",))
    for spec in (
        "pci_passthrough:alias=NAME:COUNT",
        "trait:CUSTOM_GPU_H200=required",
        "trait:CUSTOM_NVLINK=required",
        "hw:pci_numa_affinity_policy=required",
        "hw:numa_nodes=2",
        "hw:cpu_policy=dedicated",
    ):
        assert spec in said
    good = {
        "pci_passthrough:alias": "h200:8",
        "trait:CUSTOM_GPU_H200": "required",
        "trait:CUSTOM_NVLINK": "required",
        "hw:pci_numa_affinity_policy": "required",
        "hw:numa_nodes": "2",
        "hw:cpu_policy": "dedicated",
    }
    offer = check_flavor(flavor(good), expected=wanted, traits=("CUSTOM_NVLINK",))
    assert (offer.accelerators, offer.pinned, offer.traits) == (8, True, ("CUSTOM_GPU_H200", "CUSTOM_NVLINK"))


def test_another_number_or_another_way_than_expected_is_refused():
    assert "4 a server, expected 8" in refusal({"pci_passthrough:alias": "h200:4"}, Expected(accelerators=8))
    assert "resources:VGPU: missing; it gives 4 x" in refusal(
        {"pci_passthrough:alias": "h200:4"}, Expected(delivery=Delivery.VGPU)
    )


def test_what_this_login_may_not_see_is_not_promised():
    assert "os-flavor-extra-specs:index" in refusal(None, Expected(accelerators=1))
    assert check_flavor(flavor(None)).warnings == ("its extra specs are not shown to this login",)


def test_placement_is_asked_for_the_sizes_that_nova_would_ask_for():
    assert check_flavor(flavor({})).needs == {"": {"VCPU": 64, "MEMORY_MB": 65536, "DISK_GB": 120}}
    assert check_flavor(flavor({"hw:cpu_policy": "dedicated"})).needs[""]["PCPU"] == 64
    assert check_flavor(flavor(IRONIC)).needs == {"": {"CUSTOM_GPU_H200_8X": 1}}
    grouped = check_flavor(flavor({"resources1:VGPU": "1"})).needs
    assert grouped["1"] == {"VGPU": 1}
    assert "VGPU" not in grouped[""]


def test_several_vgpus_of_one_card_are_warned_of():
    (first, second) = check_flavor(flavor({"resources:VGPU": "2", "trait:CUSTOM_GPU_A40": "required"})).warnings
    assert "NVIDIA's driver gives one" in first
    assert "licence" in second


KEYS = st.sampled_from(
    [
        "pci_passthrough:alias",
        "resources:VGPU",
        "resources:CUSTOM_A",
        "resources1:CUSTOM_MIG_1G_10GB",
        "resources:VCPU",
        "resources:PCPU",
        "resources:MEMORY_MB",
        "resources:DISK_GB",
        "trait:CUSTOM_GPU_H100",
        "hw:cpu_policy",
        "hw:cpu_dedicated_mask",
        "hw:numa_nodes",
        "hw:numa_cpus.0",
        "hw:pci_numa_affinity_policy",
        "accel:device_profile",
        "somebody:elses",
    ]
)
VALUES = st.sampled_from(["", "0", "1", "2", "9", "-1", "required", "dedicated", "mixed", "a:1", "a:1,b:2", "x"])


@given(st.dictionaries(KEYS, VALUES), st.integers(1, 65), st.integers(1, 4097))
def test_any_flavor_is_either_read_or_refused_with_what_to_set(specs: dict[str, str], vcpus: int, ram_mb: int):
    shown = flavor(specs, vcpus=vcpus, ram_mb=ram_mb)
    try:
        offer = check_flavor(shown)
    except FlavorRefused as refused:
        error = refused
    else:
        assert all(amount > 0 for wanted in offer.needs.values() for amount in wanted.values())
        assert offer.accelerators >= 0
        return
    assert "ask the cloud's operator to set" in error.next_step
    assert any(key in error.seen for key in (*specs, "hw:", "resources:"))


def test_cards_that_placement_counts_are_asked_for_one_by_one():
    cards = flavor({"pci_passthrough:alias": "h200:2"})
    needs = check_flavor(cards, expected=Expected(placement_class="CUSTOM_GPU_H200")).needs
    assert [dict(needs[group]) for group in ("_card0", "_card1")] == [{"CUSTOM_GPU_H200": 1}] * 2
    assert list(check_flavor(cards).needs) == [""]
