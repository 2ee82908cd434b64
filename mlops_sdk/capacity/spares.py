"""The machines that a lease keeps in reserve: asked for with the others, waited for after them, and failing nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.provider import Grant, Provider
from mlops_sdk.errors import CapacityError, NoCapacity
from mlops_sdk.journal import EntryKind, Journal
from mlops_sdk.steps import Steps


class Spares:
    """Spares of one generation.

    Args:
        provider: Through the run's login.
        journal: Of the run.
        give_back: Begins the return of what is held under a grant of one piece.
    """

    def __init__(self, provider: Provider, journal: Journal, give_back: Callable[[Grant], Steps[None]]) -> None:
        self._provider = provider
        self._journal = journal
        self._give_back = give_back

    def begin(
        self, grant: Grant, numbers: Collection[int], deployed: Collection[str], *, room: int
    ) -> Steps[tuple[int, ...]]:
        """Ask for them as well, before anything is waited for; the numbers of those that could be had.

        Machines of a lease that works already get no new ones.

        Args:
            grant: Of those that work; told to deploy first, if there are spares to ask for.
            numbers: Of the spares.
            deployed: Pieces whose machine is in use already.
            room: How many may be asked for: the others are promised to who waits.
        """
        if any(name in deployed for name in grant.names):
            return tuple(number for number in numbers if grant.name(number) in deployed)
        if numbers:
            yield from self._provider.begin(grant, deployed=deployed)
        got: list[int] = []
        for number in numbers:
            try:
                if len(got) < room:
                    yield from self._provider.begin(_one(grant, number), deployed=deployed)
                    got.append(number)
                    continue
            except NoCapacity:  # the lease goes on without it
                pass
            yield from self._give_back(_one(grant, number))
        return tuple(got)

    def get(self, grant: Grant, numbers: Iterable[int], deployed: Collection[str]) -> Steps[tuple[Node, ...]]:
        """Those of them that come up."""
        ready: list[Node] = []
        for number in numbers:
            one = _one(grant, number)
            try:
                ready.extend((yield from self._provider.acquire(one, deployed=deployed)))
            except CapacityError as error:  # the lease goes on without it
                seen = str(error)
                self._journal.note(
                    EntryKind.EVENT, "spare.failed", one.names[0], generation=grant.generation, seen=seen
                )
                yield from self._give_back(one)
        return tuple(ready)


def _one(grant: Grant, number: int) -> Grant:
    """Of one spare, which is not waited for while there is none."""
    return replace(grant, numbers=(number,), request=replace(grant.request, wait_s=0.0))
