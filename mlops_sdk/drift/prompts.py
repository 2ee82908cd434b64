"""Prompts as users of a code model send them, cut out of text: what references are made of. Pure."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

_LINES = (3, 24)
# Some 200 tokens, at most 430 of any text we know: a small model's context holds the prompt and its completion.
_MOST_CHARACTERS = 600


def cut_prompts(texts: Sequence[str], *, count: int, seed: int = 0) -> list[str]:
    """The beginnings of what somebody wants continued: some whole lines and the start of one more.

    Where a prompt begins is spread evenly over all lines of all texts; it is 3 to 24 lines long, short ones being more
    frequent, ends in the middle of a line, and is at most 600 characters. The same arguments give the same prompts.

    Args:
        texts: Files, say. Blank ones and those with fewer than two lines are left out.
        count: How many prompts; none if no text is long enough.
        seed: Another seed, other prompts.
    """
    files = [lines for lines in (text.splitlines(keepends=True) for text in texts if text.strip()) if len(lines) > 1]
    ends = list(accumulate(len(lines) for lines in files))
    if not ends:
        return []
    return [_cut(files, ends, _Draw(f"{seed}/{number}")) for number in range(count)]


def _cut(files: Sequence[Sequence[str]], ends: Sequence[int], draw: _Draw) -> str:
    while True:
        at = draw.below(ends[-1])
        which = bisect_right(ends, at)
        lines = files[which]
        start = at - (ends[which] - len(lines))
        shortest, longest = _LINES
        wanted = round(shortest * (longest / shortest) ** draw.share())
        piece = lines[start : start + wanted]
        last = piece[-1]
        text = "".join(piece[:-1]) + last[: draw.below(len(last)) + 1]
        if text.strip():
            return text[:_MOST_CHARACTERS]


class _Draw:
    """Numbers that follow from a name alone."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0

    def share(self) -> float:
        """Between 0 and 1."""
        self._count += 1
        digest = hashlib.sha256(f"{self._name}/{self._count}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    def below(self, limit: int) -> int:
        """0 .. limit - 1."""
        return min(int(self.share() * limit), limit - 1)
