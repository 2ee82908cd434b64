"""What a generation of a run's lease may still ask for, after what was asked for before. Pure."""

from __future__ import annotations

from dataclasses import replace

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.lifecycle import LeaseState
from mlops_sdk.errors import ImpossibleEvent, LeaseLost
from mlops_sdk.history import Generation, same_machines


def agreed(generation: Generation, request: LeaseRequest | None, *, run_key: str, given_back: bool) -> LeaseRequest:
    """The request of this generation: the earlier one if there is one, with the waiting time of this one.

    Args:
        generation: As its journal tells.
        request: What is wanted now; None: what was wanted before.
        run_key: Whose.
        given_back: Whether this process gave it back already.

    Raises:
        ImpossibleEvent: the journal contradicts itself.
        LeaseLost: it was given back, is held for a person, was never asked for, or was asked for as something else.
    """
    _refuse_what_is_over(generation, run_key, given_back=given_back)
    earlier = generation.request
    if earlier is None:
        if request is None:
            raise LeaseLost(
                f"run {run_key!r} never asked for a lease", next_step="call run.lease() with a LeaseRequest"
            )
        return request
    if request is None:
        return earlier
    if not same_machines(earlier, request):
        raise LeaseLost(
            f"generation {generation.number} of run {run_key!r} was asked for as {earlier}, not {request}",
            next_step="release it and call run.next_generation() to lease something else",
        )
    return replace(earlier, wait_s=request.wait_s)


def _refuse_what_is_over(generation: Generation, run_key: str, *, given_back: bool) -> None:
    if generation.impossible:
        raise ImpossibleEvent(
            f"the journal of run {run_key!r}, generation {generation.number}, contradicts itself",
            seen="; ".join(generation.impossible),
            next_step="give back what it holds (`mlops lease release`), and open the next generation",
        )
    if generation.state is LeaseState.HELD_FOR_DEBUG:
        raise LeaseLost(
            f"generation {generation.number} of run {run_key!r} is held for a person to look at",
            next_step="release it (`mlops lease release`), or call run.next_generation() to lease again",
        )
    if generation.over or given_back:
        raise LeaseLost(
            f"generation {generation.number} of run {run_key!r} was given back",
            next_step="call run.next_generation() to lease again",
        )
