"""The triggerer's care for leases: one keeper for all runs, also between two tasks of a DAG run.

A lease is renewed while a trigger works for its run. A trigger that ends well hands its run over: it is renewed on
while any task of the DAG run works, until the next trigger takes over. While all of them wait (for the scheduler, for
the end of a pause of the DAG, for a slot, for their next try), it is not: machines on which nobody works go back after
one renewal time. When the triggerer dies, nothing is renewed either, and the reaper returns what nobody took over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum

from mlops_sdk.client import Client
from mlops_sdk.errors import MlopsError
from mlops_sdk.keeper import LoopKeeper
from mlops_sdk.pollers import Pollers
from mlops_sdk.run import Run

_LOG = logging.getLogger(__name__)
_LOOKS_PER_RENEWAL = 8
_UNANSWERED = 6
_KNOWN_FOR_S = (
    10.0  # a connection that somebody changes is noticed after so long; ten thousand triggers may start at once
)
# A task that waits for its next try or poke is no work: of a paused DAG it would wait until the lease's deadline.
_WORKING = frozenset({"queued", "running", "deferred", "restarting", "awaiting_input"})
_ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


class Progress(StrEnum):
    """What the tasks of a DAG run do, all together."""

    WORKING = "working"
    WAITING = "waiting"
    ENDED = "ended"


def progress_of(states: Collection[str | None]) -> Progress:
    """Whether any task works, or all have ended, by Airflow's states of task instances. Pure.

    Example:
        >>> progress_of(["success", "scheduled", None])
        <Progress.WAITING: 'waiting'>
    """
    if not _WORKING.isdisjoint(states):
        return Progress.WORKING
    return Progress.ENDED if _ENDED.issuperset(states) else Progress.WAITING


Look = Callable[[], Awaitable[Progress]]
Connections = tuple[str, str, str]


@dataclass(slots=True)
class _Known:
    """A client, and when its connections were last asked for."""

    client: Client | None = None
    asked_at: float = 0.0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Caretaker:
    """One per event loop: see the module.

    Attributes:
        loop: Which.
        keeper: Calls the heartbeats of all its runs.
        pollers: Look for all triggers that wait for one cloud.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.keeper = LoopKeeper(loop)
        self.loop = loop
        self.pollers = Pollers()
        self._clients: dict[Connections, _Known] = {}
        self._kept: dict[str, asyncio.Task[None]] = {}
        self._aside: set[asyncio.Future[None]] = set()

    async def client(self, connections: Connections, make: Callable[[Client | None], Awaitable[Client]]) -> Client:
        """The one client of these connections. `make` asks Airflow for them, at most once in a few seconds."""
        known = self._clients.setdefault(connections, _Known())
        async with known.asking:
            if known.client is None or self.loop.time() - known.asked_at > _KNOWN_FOR_S:
                known.client = await make(known.client)
                known.asked_at = self.loop.time()
            return known.client

    @property
    def kept(self) -> frozenset[str]:
        """Keys of the runs that are renewed between two triggers."""
        return frozenset(self._kept)

    def hand_over(self, run: Run, look: Look) -> None:
        """Renew this run's lease on while it is held and its DAG run works, until somebody takes over."""
        self.take_over(run.key)
        task = self.loop.create_task(self._watch(run, look), name=f"mlops-between-{run.key}")
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

    async def _watch(self, run: Run, look: Look) -> None:
        pause = run.settings.lease.renew_for_s / _LOOKS_PER_RENEWAL
        progress, unanswered = Progress.WORKING, 0
        while unanswered < _UNANSWERED:
            before = progress
            try:
                progress, unanswered = await look(), 0
            except Exception:  # noqa: BLE001 - whatever Airflow's side fails with: asked again
                unanswered += 1
                _LOG.warning("cannot tell what the DAG run of run %s does", run.key, exc_info=True)
            if progress is Progress.ENDED:
                return
            try:
                await asyncio.to_thread(run.raise_if_lost)
            except MlopsError as error:
                _LOG.info("run %s is not renewed any more: %s", run.key, error)
                return
            if progress is not before:
                _LOG.info("run %s is %s", run.key, "renewed" if progress is Progress.WORKING else "not renewed: idle")
            await asyncio.to_thread(run.rest, resting=progress is Progress.WAITING)
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
