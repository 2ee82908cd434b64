"""Prompts are cut as users send them: deterministic, within bounds, from everywhere, never blank."""

from __future__ import annotations

import pytest

from mlops_sdk.drift.prompts import cut_prompts
from support_drift import cpp_texts, python_texts


@pytest.mark.parametrize("texts", [python_texts, cpp_texts])
def test_they_are_pieces_of_the_text_that_fit_into_a_small_models_context(texts) -> None:
    prompts = cut_prompts(texts(), count=500, seed=3)
    assert len(prompts) == 500
    assert all(prompt.strip() and len(prompt) <= 600 for prompt in prompts)
    assert all(any(prompt in text for text in texts()) for prompt in prompts[:50])
    assert len(set(prompts)) > 490


def test_the_same_seed_gives_the_same_and_another_seed_others() -> None:
    first = cut_prompts(python_texts(), count=50, seed=1)
    assert cut_prompts(python_texts(), count=50, seed=1) == first
    assert cut_prompts(python_texts(), count=60, seed=1)[:50] == first
    assert set(cut_prompts(python_texts(), count=50, seed=2)).isdisjoint(first)


def test_text_without_lines_gives_none() -> None:
    assert cut_prompts([], count=3) == []
    assert cut_prompts(["one line"], count=3) == []
    assert cut_prompts(["\n \n\n"], count=3) == []


def test_text_that_is_mostly_blank_still_gives_prompts() -> None:
    assert all(prompt.strip() for prompt in cut_prompts(["\n" * 50 + "x = 1\n" + "\n" * 5], count=20))
