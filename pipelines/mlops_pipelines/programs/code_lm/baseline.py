"""The baseline that the model has to beat: a byte 3-gram with interpolated modified Kneser-Ney smoothing.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998), section 4.1.6: the best
smoothing of their comparison. Every byte is predicted from the two before it; orders 3, 2, 1 and the uniform
distribution over 256 bytes are interpolated. A file starts after two zero bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlops_pipelines.programs.code_lm.corpus import PreparedData, sample, samples
from mlops_pipelines.programs.code_lm.sources import Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_START = b"\0\0"
_DISCOUNTED = 3  # counts 1, 2 and 3-or-more have a discount each


class ByteTrigram:
    """P(byte | two bytes before it).

    Args:
        files: The training files.

    Example:
        >>> ByteTrigram([b"abababab"]).bits_per_byte([b"abab"]) < 2
        True
    """

    def __init__(self, files: Sequence[bytes]) -> None:
        import numpy as np  # noqa: PLC0415 - extra [train]

        counts = np.bincount(np.concatenate([_codes(text) for text in files]), minlength=256**3)
        trigrams = np.flatnonzero(counts)
        # Lower orders count in how many contexts a byte was seen, not how often.
        bigrams, contexts = np.unique(trigrams & 0xFFFF, return_counts=True)
        unigrams, bytes_before = np.unique(bigrams & 0xFF, return_counts=True)
        p1 = _interpolate(unigrams, bytes_before, np.full((1, 256), 1 / 256, dtype=np.float32))
        p2 = _interpolate(bigrams, contexts, np.repeat(p1, 256, axis=0))
        self._p3 = _interpolate(trigrams, counts[trigrams], np.tile(p2, (256, 1))).reshape(256, 256, 256)

    def probability(self, before: bytes, byte: int) -> float:
        """P(byte | the last two bytes of `before`)."""
        first, second = (_START + before)[-2:]
        return float(self._p3[first, second, byte])

    def bits_per_byte(self, files: Sequence[bytes]) -> float:
        """Mean of -log2 P over all bytes of the files."""
        import numpy as np  # noqa: PLC0415 - extra [train]

        flat = self._p3.reshape(-1)
        bits = sum(float(-np.log2(flat[_codes(text)]).sum()) for text in files)
        return bits / sum(len(text) for text in files)


def baseline_bits_per_byte(data: PreparedData, evaluate_bytes: int) -> float:
    """The baseline trained on the whole train part, measured on the same held-out files as the model. About 2 s."""
    held_out = data.text("held_out")
    return ByteTrigram(data.text("train")).bits_per_byte([held_out[i] for i in sample(data, evaluate_bytes)])


def baseline_held_out(data: PreparedData, evaluate_bytes: int, kind: Kind) -> float:
    """The baseline of one kind: trained on that kind's train files alone, which makes it the hardest to beat there."""
    held_out = data.text("held_out")
    return ByteTrigram(data.text("train", kind)).bits_per_byte(
        [held_out[i] for i in samples(data, evaluate_bytes)[kind]]
    )


def _codes(text: bytes) -> NDArray[np.int64]:
    """Every 3-gram of a file as one number: the file's first byte is preceded by the start bytes."""
    import numpy as np  # noqa: PLC0415 - extra [train]

    data = np.frombuffer(_START + text, dtype=np.uint8).astype(np.int64)
    return (data[:-2] << 16) | (data[1:-1] << 8) | data[2:]


def _interpolate(
    grams: NDArray[np.int64], counts: NDArray[np.int64], lower: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Discounted counts plus the mass so freed times the lower order.

    Args:
        grams: The n-grams that were seen: the context's number times 256, plus the byte.
        counts: How often each was.
        lower: ``[contexts, 256]``: the lower order's distribution in each context. It alone counts in a context that
            was never seen.
    """
    import numpy as np  # noqa: PLC0415 - extra [train]

    taken = _discounts(counts)[np.minimum(counts, _DISCOUNTED)]
    context = grams >> 8
    totals = np.bincount(context, weights=counts, minlength=len(lower))
    freed = np.bincount(context, weights=taken, minlength=len(lower))
    weight = np.where(totals > 0, freed / np.maximum(totals, 1), 1.0).astype(np.float32)
    out = lower * weight[:, np.newaxis]
    out.reshape(-1)[grams] += ((counts - taken) / totals[context]).astype(np.float32)
    return out


def _discounts(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """D(0..3+) from the counts of counts (equation 26).

    Where those are too sparse: one discount for all, n1 / (n1 + 2 n2), as in Kneser and Ney's original.
    """
    import numpy as np  # noqa: PLC0415 - extra [train]

    n1, n2, n3, n4 = (int(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    y = min(n1 / (n1 + 2 * n2), 0.95) if n1 else 0.5
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, y, y, y])
    raw = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return np.array([0.0, *(min(max(d, 0.05), k - 0.05) for k, d in enumerate(raw, start=1))])
