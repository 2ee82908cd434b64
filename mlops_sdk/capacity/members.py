"""Which pieces of a generation work, which are spares, and which one takes a lost one's place. Pure.

Pieces are numbered: 0 to n-1 were asked for, n to n+s-1 are spares, and each new machine that a repair needed got the
next number. A number is given once, so a name stands for one allocation for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from mlops_sdk.capacity.lease import LeaseRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A machine that was lost, and the one in its place. `done`: that one has it; else the repair was cut off.

    Attributes:
        lost: Number of the lost piece.
        by: Number of the one in its place; -1 for a lost spare, which nothing replaces.
        done: Whether it is over.
        dropped: It was given up: the lost one could not be cut off, or the one that was to come did not.
        unfenced: Words of the person who says that it is off, where its BMC cannot be asked.
    """

    lost: int
    by: int
    done: bool = False
    dropped: bool = False
    unfenced: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The pieces of a generation now.

    Attributes:
        working: Those that work, in their order: a replacement stands where the lost one stood.
        spares: Those that may take a place.
        pending: Replacements that were begun and have to be finished.
        following: The number that the next new piece gets.
    """

    working: tuple[int, ...]
    spares: tuple[int, ...]
    pending: tuple[Replacement, ...]
    following: int

    @property
    def held(self) -> tuple[int, ...]:
        """All that are renewed: also one that is about to take a place."""
        return (*self.working, *self.spares, *(item.by for item in self.pending if item.by >= 0))


def members_of(request: LeaseRequest, replacements: Sequence[Replacement] = (), gone: Collection[int] = ()) -> Members:
    """Who is who, from what was asked for and what a run's journal tells of repairs.

    Args:
        request: What was asked for.
        replacements: In the order in which they were begun.
        gone: Numbers of pieces that were given back already: a spare that could not be had.

    Example:
        >>> from datetime import UTC, datetime
        >>> request = LeaseRequest(nodes=2, spares=1, resource_class="c", deadline=datetime(2026, 1, 1, tzinfo=UTC))
        >>> members_of(request, [Replacement(lost=0, by=2, done=True)]).working
        (2, 1)
    """
    working = list(range(request.nodes))
    first_new = request.nodes + request.spares
    for replacement in replacements:
        if replacement.done and replacement.lost in working:
            working[working.index(replacement.lost)] = replacement.by
    lost = {replacement.lost for replacement in replacements if not replacement.dropped}
    taken = {replacement.by for replacement in replacements if not replacement.dropped}
    spares = [index for index in range(request.nodes, first_new) if index not in lost | taken | set(gone)]
    return Members(
        working=tuple(index for index in working if index >= 0),
        spares=tuple(spares),
        pending=tuple(item for item in replacements if not item.done and not item.dropped),
        following=max([first_new - 1, *(replacement.by for replacement in replacements)]) + 1,
    )


def all_numbers(request: LeaseRequest, replacements: Sequence[Replacement] = ()) -> tuple[int, ...]:
    """Every number that was ever given in a generation: what giving it back has to cover."""
    return tuple(range(members_of(request, replacements).following))


def begun(replacements: Sequence[Replacement], lost: int, by: int, unfenced: str = "") -> list[Replacement]:
    """With one more replacement, which takes the place of an earlier try for the same piece."""
    earlier = [replace(item, dropped=item.dropped or (item.lost == lost and not item.done)) for item in replacements]
    return [*earlier, Replacement(lost=lost, by=by, unfenced=unfenced)]


def given_up(replacements: Sequence[Replacement], lost: int, by: int) -> list[Replacement]:
    """Without this replacement."""
    return [replace(item, dropped=item.dropped or (item.lost, item.by) == (lost, by)) for item in replacements]


def ended(replacements: Sequence[Replacement], lost: int, by: int) -> list[Replacement]:
    """With this replacement done."""
    return [replace(item, done=True) if (item.lost, item.by) == (lost, by) else item for item in replacements]
