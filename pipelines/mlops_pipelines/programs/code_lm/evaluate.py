"""Held-out bits per byte: the sum of -log2 P over all tokens, divided by the number of bytes they stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mlops_pipelines.programs.code_lm.model import Llama
from mlops_pipelines.programs.code_lm.plan import Window, padded, windows

_BATCH = 16


@torch.inference_mode()
def total_bits(
    model: Llama, files: Sequence[NDArray[np.uint16]], *, seq_len: int, rank: int = 0, world_size: int = 1
) -> float:
    """This rank's share of the bits that the model needs for the files (token lists that begin with end-of-file).

    The sum over all ranks is the total. Each token is scored once, in a window with context before it; padding is on
    the right, where a causal model does not see it.
    """
    work = [(file, window) for file in files for window in windows(len(file), seq_len)][rank::world_size]
    work.sort(key=lambda item: item[1].end - item[1].start)
    model.eval()
    bits = 0.0
    for first in range(0, len(work), _BATCH):
        bits += _bits(model, work[first : first + _BATCH])
    return bits


def _bits(model: Llama, work: Sequence[tuple[NDArray[np.uint16], Window]]) -> float:
    ids = torch.from_numpy(padded([file[w.start : w.end].astype(np.int64) for file, w in work]))
    logits: Tensor = model(ids[:, :-1])
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(work), -1)
    nats = sum(
        float(row[w.scored - w.start - 1 : w.end - w.start - 1].double().sum())
        for row, (_, w) in zip(losses, work, strict=True)
    )
    return nats / math.log(2)
