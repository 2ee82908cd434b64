"""Who calls a run's heartbeat again and again: a thread of its own, or one keeper for all runs of an event loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

Beat = Callable[[], None]
Stop = Callable[[], None]

_THREADS = 4


class Keeper(Protocol):
    """Calls things again and again."""

    def keep(self, beat: Beat, every_s: float) -> Stop:
        """Call `beat`, which never raises, every so many seconds until the returned function is called.

        That one does not wait for a beat in progress. The first beat comes after one period. From any thread.
        """
        ...


class ThreadKeeper:
    """A thread for each: for a notebook, a command, a recipe."""

    def keep(self, beat: Beat, every_s: float) -> Stop:
        """See `Keeper.keep`."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(every_s):
                beat()

        threading.Thread(target=work, name="mlops-heartbeat", daemon=True).start()
        return stop.set


class LoopKeeper:
    """One for all runs that an event loop looks after: pauses in the loop, beats in a few threads of its own.

    Its threads are its own so that a slow call elsewhere does not let a lease lapse.

    Args:
        loop: The loop; closing it ends all beats.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="mlops-keeper")
        self._numbers = itertools.count()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def beats(self) -> int:
        """How many things are called now."""
        return len(self._tasks)

    def keep(self, beat: Beat, every_s: float) -> Stop:
        """See `Keeper.keep`."""
        number = next(self._numbers)
        self.loop.call_soon_threadsafe(self._start, number, beat, every_s)

        def stop() -> None:
            with suppress(RuntimeError):  # the loop is closed, and with it everything ended
                self.loop.call_soon_threadsafe(self._end, number)

        return stop

    def _start(self, number: int, beat: Beat, every_s: float) -> None:
        self._tasks[number] = self.loop.create_task(self._work(beat, every_s), name="mlops-heartbeat")

    def _end(self, number: int) -> None:
        if task := self._tasks.pop(number, None):
            task.cancel()

    async def _work(self, beat: Beat, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self.loop.run_in_executor(self._threads, beat)
