"""The baseline is a probability distribution, and a good one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlops_pipelines.programs.code_lm.baseline import ByteTrigram, baseline_bits_per_byte, baseline_held_out
from mlops_pipelines.programs.code_lm.corpus import PreparedData, samples


@pytest.fixture(scope="module")
def trigram(prepared: PreparedData) -> ByteTrigram:
    return ByteTrigram(prepared.text("train"))


@pytest.mark.parametrize("before", [b"", b"de", b"\xff\xfe", b"zq", b"\n"])
def test_probabilities_sum_to_one_in_any_context(trigram: ByteTrigram, before: bytes):
    values = [trigram.probability(before, byte) for byte in range(256)]
    assert math.isclose(sum(values), 1.0, rel_tol=1e-5)
    assert min(values) > 0


def test_the_last_two_bytes_decide(trigram: ByteTrigram):
    assert trigram.probability(b"xxxde", ord("f")) == trigram.probability(b"de", ord("f"))
    assert trigram.probability(b"de", ord("f")) > 0.3


def test_bits_are_minus_log2_of_the_probabilities(trigram: ByteTrigram):
    text = b"def f(x):\n"
    bits = sum(-math.log2(trigram.probability(text[:i], byte)) for i, byte in enumerate(text))
    assert math.isclose(trigram.bits_per_byte([text]), bits / len(text), rel_tol=1e-6)


def test_random_bytes_cost_eight_bits_and_a_little():
    noise = [np.random.default_rng(seed).bytes(40_000) for seed in range(2)]
    assert 8.0 <= ByteTrigram(noise[:1]).bits_per_byte(noise[1:]) < 8.5


def test_it_is_stronger_than_a_trigram_with_add_one_smoothing_and_than_bigrams(prepared: PreparedData):
    train, held_out = b"".join(prepared.text("train")), prepared.text("held_out")
    ours = ByteTrigram([train]).bits_per_byte(held_out)
    data = np.frombuffer(train, dtype=np.uint8).astype(np.int64)
    counts3 = np.bincount((data[:-2] << 16) | (data[1:-1] << 8) | data[2:], minlength=256**3).reshape(256, 256, 256)
    add_one = (counts3 + 1) / (counts3.sum(-1, keepdims=True) + 256)
    counts2 = counts3.sum(0)
    bigram = (counts2 + 0.1) / (counts2.sum(-1, keepdims=True) + 25.6)
    text = np.frombuffer(b"".join(held_out), dtype=np.uint8)
    assert ours < -np.log2(add_one[text[:-2], text[1:-1], text[2:]]).mean()
    assert ours < -np.log2(bigram[text[:-1], text[1:]]).mean()


def test_its_own_text_makes_it_harder_to_beat_than_text_of_all_kinds(wider: PreparedData):
    mixed = ByteTrigram(wider.text("train"))
    held_out = wider.text("held_out")
    for kind, chosen in samples(wider, 3000).items():
        alone = baseline_held_out(wider, 3000, kind)
        assert 1.5 < alone < mixed.bits_per_byte([held_out[i] for i in chosen]) + 0.1


def test_measured_on_the_sample(prepared: PreparedData):
    assert 2.0 < baseline_bits_per_byte(prepared, 3000) < 4.5
