"""Work that waits now and then, as data: a generator that yields the seconds to pause, and two ways to drive it.

The decisions stay in one place. A plain thread drives it with a clock; an event loop drives it without a thread that
blocks: each step runs in a worker thread, each pause in the loop. What stops between two steps stops there.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from mlops_sdk.clock import Clock

T = TypeVar("T")

# Yields seconds to pause, returns a T. What is thrown in at a pause is what interrupted the pause; an interruption that
# may not clean up (the work goes on in another process) closes the generator.
Steps: TypeAlias = Generator[float, None, T]
Pause: TypeAlias = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    value: T


def drive(steps: Steps[T], clock: Clock) -> T:
    """Do the work in this thread; returns its result. What interrupts a pause is raised inside the work."""
    try:
        pause = next(steps)
        while True:
            try:
                clock.sleep(pause)
            except BaseException as error:  # noqa: BLE001 - the work itself decides what an interruption means
                pause = steps.throw(error)
            else:
                pause = next(steps)
    except StopIteration as done:
        return done.value


def drive_briefly(steps: Steps[T], clock: Clock, *, at_most_s: float) -> bool:
    """Do the first of the work in this thread, with pauses of so many seconds together; whether it came to its end.

    What is not done then is left as it is, for whoever goes on elsewhere: no clean-up of the work's own runs.
    """
    left = at_most_s
    try:
        while (pause := next(steps)) <= left:
            left -= pause
            clock.sleep(pause)
    except StopIteration:
        return True
    steps.close()
    return False


def pauses(longest_s: float) -> Iterator[float]:
    """Seconds between looks at something that may be quick or slow: short ones first, then the longest for ever.

    Example:
        >>> list(itertools.islice(pauses(2.0), 5))
        [0.25, 0.5, 1.0, 2.0, 2.0]
    """
    return itertools.chain((longest_s / 8, longest_s / 4, longest_s / 2), itertools.repeat(longest_s))


async def adrive(steps: Steps[T], clock: Clock, pause: Pause | None = None) -> T:
    """Do the work in an event loop; returns its result.

    Cancelled, it lets the step that runs end, takes no further one, and leaves what was got as it is: no clean-up of
    the work's own runs. Whoever cancels decides whether to go on elsewhere or to give back.

    Args:
        steps: The work.
        clock: Pauses.
        pause: Pauses instead, given what the work yields; what it raises is raised inside the work.
    """
    pause = pause or clock.asleep
    interrupted: Exception | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(_advance, steps, interrupted))
            await settled(step)
            outcome, interrupted = step.result(), None
            if isinstance(outcome, _Done):
                return outcome.value
            try:
                await pause(outcome)
            except Exception as error:  # noqa: BLE001 - the work itself decides what an interruption means
                interrupted = error
    except asyncio.CancelledError:
        steps.close()
        raise


async def settled(task: asyncio.Future[Any]) -> None:
    """Wait until a task is done, however often we are cancelled meanwhile. The first cancellation is raised then.

    For work that must not be cut off: Airflow's triggerer cancels a trigger again every second until it has ended.
    """
    first: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            first = first or error
    if first is not None:
        if not task.cancelled():
            task.exception()  # looked at: nobody else will
        raise first


def _advance(steps: Steps[T], interrupted: Exception | None = None) -> _Done[T] | float:
    """One step. A result cannot leave a worker thread as StopIteration."""
    try:
        return next(steps) if interrupted is None else steps.throw(interrupted)
    except StopIteration as done:
        return _Done(done.value)
