"""One look at a cloud for all who wait for it, in one event loop.

    poller = Poller(provider.sights, period_s=2.0, clock=SystemClock())
    await poller.called({"ml-...-g1-0"}, at_most_s=600.0)

While anybody waits, one task looks once a period, in a thread of its own; it ends with the last who waits. Nobody else
costs a thread, a call, or a wake-up as long as nothing of theirs changes.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from mlops_sdk.capacity.watching import ON_THE_WAY, Phase, Sight, Snapshot, Waiter, Waiters, changed
from mlops_sdk.clock import Clock
from mlops_sdk.errors import MlopsError, RemoteError
from mlops_sdk.steps import pauses

_LOG = logging.getLogger(__name__)
# Of a period: how soon who joins others has its first answer; alone, at once. Small machines are ready within a second.
_FIRST_SHARE = 1 / 8
# A look that takes long is not repeated at once: after so many times as long, or a period.
_REST_PER_LOOK = 1.0
# Woken in one turn of the event loop. All at once would keep it from everybody else.
_AT_ONCE = 50

Look = Callable[[], Mapping[str, Sight]]
OnSnapshot = Callable[[Snapshot], None]


class Poller:
    """Looks for all who wait for one cloud through one login. Of one event loop.

    Args:
        look: What there is; blocks; called in a thread.
        period_s: How often. Looks come sooner after somebody new came, and never one upon the other.
        clock: Durations and pauses.
        patience_s: How long the cloud may be away before those who wait get its error. What is no `RemoteError` they
            get at once.
        on_snapshot: Called in the same thread after each look that worked; its errors are logged.

    Attributes:
        looks: How many there were.
        latest: The last one that worked.
    """

    def __init__(
        self,
        look: Look,
        *,
        period_s: float,
        clock: Clock,
        patience_s: float = 0.0,
        on_snapshot: OnSnapshot | None = None,
    ) -> None:
        self.looks = 0
        self.latest: Snapshot | None = None
        self._look = look
        self._period_s = period_s
        self._clock = clock
        self._patience_s = patience_s
        self._on_snapshot = on_snapshot
        self._waiters = Waiters()
        self._answers: dict[Waiter, asyncio.Future[Snapshot | None]] = {}
        self._until: dict[Waiter, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlops-poller")
        self._hurry = asyncio.Event()
        self._pauses = pauses(period_s)
        self._due = self._not_before = clock.monotonic()
        self._away_since: float | None = None

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiters)

    @property
    def works(self) -> bool:
        """Whether it looks now and then."""
        return self._task is not None

    async def called(
        self,
        keys: Collection[str],
        *,
        at_most_s: float,
        quiet: Collection[Phase] = ON_THE_WAY,
        since: float | None = None,
    ) -> Snapshot | None:
        """Wait until any of these is in no quiet phase, and return what shows it; or None after so many seconds.

        Args:
            keys: Names of pieces, ids of machines.
            at_most_s: Measured to one period.
            quiet: Phases in which the caller has nothing to do but wait.
            since: Monotonic seconds of the caller's last own action, default now: what was asked for before is too old.

        Raises:
            MlopsError: what the cloud answered to the shared look.
        """
        now = self._clock.monotonic()
        waiter = Waiter(keys=frozenset(keys), since=now if since is None else since, quiet=quiet)
        if self.latest is not None and waiter.is_called_by(self.latest):
            return self.latest
        answer = self._join(waiter, until=now + at_most_s)
        try:
            return await answer
        finally:
            self._leave(waiter)

    async def ready(
        self, names: Collection[str], *, at_most_s: float, quiet: Collection[Phase] = (Phase.COMING,)
    ) -> Snapshot | None:
        """Wait while these are on their way, and return what ended it: all ready, or one that is not; None: no time.

        Who does not hold them waits in `Phase.TENDED`, too.
        """
        end = self._clock.monotonic() + at_most_s
        waiting, since = frozenset(names), None
        while (left := end - self._clock.monotonic()) > 0:
            snapshot = await self.called(waiting, at_most_s=left, quiet=quiet, since=since)
            if snapshot is None:
                return None
            waiting, since = frozenset(n for n in names if snapshot.of(n).phase in quiet), snapshot.asked_at
            if not waiting or snapshot.calls_for_a_look(names, quiet={*quiet, Phase.READY}):
                return snapshot
        return None

    def _join(self, waiter: Waiter, *, until: float) -> asyncio.Future[Snapshot | None]:
        answer: asyncio.Future[Snapshot | None] = asyncio.get_running_loop().create_future()
        self._waiters.join(waiter)
        self._answers[waiter], self._until[waiter] = answer, until
        now = self._clock.monotonic()
        soon = max(now + self._period_s * _FIRST_SHARE, self._not_before)
        self._pauses = pauses(self._period_s)
        if self._task is None:
            self._due = max(now, self._not_before)
            self._task = asyncio.get_running_loop().create_task(self._work(), name="mlops-poller")
            self._task.add_done_callback(self._ended)
        elif soon < self._due:
            self._due = soon
            self._hurry.set()
        return answer

    def _leave(self, waiter: Waiter) -> None:
        self._waiters.leave(waiter)
        del self._answers[waiter], self._until[waiter]
        if not self._waiters and self._task is not None:
            self._task.cancel()
            self._task = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Nobody waits for a poller that is no more."""
        if task is self._task:
            self._task = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _LOG.error("a poller ended; %d who wait are told", len(self._answers), exc_info=error)
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(error)

    async def _work(self) -> None:
        while self._waiters:
            await self._until_due()
            began = self._clock.monotonic()
            try:
                called = await self._look_once(began)
            except Exception as error:  # noqa: BLE001 - those who wait decide what it means to them
                await self._failed(error, began)
                called = []
            else:
                self._away_since = None
            ended = self._clock.monotonic()
            self._not_before = ended + min(_REST_PER_LOOK * (ended - began), self._period_s)
            self._due = max(began + next(self._pauses), self._not_before)
            await self._answer([(waiter, self.latest) for waiter in called])
            await self._answer([(waiter, None) for waiter, until in tuple(self._until.items()) if ended >= until])

    async def _until_due(self) -> None:
        while (left := self._due - self._clock.monotonic()) > 0:
            self._hurry.clear()
            waits = [asyncio.ensure_future(self._clock.asleep(left)), asyncio.ensure_future(self._hurry.wait())]
            try:
                done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in done:
                    wait.result()
            finally:
                for wait in waits:
                    wait.cancel()

    async def _look_once(self, began: float) -> list[Waiter]:
        """Whom the new snapshot concerns."""
        self.looks += 1
        before, version = self.latest, self.looks

        def look() -> tuple[Snapshot, frozenset[str]]:
            snapshot = Snapshot(version=version, asked_at=began, sights=self._look())
            turned = changed(before, snapshot)
            self._tell(snapshot)
            return snapshot, turned

        self.latest, turned = await asyncio.get_running_loop().run_in_executor(self._thread, look)
        return self._waiters.called_by(self.latest, turned)

    def _tell(self, snapshot: Snapshot) -> None:
        if self._on_snapshot is None:
            return
        try:
            self._on_snapshot(snapshot)
        except Exception:  # noqa: BLE001 - who waits has nothing to do with it
            _LOG.exception("what follows a look at the cloud failed")

    async def _failed(self, error: Exception, began: float) -> None:
        self._away_since = began if self._away_since is None else self._away_since
        away_for = self._clock.monotonic() - self._away_since
        if isinstance(error, RemoteError) and error.retriable and away_for < self._patience_s:
            _LOG.warning("%d wait on while their cloud is away: %s", len(self._waiters), error)
            return
        self._away_since = None
        _LOG.warning("%d who wait for their cloud are told: %s", len(self._waiters), error)
        for number, waiter in enumerate(self._waiters):
            if (answer := self._answers.get(waiter)) is not None and not answer.done():
                # one of its own for each: whoever raises an error adds to its traceback
                answer.set_exception(copy.copy(error) if isinstance(error, MlopsError) else error)
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)

    async def _answer(self, answers: Iterable[tuple[Waiter, Snapshot | None]]) -> None:
        for number, (waiter, snapshot) in enumerate(answers):
            if (answer := self._answers.get(waiter)) is not None and not answer.done():
                answer.set_result(snapshot)
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
