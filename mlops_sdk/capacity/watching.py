"""What a cloud shows of everything at once, and whom a change of it concerns. Pure.

One list call answers for all who wait. A `Snapshot` only says when to look: whoever is woken looks again through its
own login before it acts, so an old or a wrong snapshot costs a look and never a machine.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, Self, TypeVar, runtime_checkable

T = TypeVar("T")


class Phase(enum.Enum):
    """Where something stands, as far as it matters to who waits for it."""

    COMING = "coming"  # on its way to be ready: nothing to do but wait
    TENDED = "tended"  # whoever holds it makes it ready, by calls of its own; nothing to do for anybody else but wait
    READY = "ready"
    GOING = "going"  # on its way back to the pool: nothing to do but wait
    OTHER = "other"  # somebody has to look: it failed, it wants the next call, or we do not know the state
    ABSENT = "absent"


ON_THE_WAY = frozenset({Phase.COMING, Phase.GOING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One thing as a list shows it.

    Attributes:
        phase: Where it stands.
        words: The same in the provider's words.
        node_id: The machine behind it ("" when none, or when it is a machine).
        node_name: That machine's name.
        deadline: Of its marker, if it carries one of ours.
        renewed_until: As above.
    """

    phase: Phase
    words: str
    node_id: str = ""
    node_name: str = ""
    deadline: datetime | None = None
    renewed_until: datetime | None = None


_ABSENT = Sight(phase=Phase.ABSENT, words="not there")


@runtime_checkable
class Watchable(Protocol):
    """A provider that shows everything in a few list calls."""

    def sights(self) -> Mapping[str, Sight]:
        """Every piece of ours by its name, and every machine by its id."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was there between the start of a request and its end.

    Attributes:
        version: Counts up with each look of one poller.
        asked_at: Monotonic seconds at which its first request began: what was done later may be missing.
        sights: By name of a piece, and by id of a machine.
    """

    version: int
    asked_at: float
    sights: Mapping[str, Sight] = field(repr=False)

    def of(self, key: str) -> Sight:
        """One of them; what is not there is `Phase.ABSENT`."""
        return self.sights.get(key, _ABSENT)

    def calls_for_a_look(self, keys: Iterable[str], quiet: Collection[Phase] = ON_THE_WAY) -> bool:
        """Whether any of these is in another phase than one in which there is nothing to do but wait."""
        return any(self.of(key).phase not in quiet for key in keys)


def changed(before: Snapshot | None, after: Snapshot) -> frozenset[str]:
    """Keys whose phase is another one, what came and what went among them.

    Example:
        >>> one = Snapshot(version=1, asked_at=0.0, sights={"a": Sight(phase=Phase.COMING, words="deploying")})
        >>> two = Snapshot(version=2, asked_at=1.0, sights={"a": Sight(phase=Phase.READY, words="active")})
        >>> changed(one, two)
        frozenset({'a'})
    """
    old = before.sights if before is not None else {}
    new = after.sights
    came_or_turned = {
        key for key, sight in new.items() if (was := old.get(key)) is None or was.phase is not sight.phase
    }
    return frozenset(came_or_turned | (old.keys() - new.keys()))


@dataclass(slots=True, kw_only=True, eq=False)
class Waiter:
    """Somebody who waits for a change.

    Attributes:
        keys: Of what.
        since: Monotonic seconds of its own last action: an older snapshot tells it nothing.
        quiet: Phases in which it has nothing to do but wait.
    """

    keys: frozenset[str]
    since: float
    quiet: Collection[Phase] = ON_THE_WAY

    def is_called_by(self, snapshot: Snapshot) -> bool:
        """Whether this snapshot is young enough, and calls for a look."""
        return snapshot.asked_at >= self.since and snapshot.calls_for_a_look(self.keys, self.quiet)


class Waiters:
    """Who waits, by what they wait for. Not thread-safe: of one event loop."""

    def __init__(self) -> None:
        self._by_key: dict[str, set[Waiter]] = {}
        self._unanswered: set[Waiter] = set()
        self._all: set[Waiter] = set()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(tuple(self._all))

    def join(self, waiter: Waiter) -> None:
        """One more; it is told of the first snapshot that is young enough, also if nothing changes."""
        self._all.add(waiter)
        self._unanswered.add(waiter)
        for key in waiter.keys:
            self._by_key.setdefault(key, set()).add(waiter)

    def leave(self, waiter: Waiter) -> None:
        """It waits no more. Idempotent."""
        self._all.discard(waiter)
        self._unanswered.discard(waiter)
        for key in waiter.keys:
            if (there := self._by_key.get(key)) is not None:
                there.discard(waiter)
                if not there:
                    del self._by_key[key]

    def called_by(self, snapshot: Snapshot, turned: Iterable[str]) -> list[Waiter]:
        """Those whom a new snapshot concerns: of the keys that changed, and those who had no answer yet.

        Looks at these alone: ten thousand who wait for something else cost nothing.
        """
        concerned = {waiter for key in turned for waiter in self._by_key.get(key, ())}
        fresh = {waiter for waiter in self._unanswered if snapshot.asked_at >= waiter.since}
        self._unanswered -= fresh
        return [waiter for waiter in concerned | fresh if waiter.is_called_by(snapshot)]


class Watched(float):
    """A pause of so many seconds that ends sooner, or lasts longer, with what a shared poller sees of some keys.

    To whoever has no poller it is a pause like any other.

    Attributes:
        provider: Whose keys.
        keys: Names of pieces, ids of machines.
        at_most_s: When the work looks for itself though nothing was seen: at its own time-out, say.
        quiet: Phases of these in which there is nothing to do but wait.
    """

    __slots__ = ("at_most_s", "keys", "provider", "quiet")

    def __new__(
        cls,
        seconds: float,
        *,
        provider: str,
        keys: Iterable[str],
        at_most_s: float,
        quiet: Collection[Phase] = ON_THE_WAY,
    ) -> Self:
        """See the class."""
        made = super().__new__(cls, seconds)
        made.provider = provider
        made.keys = frozenset(keys)
        made.at_most_s = at_most_s
        made.quiet = frozenset(quiet)
        return made

    provider: str
    keys: frozenset[str]
    at_most_s: float
    quiet: frozenset[Phase]


def watched(
    steps: Generator[float, None, T],
    *,
    provider: str,
    keys: Callable[[], Iterable[str]],
    at_most_s: float,
    quiet: Collection[Phase] = ON_THE_WAY,
) -> Generator[float, None, T]:
    """The same work, each of whose pauses is `Watched`, with what `keys` says then. One that is already stays."""
    try:
        pause = next(steps)
        while True:
            if not isinstance(pause, Watched):
                pause = Watched(pause, provider=provider, keys=keys(), at_most_s=at_most_s, quiet=quiet)
            try:
                yield pause
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:  # noqa: BLE001 - the work itself decides what an interruption means
                pause = steps.throw(error)
            else:
                pause = next(steps)
    except StopIteration as done:
        return done.value
