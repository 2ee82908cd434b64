"""Profiles and references: they survive storage, refuse damage, and add up."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_sdk.drift.profile import Counts, Profile, Reference, build_reference
from mlops_sdk.errors import ProfileDamaged, ProfileMismatch
from support_drift import reference, traffic

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def profile(instance: str = "7-a", *, prompts: list[str] | None = None, version: str = "3") -> Profile:
    known = reference("python")
    return Profile(
        model_version=version,
        instance=instance,
        reference=known.sha256,
        counts=known.count(traffic("python", 20, seed=1) if prompts is None else prompts),
        started_at=START,
        repeats=2,
        skipped={"tokens": 1},
        first_at=START + timedelta(seconds=5),
        last_at=START + timedelta(seconds=9),
    )


def test_each_tenth_of_the_references_own_prompts_is_in_each_bin_of_a_feature_without_ties() -> None:
    known = reference("python")
    row = known.kinds["python"].bins["line_length"]
    assert len(row) == 10
    assert all(120 <= count <= 180 for count in row)  # 150 each, but for equal values


def test_a_value_that_never_varies_leaves_two_bins_not_none() -> None:
    known = build_reference({"plain": ["abc def"] * 10, "braces": ["{}"] * 10}, trained=["plain"])
    assert known.kinds["plain"].bins["braces"] == (10, 0)
    assert known.kinds["braces"].bins["braces"] == (0, 10)


def test_storage_changes_nothing() -> None:
    known = reference("python")
    assert Reference.parse(known.to_bytes()) == known
    assert Reference.parse(known.to_bytes()).sha256 == known.sha256
    assert Profile.parse(profile().to_bytes()) == profile()
    fresh = replace(profile(prompts=[]), first_at=None, last_at=None)
    assert Profile.parse(fresh.to_bytes()) == fresh


def test_no_text_is_in_what_is_stored() -> None:
    stored = profile(prompts=["unmistakable_secret_word = 1"]).to_bytes()
    assert b"unmistakable" not in stored


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_is_a_typed_error_or_no_damage(data: st.DataObject) -> None:
    body = bytearray(profile().to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = Profile.parse(bytes(body[: data.draw(st.integers(0, len(body)))]))
    except ProfileDamaged:
        return
    assert all(sum(row) == found.counts.prompts for row in found.counts.bins.values())


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"format":1}', b"[" * 100_000, b"\xff"])
def test_what_is_no_profile_is_refused(body: bytes) -> None:
    with pytest.raises(ProfileDamaged):
        Profile.parse(body)
    with pytest.raises(ProfileDamaged):
        Reference.parse(body)


def test_a_reference_of_other_features_is_refused() -> None:
    raw = json.loads(reference("python").to_bytes())
    with pytest.raises(ProfileMismatch, match="version 2"):
        Reference.parse(json.dumps({**raw, "features": 2}).encode())


def test_an_inconsistent_reference_is_refused() -> None:
    raw = json.loads(reference("python").to_bytes())
    for change in (
        {"trained": ["rust"]},
        {"trained": []},
        {"edges": {**raw["edges"], "braces": [0.5, 0.1]}},
        {"edges": {k: v for k, v in raw["edges"].items() if k != "braces"}},
    ):
        with pytest.raises(ProfileDamaged):
            Reference.parse(json.dumps({**raw, **change}).encode())


def test_counts_add_up_in_any_order_over_equal_bins_only() -> None:
    one, two = profile("1-a").counts, profile("2-b", prompts=traffic("cpp", 5, seed=2)).counts
    assert one.plus(two) == two.plus(one)
    assert one.plus(two).prompts == 25
    with pytest.raises(ProfileMismatch):
        reference("python").kinds["cpp"].plus(Counts(prompts=0, bins={"length": (0,)}))


def test_a_window_is_the_difference_of_two_readings() -> None:
    known = reference("python")
    early, late = traffic("python", 10, seed=1), traffic("cpp", 7, seed=1)
    before, after = known.count(early), known.count(early + late)
    assert after.since(before) == known.count(late)
    with pytest.raises(ProfileMismatch, match="went back"):
        before.since(after)
