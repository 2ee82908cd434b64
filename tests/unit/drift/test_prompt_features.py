"""Features of a prompt: exact where they can be, and defined for every string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.drift.features import NAMES, READ_BYTES, features


def by_name(text: str) -> dict[str, float]:
    return dict(zip(NAMES, features(text), strict=True))


def test_they_are_what_they_say() -> None:
    found = by_name("if (x) {\n\treturn A<1>;\n}\n")
    assert found["length"] == 25
    assert found["line_length"] == pytest.approx(25 / 4)
    assert found["indented_lines"] == pytest.approx(1 / 4)
    assert found["braces"] == pytest.approx(2 / 25)
    assert found["angle_brackets"] == pytest.approx(2 / 25)
    assert found["semicolons"] == pytest.approx(1 / 25)
    assert found["digits"] == found["upper_case"] == pytest.approx(1 / 25)
    assert found["beyond_ascii"] == 0


def test_other_scripts_are_seen() -> None:
    assert by_name("прогноз")["beyond_ascii"] == 1


@given(st.text(alphabet=st.characters(), max_size=300) | st.text(alphabet="\ud800\udfff\x00a\n", max_size=20))
def test_any_string_has_features_within_bounds(text: str) -> None:
    length, line_length, *shares = features(text)
    assert length == len(text)
    assert 0 <= line_length <= 4 * max(1, len(text))
    assert all(0 <= share <= 1 for share in shares)
    assert features(text) == (length, line_length, *shares)


def test_a_huge_prompt_is_measured_on_its_beginning_and_by_its_whole_length() -> None:
    long, beginning = by_name("x;" * 2_000_000), by_name("x;" * (READ_BYTES // 2))
    assert long.pop("length") == 4_000_000
    beginning.pop("length")
    assert long == beginning
