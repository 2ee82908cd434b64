"""The queue for a deployment's machines, as objects in its bucket: ``queue/<provider>/<run>-g<generation>.json``.

Whoever wants machines leaves a ticket, renews it while it waits, and removes it when it has them or gives up. Who may
ask next is decided by `mlops_sdk.capacity.queue` from all tickets and what the provider shows; every waiting run comes
to the same answer, so nobody has to run a server. A ticket that nobody renews stops counting after the renewal time.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from pydantic import SecretStr

from mlops_sdk.canonical import to_json
from mlops_sdk.capacity.lease import LeaseRequest, Marker, from_iso, priority_of, to_iso
from mlops_sdk.capacity.lifecycle import EndReason
from mlops_sdk.capacity.order_book import OrderBook
from mlops_sdk.capacity.orders import Notice, Orders, noticed
from mlops_sdk.capacity.owned import PoolMachine
from mlops_sdk.capacity.provider import Grant, Provider
from mlops_sdk.capacity.queue import Holder, Slot, Ticket, Turn, plan
from mlops_sdk.capacity.queue_view import QueueView
from mlops_sdk.capacity.use import used_by_owner
from mlops_sdk.clock import Clock
from mlops_sdk.config import LeaseSettings
from mlops_sdk.errors import DamagedObject, NoCapacity, RemoteError
from mlops_sdk.names import run_key
from mlops_sdk.objects import ObjectStore
from mlops_sdk.steps import Steps, pauses

_LOG = logging.getLogger(__name__)
_FOREVER: Final = datetime.max.replace(tzinfo=UTC)
_FORGOTTEN_AFTER: Final = 10  # renewal times: then whoever sees a dead ticket removes it
_RENEWED_WITH: Final = 0.75  # of the renewal time left, a ticket is written again
_SHARE: Final = 0.25  # of a poll: a plan that young, made for somebody else here, will do
_NOBODY: Final = run_key(uuid.UUID(int=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A lease may ask now: with what is left of its waiting time, and for so many machines in reserve."""

    left_s: float
    spares: int


class Line:
    """The queue of one provider, as seen through a login that sees all its machines.

    Args:
        store: The deployment's bucket.
        provider: Through the deployment's own login.
        settings: Renewal time, polling, half-life and shares.
        clock: Durations.
        view: What those of this process who wait in it read together; default: one of its own.
    """

    def __init__(
        self,
        store: ObjectStore,
        provider: Provider,
        settings: LeaseSettings,
        clock: Clock,
        view: QueueView | None = None,
    ) -> None:
        self._view = view or QueueView(clock)
        self._store = store
        self._provider = provider
        self._settings = settings
        self._clock = clock

    def wait_turn(self, grant: Grant, *, on_wait: Callable[[Turn], None] = lambda _: None) -> Steps[Admission]:
        """Wait until this lease may ask for its machines, and for how many in reserve.

        Closed at a pause, it leaves its ticket: who goes on elsewhere keeps the place. Who has others end for it, with
        notice, waits for their machines also when that takes longer than its waiting time.

        Args:
            grant: For whom.
            on_wait: Called once, when others turn out to be before it.

        Raises:
            NoCapacity: the waiting time is over; the ticket is gone.
        """
        began = self._clock.monotonic()
        end = began + grant.request.wait_s
        pause = pauses(self._settings.poll_s)
        asked_at = self._asked_at(grant)
        told, mine, since = False, None, 0.0
        while True:
            if mine is None or self._is_due(mine):
                mine = self._put(grant, asked_at)
                since = self._clock.monotonic()  # a plan that was begun before knows nothing of this ticket
            since = max(since, self._clock.monotonic() - self._settings.poll_s * _SHARE)
            turn = next((turn for turn in self._turns(since) if turn.ticket.lease == mine.lease), None)
            end = max(end, self._back_at(turn.coming_at if turn else None))
            left = max(0.0, end - self._clock.monotonic())
            if turn is None:  # it has them already, asked for by who began before us
                return Admission(left_s=left, spares=self.room(grant, grant.request.spares))
            if turn.may_ask:
                return Admission(left_s=min(left, grant.request.wait_s), spares=turn.spares)
            if left <= 0:
                self.leave(grant)
                raise NoCapacity(
                    f"could not get {grant.request} within {self._clock.monotonic() - began:.0f} s; nothing is held",
                    seen=turn.words(),
                    next_step="ask for fewer machines, wait longer (wait_s), or see who holds them: `mlops lease list`",
                )
            if not told:
                told = True
                on_wait(turn)
            end = max(end, self._back_at(self._give_notice(turn)))
            yield min(max(next(pause), 0.01), left)

    def leave(self, grant: Grant) -> None:
        """Remove the ticket; one that cannot be removed stops counting by itself. Idempotent."""
        with suppress(RemoteError):
            self._store.delete(self._key(grant))

    def room(self, grant: Grant, spares: int) -> int:
        """How many more in reserve a lease that has its machines may ask for: not what others are to have next."""
        if not spares:
            return 0
        now = self._provider.now()
        wanted = _ticket(
            replace(grant.request, spares=spares),
            key=_NOBODY,
            generation=1,
            owner=grant.owner,
            asked_at=_FOREVER,
            renewed_until=_FOREVER,
            now=now,
        )
        return _turn_of_nobody(self._plan([*self._tickets(), replace(wanted, nodes=0)])).spares

    def turns(self) -> tuple[Turn, ...]:
        """Everybody who waits, in the order of the queue, and what each may do now."""
        return self._turns(self._clock.monotonic())

    def preview(self, request: LeaseRequest, *, owner: str) -> Turn:
        """What a request would be told that joined the queue now. Leaves no ticket."""
        now = self._provider.now()
        wanted = _ticket(
            request, key=_NOBODY, generation=1, owner=owner, asked_at=_FOREVER, renewed_until=_FOREVER, now=now
        )
        return _turn_of_nobody(self._plan([*self._tickets(), wanted]))

    def _turns(self, since: float) -> tuple[Turn, ...]:
        """The plan, not older than this."""
        return self._view.turns(since, lambda: self._plan(self._tickets()))

    def _is_due(self, ticket: Ticket) -> bool:
        """Whether a ticket has less than three quarters of its time left."""
        left = ticket.renewed_until - self._provider.now()
        return left.total_seconds() < self._settings.renew_for_s * _RENEWED_WITH

    def _back_at(self, coming_at: datetime | None) -> float:
        """The monotonic second at which machines are back, cleaned, at the latest whose leases end then."""
        if coming_at is None:
            return -math.inf
        ends_in = (coming_at - self._provider.now()).total_seconds()
        return self._clock.monotonic() + ends_in + self._settings.clean_timeout_s

    def _give_notice(self, turn: Turn) -> datetime | None:
        """Tell the runs that have to end for this one, as the plan says; of two that tell one run, the first counts.

        When they end at the latest; None when nobody was told.

        The decision is written down first, where the run follows it; then its machines carry the end, by which the
        reaper judges them. A run that is told again keeps the end that it was told first.
        """
        if not turn.ends or turn.ticket.lasts_s <= self._settings.notice_s:  # it would be over when they are free
            return None
        victims: dict[tuple[str, int], list[Marker]] = {}
        for machine in self._provider.pool():
            if machine.marker is not None and (key := _key_of(machine.marker)) in turn.ends:
                victims.setdefault((key, machine.marker.generation), []).append(machine.marker)
        now = self._provider.now()
        told: list[datetime] = []
        for (key, generation), markers in victims.items():
            ends_at = min(markers[0].deadline, now + timedelta(seconds=self._settings.notice_s))
            notice = Notice(ends_at=ends_at, reason=EndReason.PREEMPTED, by=turn.ticket.run_key)
            try:
                orders = OrderBook(self._store, key, generation).change(partial(noticed, notice=notice))
                told.append(ends_at)
                self._end_at(markers, orders)
            except (RemoteError, DamagedObject) as error:  # told at the next look, by us or by another one
                _LOG.warning("run %s could not be given notice: %s", key, error)
        return max(told, default=None)

    def _end_at(self, markers: Sequence[Marker], orders: Orders) -> None:
        """Let the machines of a run that was given notice carry its end. It is renewed no further than it was."""
        if orders.notice is None or all(marker.deadline <= orders.notice.ends_at for marker in markers):
            return
        marker = markers[0]
        grant = Grant(
            run_id=uuid.UUID(marker.run_id),
            deployment_id=uuid.UUID(marker.deployment_id),
            generation=marker.generation,
            owner=marker.owner,
            request=LeaseRequest(nodes=marker.nodes, resource_class="", deadline=orders.notice.ends_at),
            broker_key=SecretStr(""),  # gives no keys to machines here
            numbers=tuple(sorted(marker.index for marker in markers)),
        )
        self._provider.extend(grant, renewed_until=max(marker.renewed_until for marker in markers))

    def _plan(self, tickets: Iterable[Ticket]) -> tuple[Turn, ...]:
        now = self._provider.now()
        machines = [machine for machine in self._provider.pool() if machine.in_service]
        told = self._told({m.marker for m in machines if m.marker is not None and m.marker.preemptible})
        slots = [slot_of(machine, self._back_by(now), told) for machine in machines]
        use = used_by_owner(self._store, now=now, half_life_s=self._settings.share_half_life_s)
        for slot in slots:
            if slot.holder is not None and slot.holder.project:
                held_s = max(0.0, (now - slot.holder.since).total_seconds())
                use[slot.holder.project] = use.get(slot.holder.project, 0.0) + held_s
        return plan(tickets, slots, now=now, use=use, shares=self._settings.shares)

    def _told(self, markers: Iterable[Marker]) -> dict[tuple[str, int], Notice]:
        """The notices that preemptible leases were given, by run and generation."""
        leases = {(_key_of(marker), marker.generation) for marker in markers}
        told: dict[tuple[str, int], Notice] = {}
        for lease in leases:
            with suppress(DamagedObject):  # of one run; it must not stop everybody
                orders = OrderBook(self._store, *lease).read()
                if orders.notice is not None:
                    told[lease] = orders.notice
        return told

    def _back_by(self, now: datetime) -> datetime:
        """When a machine that nobody holds, but that is not free, is back at the latest."""
        return now + timedelta(seconds=self._settings.clean_timeout_s)

    def _put(self, grant: Grant, asked_at: datetime) -> Ticket:
        now = self._provider.now()
        ticket = _ticket(
            grant.request,
            key=run_key(grant.run_id),
            generation=grant.generation,
            owner=grant.owner,
            asked_at=asked_at,
            renewed_until=now + timedelta(seconds=self._settings.renew_for_s),
            now=now,
        )
        self._store.put(self._key(grant), to_json(_to_stored(ticket)))
        return ticket

    def _asked_at(self, grant: Grant) -> datetime:
        """When this lease joined: a ticket that is still there keeps its place."""
        found = _from_stored(self._store.get_json(self._key(grant)))
        return found.asked_at if found is not None else self._provider.now()

    def _tickets(self) -> Iterator[Ticket]:
        forgotten = self._provider.now() - timedelta(seconds=_FORGOTTEN_AFTER * self._settings.renew_for_s)
        listed = list(self._store.list(f"{self._prefix}/"))
        for key, raw in self._view.read(listed, self._store.get_json):
            ticket = _from_stored(raw)
            if ticket is None:
                continue
            if ticket.renewed_until < forgotten:
                with suppress(RemoteError):
                    self._store.delete(key)
                continue
            yield ticket

    @property
    def _prefix(self) -> str:
        return f"queue/{self._provider.name}"

    def _key(self, grant: Grant) -> str:
        return f"{self._prefix}/{run_key(grant.run_id)}-g{grant.generation}.json"


def _turn_of_nobody(turns: Iterable[Turn]) -> Turn:
    return next(turn for turn in turns if turn.ticket.run_key == _NOBODY)


def _key_of(marker: Marker) -> str:
    return run_key(uuid.UUID(marker.run_id))


def slot_of(
    machine: PoolMachine, back_by: datetime, told: Mapping[tuple[str, int], Notice] = MappingProxyType({})
) -> Slot:
    """A machine as the plan sees it.

    Args:
        machine: In service.
        back_by: When it is free again at the latest, if nobody holds it now and it is not free: it is being cleaned.
        told: Notices, by run and generation.
    """
    traits = frozenset(machine.traits)
    if machine.free:
        return Slot(id=machine.id, name=machine.name, resource_class=machine.resource_class, traits=traits)
    marker = machine.marker
    if marker is None:
        stranger = Holder(
            run_key="",
            project="",
            priority=priority_of(None),
            since=_FOREVER,
            ends_at=_FOREVER if machine.held_by else back_by,
            ending=not machine.held_by,
        )
        return Slot(
            id=machine.id, name=machine.name, resource_class=machine.resource_class, traits=traits, holder=stranger
        )
    notice = told.get((_key_of(marker), marker.generation))
    holder = Holder(
        run_key=_key_of(marker),
        generation=marker.generation,
        project=marker.owner,
        priority=marker.priority,
        since=from_iso(machine.since) if machine.since else _FOREVER,
        ends_at=min(marker.deadline, notice.ends_at) if notice else marker.deadline,
        preemptible=marker.preemptible,
        ending=notice is not None,
        told_for=notice.by if notice else "",
    )
    return Slot(id=machine.id, name=machine.name, resource_class=machine.resource_class, traits=traits, holder=holder)


def _ticket(
    request: LeaseRequest,
    *,
    key: str,
    generation: int,
    owner: str,
    asked_at: datetime,
    renewed_until: datetime,
    now: datetime,
) -> Ticket:
    return Ticket(
        run_key=key,
        generation=generation,
        project=owner,
        priority=request.priority,
        nodes=request.nodes,
        resource_class=request.resource_class,
        traits=frozenset(request.traits),
        spares=request.spares,
        machines=frozenset(request.machines),
        asked_at=asked_at,
        lasts_s=max(0.0, (request.deadline - now).total_seconds()),
        renewed_until=renewed_until,
    )


def _to_stored(ticket: Ticket) -> dict[str, Any]:
    return {
        "version": 1,
        "run_key": ticket.run_key,
        "generation": ticket.generation,
        "project": ticket.project,
        "priority": int(ticket.priority),
        "nodes": ticket.nodes,
        "resource_class": ticket.resource_class,
        "traits": sorted(ticket.traits),
        "spares": ticket.spares,
        "machines": sorted(ticket.machines),
        "asked_at": to_iso(ticket.asked_at),
        "lasts_s": ticket.lasts_s,
        "renewed_until": to_iso(ticket.renewed_until),
    }


def _from_stored(raw: Any) -> Ticket | None:
    """A ticket as stored; None for one that is gone, or that somebody damaged: its owner writes it again."""
    try:
        return Ticket(
            run_key=str(raw["run_key"]),
            generation=int(raw["generation"]),
            project=str(raw["project"]),
            priority=priority_of(raw["priority"]),
            nodes=int(raw["nodes"]),
            resource_class=str(raw["resource_class"]),
            traits=frozenset(str(trait) for trait in raw["traits"]),
            spares=int(raw.get("spares", 0)),
            machines=frozenset(str(machine) for machine in raw.get("machines", ())),
            asked_at=from_iso(str(raw["asked_at"])),
            lasts_s=float(raw["lasts_s"]),
            renewed_until=from_iso(str(raw["renewed_until"])),
        )
    except (KeyError, TypeError, ValueError):
        return None
