"""What is decided about the lease of one generation, made true: followed by who holds it, whoever decides."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from mlops_sdk.capacity.lease import LeaseRequest, to_iso
from mlops_sdk.capacity.lifecycle import HOLDS
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.order_book import OrderBook
from mlops_sdk.capacity.orders import Keeping, Kept, Notice, Orders, extended, kept, notice_of
from mlops_sdk.capacity.provider import Grant, Provider
from mlops_sdk.capacity.reservations import reserve
from mlops_sdk.config import KeystoneSettings, Settings
from mlops_sdk.errors import LeaseLost, MlopsError, ServiceUnavailable
from mlops_sdk.heartbeat import RunHeartbeat
from mlops_sdk.history import KEEPING_ACTION, Generation
from mlops_sdk.identity.credential import RunCredential
from mlops_sdk.journal import EntryKind, Journal
from mlops_sdk.names import resource_name, run_key
from mlops_sdk.services import Services
from mlops_sdk.steps import Steps


class HeldLease(ABC):
    """That part of `mlops_sdk.holding.Holding`, which gets the machines and gives them back."""

    number: int
    credential: RunCredential | None
    _services: Services
    _settings: Settings
    _journal: Journal
    _heartbeat: RunHeartbeat
    _run_id: uuid.UUID
    _owner: str
    _book: OrderBook
    _orders: Orders
    _asked: LeaseRequest | None
    _noticed: Notice | None
    _grant: Grant | None
    _provider: Provider | None

    @abstractmethod
    def state(self) -> Generation:
        """What the journal tells of it."""

    @abstractmethod
    def _log_in(self, grant: Grant, orders: Orders) -> Provider: ...

    @abstractmethod
    def _grant_of(self, request: LeaseRequest, numbers: tuple[int, ...] | None = None) -> Grant: ...

    @abstractmethod
    def _open(self, grant: Grant, login: KeystoneSettings | None = None) -> Provider: ...

    @abstractmethod
    def _revoke(self, name: str) -> None: ...

    def _follow(self, grant: Grant) -> Grant:
        """Make true what was decided since the last look, by whatever process; called in each beat."""
        try:
            orders = self._book.read()
        except ServiceUnavailable:
            return grant
        if self._provider is None:
            return grant
        if orders == self._orders:
            if orders.moved:  # a request of whoever moved it may land late, with an older deadline than was decided
                self._provider.extend(grant)
            return grant
        if orders.kept is not None:  # it was left, by another process: a beat of this one must not end that early
            self._heartbeat.leave()
            grant = self._grant_until(orders)
            self._open(grant).extend(grant, renewed_until=orders.kept.until)
            return grant
        before, grant = self._orders, self._grant_until(orders)
        if orders.credential != before.credential:
            self._log_in(grant, orders)
        self._provider.extend(grant)
        if orders.deadline != before.deadline:
            self._note_extended(grant)
        self._orders, self._grant = orders, grant
        if orders.credential != before.credential:
            self._revoke_earlier()
        return grant

    def _revoke_earlier(self) -> None:
        """All credentials but the one that is used now; what cannot be revoked now is at its own, earlier, deadline."""
        with suppress(MlopsError):
            for name in self._services.broker.names_of(resource_name(self._run_id, self.number, "cred")):
                if self.credential is not None and name != self.credential.name:
                    self._revoke(name)

    def _lasting(self) -> LeaseRequest:
        """What was asked for, of a lease whose machines are there.

        Raises:
            LeaseLost: they are not.
        """
        generation = self.state()
        if generation.state not in HOLDS:
            raise LeaseLost(
                f"generation {self.number} of run {run_key(self._run_id)!r} holds no machines",
                seen=generation.state.value,
                next_step="lease machines first; `mlops lease list` shows what is held",
            )
        self._asked = known(generation.request)
        return self._asked

    def notice(self) -> Notice | None:
        """The notice that this lease has now; the journal is told when it gets one. By the orders of the last beat."""
        if self._asked is None:
            return None
        notice_s = self._settings.lease.notice_s
        found = notice_of(self._orders, self._asked, now=self._services.now(), notice_s=notice_s)
        if found is not None and found != self._noticed:
            self._journal.note(EntryKind.EVENT, "lease.notice", generation=self.number, **found.to_json())
        self._noticed = found
        return found

    def extend(self, deadline: datetime) -> datetime:
        """Give the lease a later deadline, from whatever process; the latest that was decided.

        The intent is journalled and the budget asked before anything changes. Then the decision is written down, which
        the process that holds the lease follows; so a crash of this one after that changes nothing any more.

        Raises:
            BudgetExceeded: the owner's budget has no room for the time.
            LeaseLost: it holds no machines, or not all of them, or was given notice for somebody else.
            SettingsError: the deadline is not later than it is now.
        """
        request = self._lasting()
        now = self._services.now()
        before = self._book.read()
        extended(before, request, deadline, now=now)
        until = replace(request, deadline=before.end_of(request))
        key = run_key(self._run_id)
        reserve(self._services, until, owner=self._owner, run_key=key, generation=self.number, until=deadline)
        self._journal.append(EntryKind.INTENT, "lease.extend", generation=self.number, deadline=to_iso(deadline))
        orders = self._book.change(lambda found: extended(found, request, deadline, now=now))
        grant = self._grant_until(orders)
        there = self._open(grant).extend(grant, renewed_until=orders.kept.until if orders.kept else None)
        if there < request.nodes:
            raise LeaseLost(
                f"{there} of the {request.nodes} machines of run {key!r} are still there",
                next_step="release, and lease again with run.next_generation()",
            )
        self._note_extended(grant)
        return grant.request.deadline

    def keep(self, why: Keeping, seconds: float) -> datetime:
        """Leave the machines as they are, for so long at most, without a process that renews them; until when.

        They are renewed once for the whole time. Nobody works with the run's credential meanwhile: it is revoked.

        Raises:
            LeaseLost: there is nothing to keep, or somebody else needs the machines.
        """
        request = self._lasting()
        now, action = self._services.now(), KEEPING_ACTION[why]
        self._heartbeat.stop()
        self._journal.append(EntryKind.INTENT, action, generation=self.number, seconds=seconds)
        wanted = Kept(until=now + timedelta(seconds=seconds), why=why)
        orders = self._book.change(lambda found: kept(found, request, wanted, now=now))
        until = orders.kept.until if orders.kept else wanted.until
        grant = self._grant_until(orders)
        self._open(grant).extend(grant, renewed_until=until)
        self._journal.append(EntryKind.OUTCOME, action, generation=self.number, until=to_iso(until))
        for name in self._services.broker.names_of(resource_name(self._run_id, self.number, "cred")):
            self._revoke(name)
        self.credential = self._provider = None
        return until

    def look(self) -> Steps[tuple[Node, ...]]:
        """The machines as they are, for somebody who logs in; makes and renews nothing."""
        request = self._lasting()
        grant = self._grant_of(request)
        return (yield from self._open(grant).acquire(grant, deployed=grant.names))

    def deadline(self) -> datetime:
        """When it ends, by what was asked for and decided since."""
        return self._book.read().end_of(known(self.state().request))

    def _note_extended(self, grant: Grant) -> None:
        self._journal.note(
            EntryKind.OUTCOME, "lease.extend", generation=self.number, deadline=to_iso(grant.request.deadline)
        )

    def _grant_until(self, orders: Orders) -> Grant:
        """For what was asked, until it ends by what was decided since."""
        request = known(self._asked)
        return self._grant_of(replace(request, deadline=orders.end_of(request)))


def known(request: LeaseRequest | None) -> LeaseRequest:
    """The request of a generation that has one.

    Raises:
        LeaseLost: it never asked for anything.
    """
    if request is None:
        raise LeaseLost("this generation never asked for a lease", next_step="call run.lease() with a LeaseRequest")
    return request
