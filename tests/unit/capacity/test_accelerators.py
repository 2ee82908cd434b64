"""Facts about accelerators, what a card can be divided into, and what is recommended."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.capacity.accelerators import (
    AI_ENTERPRISE,
    CARDS,
    MOST_INSTANCES,
    Vendor,
    card_named,
    card_of,
    check_instances,
)
from mlops_sdk.capacity.sharing import Method, Use, Workload, advise, recommend, recommend_instances
from mlops_sdk.errors import CardNotDivisible
from mlops_sdk.local.inventory import TRAITS

H200 = card_named("H200")
L4 = card_named("L4")
MI300X = card_named("MI300X")


def test_a_card_is_found_however_it_is_written():
    for name in ("H200 NVL", "h200-nvl", "CUSTOM_GPU_H200_NVL", "10de:233b"):
        assert card_named(name).name == "H200 NVL"
    assert card_of(TRAITS) is H200  # the machines of the embedded stack
    assert card_of(("CUSTOM_IB_NDR400",)) is None
    assert H200.placement_classes == ("CUSTOM_PCI_10DE_2335",)
    with pytest.raises(CardNotDivisible, match="not in our table"):
        card_named("H900")


def test_no_two_cards_share_a_name_an_id_or_a_trait():
    ids = [(card.vendor, device) for card in CARDS for device in card.device_ids]
    assert len(set(ids)) == len(ids)
    assert len({card.trait for card in CARDS}) == len(CARDS)
    assert {card.vendor for card in CARDS} == {Vendor.NVIDIA, Vendor.AMD}


@pytest.mark.parametrize("card", [card for card in CARDS if card.mig], ids=lambda card: card.name)
def test_each_profile_fits_as_often_as_the_table_says_and_no_more(card):
    for profile in card.mig:
        check_instances(card, {profile.name: profile.most})
        assert profile.most <= MOST_INSTANCES
        assert (profile.memory_gb - 0.5) * profile.most <= card.memory_gb  # names are rounded
        with pytest.raises(CardNotDivisible):
            check_instances(card, {profile.name: profile.most + 1})


def test_more_instances_than_the_model_has_are_refused():
    with pytest.raises(CardNotDivisible, match="8 MIG instances") as caught:
        recommend_instances(H200, "1g.18gb", per_card=8)
    assert "at most 7" in caught.value.seen
    with pytest.raises(CardNotDivisible, match="5 MIG instances") as caught:
        recommend_instances(card_named("A30"), "1g.6gb", per_card=5)
    assert "at most 4" in caught.value.seen
    with pytest.raises(CardNotDivisible, match="has no MIG"):
        recommend_instances(L4, "1g.6gb", per_card=1)
    with pytest.raises(CardNotDivisible, match=r"no MIG profile '1g\.5gb'"):
        recommend_instances(H200, "1g.5gb", per_card=1)


@pytest.mark.parametrize(
    ("mix", "fits"),
    [
        ({"3g.71gb": 1, "4g.71gb": 1}, True),
        ({"3g.71gb": 1, "2g.35gb": 1, "1g.18gb": 2}, True),
        ({"2g.35gb": 3, "1g.18gb": 1}, True),
        ({"3g.71gb": 2, "1g.18gb": 1}, False),  # 7 of 7 compute slices would do, the memory is full
        ({"4g.71gb": 2}, False),
        ({"7g.141gb": 1, "1g.18gb": 1}, False),
    ],
)
def test_mixes_fit_when_they_can_be_placed_beside_each_other(mix, fits):
    if fits:
        check_instances(H200, mix)
        return
    with pytest.raises(CardNotDivisible, match=r"together|asked for"):
        check_instances(H200, mix)


def test_work_that_talks_between_cards_gets_whole_ones():
    answer = recommend(H200, Workload(use=Use.TRAINING, memory_gb=10, processes=8))
    assert (answer.method, answer.cards, answer.licence) == (Method.PASSTHROUGH, 8, "")
    assert "NVLink" in answer.why[0]


def test_serving_small_models_gets_mig_and_a_licence_only_in_virtual_machines():
    answer = recommend(H200, Workload(use=Use.SERVING, memory_gb=16, copies=10))
    assert (answer.method, answer.profile, answer.per_card, answer.cards) == (Method.MIG, "1g.18gb", 7, 2)
    assert answer.licence == ""
    virtual = recommend(H200, Workload(use=Use.SERVING, memory_gb=16, copies=10, virtual=True))
    assert (virtual.method, virtual.licence) == (Method.MIG, AI_ENTERPRISE)
    assert AI_ENTERPRISE in str(virtual)


def test_notebooks_share_unless_tenants_must_be_kept_apart():
    notebooks = Workload(use=Use.NOTEBOOK, memory_gb=8, copies=6, virtual=True)
    assert recommend(H200, notebooks).method is Method.VGPU
    assert recommend(H200, notebooks).licence == AI_ENTERPRISE
    apart = Workload(use=Use.NOTEBOOK, memory_gb=8, copies=6, virtual=True, tenants=True)
    assert recommend(H200, apart).method is Method.MIG
    assert recommend(H200, Workload(use=Use.NOTEBOOK, memory_gb=8, copies=6)).method is Method.MIG  # no hypervisor


def test_cards_without_mig_are_shared_in_virtual_machines_and_whole_elsewhere():
    small = {"use": Use.SERVING, "memory_gb": 4, "copies": 3}
    assert recommend(L4, Workload(**small)).method is Method.PASSTHROUGH
    shared = recommend(L4, Workload(**small, virtual=True))
    assert (shared.method, shared.per_card) == (Method.VGPU, 6)
    assert any("neighbours" in warning for warning in shared.warnings)


def test_amd_cards_are_shared_without_a_licence_as_far_as_their_driver_does():
    answer = recommend(MI300X, Workload(use=Use.SERVING, memory_gb=20, copies=8, virtual=True))
    assert (answer.method, answer.per_card, answer.licence) == (Method.VGPU, 8, "")
    assert any("preview" in warning for warning in answer.warnings)
    larger = recommend(MI300X, Workload(use=Use.SERVING, memory_gb=40, copies=2, virtual=True))
    assert (larger.method, larger.cards) == (Method.PASSTHROUGH, 2)  # an eighth has 24 GB
    alone = recommend(card_named("MI325X"), Workload(use=Use.SERVING, memory_gb=20, copies=2, virtual=True))
    assert alone.method is Method.PASSTHROUGH


def test_pieces_of_cards_without_vgpu_go_to_no_virtual_machine():
    gb200 = card_named("GB200")
    small = {"use": Use.SERVING, "memory_gb": 20, "copies": 7}
    assert recommend(gb200, Workload(**small)).method is Method.MIG
    assert recommend(gb200, Workload(**small, virtual=True)).method is Method.PASSTHROUGH
    with pytest.raises(CardNotDivisible, match="virtual machines"):
        recommend_instances(gb200, "1g.23gb", per_card=7, virtual=True)


def test_machines_are_advised_on_by_their_traits():
    workload = Workload(use=Use.SERVING, memory_gb=16)
    assert advise(TRAITS, workload) == recommend(H200, workload)
    assert advise(("CUSTOM_IB_NDR400",), workload) is None


def test_what_does_not_fit_on_a_card_is_refused():
    with pytest.raises(CardNotDivisible, match="does not fit"):
        recommend(L4, Workload(use=Use.SERVING, memory_gb=40))


@st.composite
def wishes(draw):
    card = draw(st.sampled_from(CARDS))
    return card, Workload(
        use=draw(st.sampled_from(Use)),
        memory_gb=draw(st.floats(0.01, 1.0)) * card.memory_gb,
        processes=draw(st.integers(1, 16)),
        copies=draw(st.integers(1, 40)),
        virtual=draw(st.booleans()),
        tenants=draw(st.booleans()),
    )


@given(wishes())
def test_whatever_is_recommended_can_be_had(wish):
    card, wanted = wish
    answer = recommend(card, wanted)
    assert answer.why
    if answer.method is Method.MIG:
        check_instances(card, {answer.profile: answer.per_card})
        assert card.profile(answer.profile).memory_gb >= wanted.memory_gb
        assert answer.per_card * answer.cards >= wanted.copies
        assert wanted.processes == 1
    if answer.method is Method.VGPU:
        assert wanted.virtual
        assert answer.per_card * wanted.memory_gb <= card.memory_gb * (1 + 1e-9)
        assert answer.per_card * answer.cards >= wanted.copies
    if answer.method is Method.PASSTHROUGH:
        assert answer.cards == wanted.processes * wanted.copies
        assert not answer.licence
    assert bool(answer.licence) == (
        answer.method is not Method.PASSTHROUGH and wanted.virtual and card.vendor is Vendor.NVIDIA
    )
    assert any("not run on hardware" in warning for warning in answer.warnings)
