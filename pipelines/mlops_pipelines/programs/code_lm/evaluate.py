"""Held-out bits per byte, per kind of text: the sum of -log2 P over all tokens, divided by the bytes they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from mlops_pipelines.programs.code_lm.baseline import baseline_held_out
from mlops_pipelines.programs.code_lm.corpus import PreparedData, encode_files, samples
from mlops_pipelines.programs.code_lm.model import Llama
from mlops_pipelines.programs.code_lm.plan import Window, padded, windows
from mlops_pipelines.programs.code_lm.sources import Kind

_BATCH = 16
_Files = Mapping[Kind, Sequence[NDArray[np.uint16]]]


class HeldOut:
    """The held-out sample of each kind, to measure any model on, by all ranks together.

    Args:
        data: Prepared data.
        limit: Bytes of each kind.
        rank: Of `world_size` that share the work.
        world_size: Ranks in all.
        sum_up: Adds a number up over the ranks.
    """

    def __init__(
        self,
        data: PreparedData,
        limit: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        sum_up: Callable[[float], float] = lambda value: value,
    ) -> None:
        self._data = data
        self._limit = limit
        self._rank = rank
        self._world_size = world_size
        self._sum_up = sum_up
        self._chosen = samples(data, limit)
        sizes = data.meta.held_out.sizes
        self.sizes: dict[Kind, int] = {kind: sum(sizes[i] for i in chosen) for kind, chosen in self._chosen.items()}
        self.files = sum(len(chosen) for chosen in self._chosen.values())

    def of(self, model: Llama, *, seq_len: int) -> dict[str, float]:
        """Bits per byte of a model that reads the data's own tokens, per kind."""
        tokens = self._data.tokens("held_out")
        files: _Files = {kind: [tokens[i] for i in chosen] for kind, chosen in self._chosen.items()}
        return self._measure(model, files, seq_len)

    def of_other(self, model: Llama, tokenizer: Tokenizer, *, seq_len: int) -> dict[str, float]:
        """Bits per byte of a model with a tokenizer of its own, on the same text."""
        text = self._data.text("held_out")
        files: _Files = {
            kind: [np.array(ids, dtype=np.uint16) for ids in encode_files(tokenizer, [text[i] for i in chosen])]
            for kind, chosen in self._chosen.items()
        }
        return self._measure(model, files, seq_len)

    def of_baseline(self) -> dict[str, float]:
        """Bits per byte of the byte 3-gram, per kind; each rank makes those of its kinds."""
        kinds = sorted(self._chosen)
        mine = kinds[self._rank :: self._world_size]
        found = {kind: baseline_held_out(self._data, self._limit, kind) for kind in mine}
        return {kind: self._sum_up(found.get(kind, 0.0)) for kind in kinds}

    def together(self, figures: Mapping[str, float]) -> float:
        """Bits per byte of all kinds together: each weighs as much as its sample has bytes."""
        return sum(figures[kind] * size for kind, size in self.sizes.items()) / sum(self.sizes.values())

    def _measure(self, model: Llama, files: _Files, seq_len: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        for kind, size in self.sizes.items():
            bits = total_bits(model, files[kind], seq_len=seq_len, rank=self._rank, world_size=self._world_size)
            figures[kind] = self._sum_up(bits) / size
        return figures


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
