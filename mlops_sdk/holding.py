"""What one generation of a run holds, and how it is got and given back: credential, allocations, machines."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from mlops_sdk.boundaries import Boundaries
from mlops_sdk.capacity.evidence import NodeEvidence
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.health import MachineHealth
from mlops_sdk.capacity.lease import LeaseRequest, to_iso
from mlops_sdk.capacity.lifecycle import EndReason, LeaseState
from mlops_sdk.capacity.line import Line
from mlops_sdk.capacity.loss import Statement
from mlops_sdk.capacity.members import Members, Replacement, all_numbers, members_of
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.order_book import OrderBook
from mlops_sdk.capacity.orders import Notice, Orders
from mlops_sdk.capacity.owned import Held, Standing
from mlops_sdk.capacity.provider import Fencing, Grant, Provider
from mlops_sdk.capacity.queue import Turn
from mlops_sdk.capacity.repair import Repair, fencing_of
from mlops_sdk.capacity.spares import Spares
from mlops_sdk.capacity.use import note_return
from mlops_sdk.config import KeystoneSettings
from mlops_sdk.errors import (
    AccessDenied,
    CapacityError,
    LeaseLost,
    NodeFailed,
    NotFenced,
    RemoteError,
    ServiceUnavailable,
)
from mlops_sdk.heartbeat import RunHeartbeat
from mlops_sdk.held_lease import HeldLease, known
from mlops_sdk.history import Generation, Piece, read_history
from mlops_sdk.identity.credential import CredentialRequest, RunCredential
from mlops_sdk.journal import EntryKind, Journal, note_evidence
from mlops_sdk.names import piece_number, resource_name, run_key
from mlops_sdk.services import Services
from mlops_sdk.steps import Steps

_REPLACEMENTS = 3


class Holding(HeldLease):
    """One generation of one run.

    Attributes:
        credential: The run's own, once there is one.
        number: Which generation.
    """

    def __init__(
        self,
        services: Services,
        journal: Journal,
        boundaries: Boundaries,
        fence: Fence,
        heartbeat: RunHeartbeat,
        *,
        run_id: uuid.UUID,
        owner: str,
        number: int,
    ) -> None:
        self.number = number
        self.credential: RunCredential | None = None
        self._services = services
        self._settings = services.settings
        self._journal = journal
        self._boundaries = boundaries
        self._fence = fence
        self._heartbeat = heartbeat
        self._run_id = run_id
        self._owner = owner
        self._grant: Grant | None = None
        self._provider: Provider | None = None
        self._book = OrderBook(services.store, run_key(run_id), number)
        self._orders = Orders()
        self._asked: LeaseRequest | None = None
        self._replacements: list[Replacement] = []
        self._gone: set[int] = set()
        self._avoid: frozenset[str] = frozenset()
        self._noticed: Notice | None = None

    def state(self) -> Generation:
        """What the journal tells of it."""
        try:
            generations = read_history(self._journal.entries()).generations
        except RemoteError:
            if self._grant is None:
                raise
            # S3 is down while we give back: what this process knows is enough
            found = Generation(number=self.number, state=LeaseState.PENDING, request=self._grant.request)
            for name in self._everything(self._grant.request).names:
                found.pieces[name] = Piece(name=name, deployed=True)
            return found
        found = generations.get(self.number) or Generation(number=self.number)
        self._replacements = found.replacements
        self._gone = {piece_number(p.name) for p in found.pieces.values() if p.evidence is not None or p.failed}
        earlier = [generation for number, generation in generations.items() if number < self.number]
        self._avoid = frozenset(p.node_id for g in earlier for p in g.pieces.values() if p.failed and p.node_id)
        return found

    def ask(self, request: LeaseRequest) -> None:
        """From now on this is what is held or wanted: giving back covers all of it.

        Raises:
            SettingsError: this deployment has no such provider.
        """
        grant = self._grant_of(request)
        provider = self._open(grant)
        if request.spares:
            fencing_of(provider)
        self._grant, self._asked = grant, request

    def get(self, request: LeaseRequest) -> Steps[tuple[Node, ...]]:
        """Credential and machines, look-up-or-create; renewed from the first moment on. Spares come last.

        A repair that was cut off is finished first.
        """
        provider, grant, deployed = self._begin(request)
        for replacement in self._members(request).pending:
            with suppress(NotFenced):  # given up: who needs that machine finds it lost again
                yield from self._carry_out(replacement, deployed)
        grant, room = yield from self._wait_turn(provider, self._working(grant))
        spares = self._spares(provider)
        begun = yield from spares.begin(grant, self._members(request).spares, deployed, room=room)
        nodes = yield from provider.acquire(grant, deployed=deployed)
        ready = yield from spares.get(grant, begun, deployed)
        with suppress(RemoteError):  # an old count does no harm
            self._health(grant).came_up({node.id for node in (*nodes, *ready)})
        self._line(grant).leave(grant)
        self._heartbeat.all_there()
        return (*nodes, *ready)

    def replace(
        self, number: int, *, why: Mapping[str, Any], unfenced: str = "", unfit: Collection[int] = ()
    ) -> Steps[tuple[Node, ...]]:
        """Another machine in the place of a lost one; all that work, then the spares.

        Args:
            number: Of the lost piece.
            why: Evidence, for the journal.
            unfenced: Words of the person who says that it is off.
            unfit: Spares that cannot take the place.
        """
        for left in reversed(range(_REPLACEMENTS)):
            request = known(self.state().request)
            members = self._members(request)
            if any(done.lost == number and done.done for done in self._replacements):
                break  # another process did it
            if number not in members.held:
                raise LeaseLost(
                    f"machine {number} is no part of generation {self.number}",
                    seen=f"it holds {', '.join(map(str, members.held))}",
                    next_step="see run.held",
                )
            by = -1
            if number in members.working:
                by = next((spare for spare in members.spares if spare not in unfit), members.following)
            replacement = Replacement(lost=number, by=by, unfenced=unfenced)
            self._note_replacing(EntryKind.INTENT, replacement, unfenced=unfenced, **why)
            try:
                yield from self._carry_out(replacement, self._deployed())
                break
            except NodeFailed:  # the one that was to take the place: the next one may do
                if not left:
                    raise
        return (yield from self.get(known(self._asked)))

    def _note_replacing(self, kind: EntryKind, replacement: Replacement, **data: Any) -> None:
        name = self._everything(known(self._asked)).name(replacement.lost)
        numbers = {"lost": replacement.lost, "by": replacement.by}
        self._journal.append(kind, "node.replace", name, generation=self.number, **numbers, **data)

    def _deployed(self) -> set[str]:
        """Pieces whose machine is in use, as far as the journal knows."""
        return {piece.name for piece in self.state().pieces.values() if piece.deployed}

    @property
    def replaceable(self) -> bool:
        """Whether its provider can switch machines off."""
        return isinstance(self._open(self._everything(known(self._asked or self.state().request))), Fencing)

    def power(self, number: int) -> Statement:
        """What the BMC of one piece's machine says."""
        grant = self._everything(known(self._asked or self.state().request))
        return fencing_of(self._open(grant)).power(Held(name=grant.name(number)))

    def begin(self, request: LeaseRequest) -> Steps[None]:
        """As `get`, without waiting for the machines."""
        provider, grant, deployed = self._begin(request)
        grant, room = yield from self._wait_turn(provider, self._working(grant))
        yield from provider.begin(grant, deployed=deployed)
        yield from self._spares(provider).begin(grant, self._members(request).spares, deployed, room=room)

    def _spares(self, provider: Provider) -> Spares:
        def give_back(one: Grant) -> Steps[None]:
            return self._repair().begin_return(_held(self.state(), one.names[0]), one)

        return Spares(provider, self._journal, give_back)

    def _carry_out(self, replacement: Replacement, deployed: Collection[str]) -> Steps[None]:
        generation = self.state()
        self._hold()
        everything = self._everything(known(self._asked))
        grant = replace(everything, numbers=(replacement.by,), avoid=self._failed(generation))
        lost = _held(generation, everything.name(replacement.lost))
        repair = self._repair()
        try:
            yield from repair.carry_out(replacement, lost=lost, grant=grant, deployed=deployed)
        except CapacityError as error:
            self._note_replacing(EntryKind.EVENT, replacement, given_up=str(error))
            if replacement.by >= 0 and not isinstance(error, NotFenced):
                yield from repair.begin_return(_held(self.state(), grant.name(replacement.by)), grant)
            raise
        self.state()
        self._hold()

    def _hold(self) -> None:
        """Renew from now on those that are members now."""
        self._grant = self._grant_until(self._orders)
        self._heartbeat.hold(self._grant)

    def _repair(self) -> Repair:
        grant = self._everything(known(self._asked))
        return Repair(
            self._journal,
            self._boundaries,
            provider=self._provider or self._open(grant),
            operator=self._open(grant),
            settings=self._settings.lease,
            clock=self._services.clock,
            note=partial(self._note_evidence, self.state(), grant),
        )

    def _health(self, grant: Grant) -> MachineHealth:
        return MachineHealth(self._services.store, grant.request.provider, now=self._services.now)

    def _failed(self, generation: Generation) -> frozenset[str]:
        """Machines that failed this run before, in this generation too."""
        lost = {replacement.lost for replacement in generation.replacements}
        here = {p.node_id for p in generation.pieces.values() if p.failed or piece_number(p.name) in lost}
        return self._avoid | (here - {""})

    def _members(self, request: LeaseRequest) -> Members:
        return members_of(request, self._replacements, self._gone)

    def _working(self, grant: Grant) -> Grant:
        """Of those that work."""
        return replace(grant, numbers=self._members(grant.request).working)

    def _everything(self, request: LeaseRequest) -> Grant:
        """Of every piece that this generation ever had."""
        return self._grant_of(request, numbers=all_numbers(request, self._replacements))

    def _begin(self, request: LeaseRequest) -> tuple[Provider, Grant, set[str]]:
        """The credential; leases through it, for whom, and which allocations had a deployment."""
        orders = self._orders = self._book.change(lambda found: replace(found, kept=None))
        self._asked = request
        grant = self._grant = self._grant_until(orders)
        self._heartbeat.start(grant, follow=self._follow)
        provider = self._log_in(grant, orders)
        return provider, grant, self._deployed()

    def _log_in(self, grant: Grant, orders: Orders) -> Provider:
        """The run's own credential that lasts as long as its lease; from now on everything goes through it."""
        wanted = CredentialRequest(
            run_id=self._run_id,
            deployment_id=self._settings.deployment_id,
            generation=self.number,
            deadline=orders.deadline_of(grant.request),
            grace_s=self._settings.lease.grace_s,
            number=orders.credential,
            provider=grant.request.provider,
        )
        with self._boundaries.around("credential.create", wanted.name, generation=self.number) as detail:
            minted = self.credential = self._services.broker.mint(wanted, now=self._services.now())
            detail.update(credential_id=minted.id, expires_at=to_iso(minted.expires_at))
        provider = self._provider = self._open(grant, minted.login(self._settings.keystone))
        self._heartbeat.renew_through(provider)
        return provider

    def _wait_turn(self, provider: Provider, grant: Grant) -> Steps[tuple[Grant, int]]:
        """Wait in the queue, unless part of this lease is there already.

        The grant with what is left of the time, and how many spares may be asked for.
        """
        line = self._line(grant)
        if any(_is_held(provider, name) for name in grant.names):
            spares = [grant.name(number) for number in self._members(grant.request).spares]
            there = sum(_is_held(provider, name) for name in spares)
            return grant, there + line.room(grant, len(spares) - there)
        admission = yield from line.wait_turn(grant, on_wait=self._note_waiting)
        return replace(grant, request=replace(grant.request, wait_s=admission.left_s)), admission.spares

    def _note_waiting(self, turn: Turn) -> None:
        self._journal.append(
            EntryKind.EVENT, "lease.queue", generation=self.number, position=turn.position, why=turn.words()
        )

    def _line(self, grant: Grant) -> Line:
        return self._services.line(grant.request.provider)

    def give_back(self, generation: Generation, reason: EndReason) -> Steps[tuple[NodeEvidence, ...]]:
        """Machines, claims, credential. Idempotent."""
        grant = self._grant or self._grant_of(known(generation.request))
        self._line(grant).leave(grant)
        evidence = yield from self._give_back_machines(generation, reason)
        self._drop_stale_claims({item.resource for item in evidence if item.clean})
        for name in self._services.broker.names_of(resource_name(self._run_id, self.number, "cred")):
            self._revoke(name)
        failed = {p.name: (p.node_id, p.failed) for p in generation.pieces.values() if p.failed and p.node_id}
        self._health(grant).note(failed, self._open(grant), limit=self._settings.lease.failures_in_a_row)
        self._book.forget()
        self.credential = None
        self._provider = None
        return evidence

    def _give_back_machines(self, generation: Generation, reason: EndReason) -> Steps[tuple[NodeEvidence, ...]]:
        """Through the run's own credential while there is one; through the broker's login when it is gone."""
        grant = self._grant or self._grant_of(known(generation.request))
        gone = {piece.name for piece in generation.pieces.values() if piece.evidence and piece.evidence.clean}
        members = {grant.name(number) for number in self._members(grant.request).held}
        names = [name for name in self._everything(grant.request).names if name in members or name not in gone]
        todo = [_held(generation, name) for name in names]
        provider = self._provider or self._open(grant)
        on_evidence = partial(self._note_evidence, generation, grant)
        try:
            return (yield from provider.release(grant, todo, reason=reason, on_evidence=on_evidence))
        except AccessDenied:
            if self._provider is None:
                raise
            provider = self._open(grant)
            return (yield from provider.release(grant, todo, reason=reason, on_evidence=on_evidence))

    def _grant_of(self, request: LeaseRequest, numbers: tuple[int, ...] | None = None) -> Grant:
        """Of the pieces that are held, or of others."""
        return Grant(
            run_id=self._run_id,
            deployment_id=self._settings.deployment_id,
            generation=self.number,
            owner=self._owner,
            request=request,
            broker_key=self._settings.broker_key,
            numbers=self._members(request).held if numbers is None else numbers,
            avoid=self._avoid,
        )

    def _open(self, grant: Grant, login: KeystoneSettings | None = None) -> Provider:
        """The provider of what was asked for, through the run's own login or (None) the broker's."""
        boundary = partial(self._boundaries.around, generation=self.number)
        return self._services.provider(grant.request.provider, login=login, fence=self._fence, boundary=boundary)

    def _drop_stale_claims(self, clean: set[str]) -> None:
        """Remove claims on our own pieces that a dead process left, once the machines are back and clean."""
        with suppress(ServiceUnavailable):
            for claim in list(self._fence.claims()):
                if claim.details.get("run_key") == run_key(self._run_id) and claim.details.get("name") in clean:
                    self._fence.drop(claim)

    def _note_evidence(self, generation: Generation, grant: Grant, evidence: NodeEvidence) -> None:
        note_evidence(
            self._journal,
            evidence,
            generation=self.number,
            resource_class=grant.request.resource_class,
            since=_held(generation, evidence.resource).since,
        )
        note_return(
            self._services.store,
            evidence,
            owner=self._owner,
            since=_held(generation, evidence.resource).since,
            half_life_s=self._settings.lease.share_half_life_s,
        )
        self._boundaries.tell(
            "machine.released", "after", {"resource": evidence.resource, "outcome": evidence.outcome.value}
        )

    def _revoke(self, name: str) -> None:
        with self._boundaries.around("credential.revoke", name, generation=self.number) as detail:
            detail["was_there"] = self._services.broker.revoke(name)


def _is_held(provider: Provider, name: str) -> bool:
    return provider.inspect(Held(name=name)).standing is Standing.HELD


def _held(generation: Generation, name: str) -> Held:
    piece = generation.pieces.get(name) or Piece(name=name)
    return Held(name=name, node_id=piece.node_id, deployed=piece.deployed, since=piece.since)
