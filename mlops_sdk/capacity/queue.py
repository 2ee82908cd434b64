"""Who may ask for machines next when there are fewer than people want. Pure.

Every run that waits leaves a ticket; every waiting run computes the same plan from the same tickets and machines, and
asks only when it is its turn. So there is no server to fail, and a run that dies stops renewing its ticket and is left
out.

- **Order**: higher `Priority` first; within one, the project that had least for its share ("fair share", as batch
  schedulers do it: past use halves with every `half_life_s`); then who asked first. A ticket that is placed counts as
  use of its project for those after it, so the projects take turns.
- **Backfill** (EASY, Lifka 1995): the first ticket of a resource class that does not fit is promised the earliest time
  at which enough leases will have ended by their deadlines. Others may go before it if they end by then, or leave it
  enough machines.
- **Preemption**: that ticket may end leases of a lower priority that allow it, with notice: of the lowest priority, the
  youngest first, because they lose least; and none that is not needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from mlops_sdk.capacity.lease import Priority

_LEAST_SHARE: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A run that waits for machines.

    Attributes:
        run_key: Whose.
        generation: Of its lease.
        project: For whom shares are counted.
        priority: Its class.
        nodes: How many machines it wants, all or none.
        spares: How many more it takes if they are free too; it waits for none of them.
        machines: Only these, by id or name; empty for any.
        resource_class: Of each.
        traits: That each must have.
        asked_at: When it began to wait.
        lasts_s: The longest it may hold them: until its deadline.
        renewed_until: After this its run counts as dead.
    """

    run_key: str
    generation: int
    project: str
    priority: Priority
    nodes: int
    resource_class: str
    asked_at: datetime
    lasts_s: float
    renewed_until: datetime
    traits: frozenset[str] = frozenset()
    spares: int = 0
    machines: frozenset[str] = frozenset()

    @property
    def lease(self) -> tuple[str, int]:
        """Which lease it is for: run and generation."""
        return (self.run_key, self.generation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a machine.

    Attributes:
        run_key: The run; empty for a stranger.
        generation: Of its lease.
        project: Of the run.
        priority: Of its lease.
        since: When its lease began.
        ends_at: When the machine is free again at the latest: the deadline, or the end that it was given notice of.
        preemptible: Whether its lease may be ended for a higher priority.
        ending: Whether it was given notice already, or is being given back.
        told_for: The run for which it was given notice; empty for none.
    """

    run_key: str
    project: str
    priority: Priority
    since: datetime
    ends_at: datetime
    generation: int = 0
    preemptible: bool = False
    ending: bool = False
    told_for: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A machine that is in service. `holder` is None while nobody has it."""

    id: str
    resource_class: str
    name: str = ""
    traits: frozenset[str] = frozenset()
    holder: Holder | None = None

    def suits(self, ticket: Ticket) -> bool:
        """Whether this machine is one that a ticket wants."""
        named = not ticket.machines or bool(ticket.machines & {self.id, self.name})
        return named and self.resource_class == ticket.resource_class and ticket.traits <= self.traits


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the plan says about one ticket.

    Attributes:
        ticket: Which.
        position: In the queue, from 1.
        may_ask: It may ask for its machines now.
        spares: And for so many of those that it wants in reserve.
        expected_at: When it is likely to get them: now, the promised time, or None when nothing that ends is enough.
        ends: Runs that have to be given notice, so that this one can go.
        coming_at: When those that were given notice for this one end at the latest; None for none.
        why: In words.
    """

    ticket: Ticket
    position: int
    may_ask: bool
    expected_at: datetime | None
    why: str
    ends: tuple[str, ...] = ()
    spares: int = 0
    coming_at: datetime | None = None

    def words(self) -> str:
        """For a person: place, reason, and when."""
        when = f"; expected at {self.expected_at:%Y-%m-%d %H:%M:%S} UTC at the latest" if self.expected_at else ""
        return f"number {self.position} in the queue: {self.why}{'' if self.may_ask else when}"


def plan(
    tickets: Iterable[Ticket],
    slots: Sequence[Slot],
    *,
    now: datetime,
    use: Mapping[str, float] | None = None,
    shares: Mapping[str, float] | None = None,
) -> tuple[Turn, ...]:
    """What each waiting run may do now, in the order of the queue.

    Args:
        tickets: Everybody who waits; dead ones are left out.
        slots: Every machine in service.
        now: By the service's clock.
        use: Node-seconds that each project had, weighted by age.
        shares: How much of the capacity each project is meant to have, relative; 1.0 for one that is not named.
    """
    alive = _still_wanted((ticket for ticket in tickets if ticket.renewed_until >= now), slots)
    pool = _Pool(slots, now)
    turns: list[Turn] = []
    for position, ticket in enumerate(order(alive, use=use or {}, shares=shares or {}), start=1):
        turns.append(replace(pool.place(ticket, position), coming_at=_coming_at(ticket, slots)))
    return tuple(turns)


def _coming_at(ticket: Ticket, slots: Iterable[Slot]) -> datetime | None:
    told = [s.holder.ends_at for s in slots if s.holder is not None and s.holder.told_for == ticket.run_key]
    return max(told, default=None)


def _still_wanted(tickets: Iterable[Ticket], slots: Iterable[Slot]) -> list[Ticket]:
    """The tickets without what their leases have already: one that was served is removed a moment later."""
    has = Counter((slot.holder.run_key, slot.holder.generation) for slot in slots if slot.holder is not None)
    left = [(ticket, ticket.nodes - has[ticket.lease]) for ticket in tickets]
    return [replace(ticket, nodes=nodes) for ticket, nodes in left if nodes > 0 or not has[ticket.lease]]


def order(tickets: Iterable[Ticket], *, use: Mapping[str, float], shares: Mapping[str, float]) -> list[Ticket]:
    """The tickets in the order of the queue: priority, fair share, time."""
    left = list(tickets)
    had = dict(use)
    found: list[Ticket] = []
    while left:
        following = min(
            left,
            key=lambda t: (
                -t.priority,
                had.get(t.project, 0.0) / max(shares.get(t.project, 1.0), _LEAST_SHARE),
                t.asked_at,
                t.run_key,
            ),
        )
        left.remove(following)
        found.append(following)
        machines = following.nodes + following.spares
        had[following.project] = had.get(following.project, 0.0) + machines * following.lasts_s
    return found


class _Pool:
    """The machines while the plan is made: what is taken by, or promised to, the tickets before."""

    def __init__(self, slots: Sequence[Slot], now: datetime) -> None:
        self._now = now
        self._slots = list(slots)
        self._free = [slot for slot in slots if slot.holder is None]
        self._promises: dict[str, _Promise] = {}

    def place(self, ticket: Ticket, position: int) -> Turn:
        """What this ticket may do, after all before it."""
        promise = self._promises.get(ticket.resource_class)
        suitable = [slot for slot in self._free if slot.suits(ticket)]
        left = [slot for slot in suitable if promise is None or promise.leaves(slot, ticket, self._now)]
        if len(left) >= ticket.nodes:
            spares = min(ticket.spares, len(left) - ticket.nodes)
            self._take(_plainest(left, ticket.nodes + spares), ticket)
            why = "free now" + (f", with {spares} of {ticket.spares} in reserve" if spares < ticket.spares else "")
            return Turn(ticket=ticket, position=position, may_ask=True, expected_at=self._now, why=why, spares=spares)
        if promise is not None:
            return Turn(ticket=ticket, position=position, may_ask=False, expected_at=None, why="others are before it")
        return self._promise(ticket, position, suitable)

    def _take(self, slots: Iterable[Slot], ticket: Ticket) -> None:
        """These are this ticket's from now on, until its deadline: for those after it they are machines that leave."""
        ids = {slot.id for slot in slots}
        self._free = [slot for slot in self._free if slot.id not in ids]
        ends_at = self._now + timedelta(seconds=ticket.lasts_s)
        holder = Holder(run_key="", project="", priority=ticket.priority, since=self._now, ends_at=ends_at)
        self._slots = [replace(slot, holder=holder) if slot.id in ids else slot for slot in self._slots]

    def _promise(self, ticket: Ticket, position: int, free: Sequence[Slot]) -> Turn:
        """The first that does not fit: when enough machines are free for it, and whom it may end for that."""
        missing = ticket.nodes - len(free)
        leaving = sorted((s for s in self._slots if s.holder is not None and s.suits(ticket)), key=_end_of)
        if len(leaving) < missing:
            total = len(leaving) + len(free)
            why = f"{len(free)} of {ticket.nodes} are free, and only {total} such machines are in service"
            return Turn(ticket=ticket, position=position, may_ask=False, expected_at=None, why=why)
        at = _end_of(leaving[missing - 1])
        ids = frozenset(slot.id for slot in (*free, *leaving[:missing]))
        self._promises[ticket.resource_class] = _Promise(at=at, ids=ids)
        ends = _victims(ticket, missing, leaving)
        why = f"{len(free)} of {ticket.nodes} are free" + (f"; {', '.join(ends)} would make room" if ends else "")
        return Turn(ticket=ticket, position=position, may_ask=False, expected_at=at, why=why, ends=ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Promise:
    """Machines that the first ticket of a class gets at a time."""

    at: datetime
    ids: frozenset[str]

    def leaves(self, slot: Slot, ticket: Ticket, now: datetime) -> bool:
        """Whether a ticket behind it may have this machine."""
        return slot.id not in self.ids or ticket.lasts_s <= (self.at - now).total_seconds()


def _victims(ticket: Ticket, missing: int, leaving: Iterable[Slot]) -> tuple[str, ...]:
    """Runs whose end frees enough machines; none while enough are ending already, or when all are not enough."""
    by_run: dict[str, list[Slot]] = {}
    for slot in leaving:
        holder = slot.holder
        if holder is None:
            continue
        if holder.ending:
            missing -= 1
        elif holder.run_key and holder.preemptible and holder.priority < ticket.priority:
            by_run.setdefault(holder.run_key, []).append(slot)
    return _least_loss(by_run, missing) if missing > 0 else ()


def _plainest(slots: Iterable[Slot], count: int) -> list[Slot]:
    """So many machines, those with the fewest traits first: the special ones are left for who needs them."""
    return sorted(slots, key=lambda slot: (len(slot.traits), slot.id))[:count]


def _end_of(slot: Slot) -> datetime:
    if slot.holder is None:
        raise ValueError(f"nobody holds machine {slot.id!r}")
    return slot.holder.ends_at


def _least_loss(by_run: Mapping[str, Sequence[Slot]], missing: int) -> tuple[str, ...]:
    """Runs that free so many machines together: lowest priority, then youngest; then none that is not needed."""
    chosen: list[str] = []
    freed = 0
    for run in sorted(by_run, key=lambda run: _loss(by_run[run][0])):
        if freed >= missing:
            break
        chosen.append(run)
        freed += len(by_run[run])
    if freed < missing:
        return ()
    for run in reversed(list(chosen)):
        if freed - len(by_run[run]) >= missing:
            chosen.remove(run)
            freed -= len(by_run[run])
    return tuple(chosen)


def _loss(slot: Slot) -> tuple[int, float]:
    """What ending its holder loses, to compare by: its priority, then the time that it has worked."""
    holder = slot.holder
    if holder is None:
        return (0, 0.0)
    return (holder.priority, -holder.since.timestamp())
