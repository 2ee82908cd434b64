"""The triggerer's care for leases: one keeper for all runs, also between two tasks of a DAG run.

A lease is renewed while a trigger works for its run. Between two tasks nobody works for it, and how long that takes is
up to Airflow's queues. So a trigger that ends well hands its run over: it is renewed on, as long as the DAG run runs
and until the next trigger takes over. When the triggerer dies, nothing is renewed, and the reaper returns what nobody
took over in time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mlops_sdk.errors import MlopsError
from mlops_sdk.keeper import LoopKeeper
from mlops_sdk.run import Run

Alive = Callable[[], Awaitable[bool]]

_LOG = logging.getLogger(__name__)
_LOOKS_PER_RENEWAL = 4
_UNANSWERED = 3


class Caretaker:
    """One per event loop: see the module.

    Attributes:
        loop: Which.
        keeper: Calls the heartbeats of all its runs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.keeper = LoopKeeper(loop)
        self.loop = loop
        self._kept: dict[str, asyncio.Task[None]] = {}
        self._aside: set[asyncio.Future[None]] = set()

    @property
    def kept(self) -> frozenset[str]:
        """Keys of the runs that are renewed between two triggers."""
        return frozenset(self._kept)

    def hand_over(self, run: Run, alive: Alive) -> None:
        """Renew this run's lease on while it is held and `alive` says so, until somebody takes over."""
        self.take_over(run.key)
        task = self.loop.create_task(self._watch(run, alive), name=f"mlops-between-{run.key}")
        self._kept[run.key] = task
        task.add_done_callback(lambda done: self._forget(run, done))

    def take_over(self, run_key: str) -> None:
        """Somebody works for this run again, or gives it back: what was handed over ends."""
        task = self._kept.pop(run_key, None)
        if task is not None:
            task.cancel()

    def let_go(self, run: Run) -> None:
        """Stop renewing, without waiting for a beat in progress."""
        self._aside_of(asyncio.ensure_future(asyncio.to_thread(run.close)))

    async def finish(self, work: Awaitable[None]) -> None:
        """Do this to its end even when the caller is cancelled meanwhile."""
        task = asyncio.ensure_future(work)
        self._aside_of(task)
        await asyncio.shield(task)

    async def _watch(self, run: Run, alive: Alive) -> None:
        pause = run.settings.lease.renew_for_s / _LOOKS_PER_RENEWAL
        unanswered = 0
        while unanswered < _UNANSWERED:
            try:
                if not await alive():
                    return
                unanswered = 0
            except Exception:  # noqa: BLE001 - whatever Airflow's side fails with: asked again
                unanswered += 1
                _LOG.warning("cannot tell whether the DAG run of run %s lives", run.key, exc_info=True)
            try:
                await asyncio.to_thread(run.raise_if_lost)
            except MlopsError as error:
                _LOG.info("run %s is not renewed any more: %s", run.key, error)
                return
            await asyncio.sleep(pause)

    def _forget(self, run: Run, done: asyncio.Task[None]) -> None:
        if self._kept.get(run.key) is done:
            del self._kept[run.key]
        if not done.cancelled() and done.exception() is not None:
            _LOG.warning("run %s is not renewed any more", run.key, exc_info=done.exception())
        if not self.loop.is_closed():
            self.let_go(run)

    def _aside_of(self, task: asyncio.Future[None]) -> None:
        """Keep a reference: the loop itself holds none."""
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)


def caretaker() -> Caretaker:
    """The one of the running loop. A process has one loop at a time: the caretaker of an earlier one is forgotten."""
    loop = asyncio.get_running_loop()
    if not _current or _current[0].loop is not loop:
        _current[:] = [Caretaker(loop)]
    return _current[0]


_current: list[Caretaker] = []
