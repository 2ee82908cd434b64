"""What a training does follows from its arguments, whatever ranks share it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_pipelines.programs.code_lm.plan import TrainArgs, check_world, learning_rate, sequences, windows
from mlops_sdk.errors import SettingsError

TOKENS = np.arange(2000, dtype=np.uint16)


def test_two_ranks_share_what_one_would_take():
    args = TrainArgs(batch=8, seq_len=16)
    for step in (0, 3, 40):
        alone = sequences(TOKENS, args, step, 0, 1)
        shared = [sequences(TOKENS, args, step, rank, 2) for rank in (0, 1)]
        assert np.array_equal(alone[0::2], shared[0])
        assert np.array_equal(alone[1::2], shared[1])


def test_an_epoch_takes_every_sequence_once_and_the_next_one_another_order():
    args = TrainArgs(batch=1, seq_len=16)
    per_epoch = (len(TOKENS) - 1) // 16 - 1
    first = [int(sequences(TOKENS, args, step, 0, 1)[0, 0]) for step in range(per_epoch)]
    second = [int(sequences(TOKENS, args, per_epoch + step, 0, 1)[0, 0]) for step in range(per_epoch)]
    assert len(set(first)) == len(set(second)) == per_epoch
    assert first != second


def test_sequences_are_pieces_of_the_stream():
    rows = sequences(TOKENS, TrainArgs(batch=4, seq_len=16), 7, 0, 1)
    assert rows.shape == (4, 17)
    assert (np.diff(rows, axis=1) == 1).all()


def test_another_seed_is_another_order():
    orders = [sequences(TOKENS, TrainArgs(seed=seed), 0, 0, 1).tolist() for seed in (1, 2)]
    assert orders[0] != orders[1]


def test_the_learning_rate_rises_then_falls():
    args = TrainArgs(steps=100, warm_up=10, learning_rate=1.0)
    rates = [learning_rate(args, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0.03 <= rates[-1] < 0.05


@given(length=st.integers(0, 500), seq_len=st.integers(8, 64))
def test_every_token_but_the_first_is_scored_once_and_fits_the_model(length: int, seq_len: int):
    found = list(windows(length, seq_len))
    assert [i for w in found for i in range(w.scored, w.end)] == list(range(1, length))
    assert all(w.end - w.start <= seq_len + 1 and w.start < w.scored for w in found)
    assert all(w.scored - w.start > seq_len // 4 for w in found[1:])


def test_a_wrong_argument_is_named():
    with pytest.raises(SettingsError, match="stepz"):
        TrainArgs.parse({"stepz": 3})
    with pytest.raises(SettingsError, match="batch"):
        TrainArgs.parse({"batch": 0})


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(SettingsError, match="3 ranks"):
        check_world(TrainArgs(batch=8), 3)
