"""A Run owns everything that is created for it, and gives all of it back.

    with client.start_run(name="nightly") as run:
        lease = run.lease(LeaseRequest(nodes=2, resource_class="gpu.h200.8x", deadline=...))
        ...
    run.prove().complete  # True

Its id is fixed before anything is created and every name follows from it, so any process can find a run again
(`Run.attach`), and a crash at any point is repaired by looking. While the process lives, a heartbeat renews the lease;
when it dies, the reaper returns what it held.

What waits (`lease`, `release`, `next_generation`) exists a second time as steps (`leasing`, `releasing`,
`opening_next`), for an event loop: see `mlops_sdk.steps`.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mlops_sdk.agreement import agreed
from mlops_sdk.boundaries import Boundaries, EventCallback
from mlops_sdk.capacity.evidence import NodeEvidence
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.lifecycle import EndReason, LeaseState, reason_of
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.reservations import reserve
from mlops_sdk.clock import Clock
from mlops_sdk.decisions import LeaseDecisions, known_lease
from mlops_sdk.errors import LeaseLost, MlopsError, NoCapacity
from mlops_sdk.heartbeat import RunHeartbeat
from mlops_sdk.history import History, read_history, request_to_json
from mlops_sdk.holding import Holding, known
from mlops_sdk.identity.credential import RunCredential
from mlops_sdk.identity.ssh_keys import SshKey, client_key, peer_key
from mlops_sdk.journal import EntryKind, Journal
from mlops_sdk.names import run_key
from mlops_sdk.proof import Proof
from mlops_sdk.proving import prove
from mlops_sdk.services import Services
from mlops_sdk.steps import Steps, drive

if TYPE_CHECKING:
    from mlops_sdk.client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The machines a run holds.

    Attributes:
        nodes: Those that work, as many as were asked for.
        generation: Of the run's lease.
        request: What was asked for.
        spares: Those that are ready to take the place of a lost one.
    """

    nodes: tuple[Node, ...]
    generation: int
    request: LeaseRequest
    spares: tuple[Node, ...] = ()

    @property
    def deadline(self) -> datetime:
        """Hard end: the reaper takes the machines back after it."""
        return self.request.deadline


class Run(LeaseDecisions):
    """One run. Made by `Client.start_run` and `Client.attach`; not thread-safe except for its heartbeat.

    Attributes:
        id: uuid5 over deployment and name.
        key: The 12 characters by which outside resources name the run.
        name: What the user called it.
        generation: Of the lease; a retry after failure opens the next one.
        prefix: Where the run keeps its objects: ``runs/<key>``.
        store: The deployment's bucket.
        settings: The deployment.
        journal: What happened to the run.
    """

    def __init__(self, services: Services, *, run_id: uuid.UUID, name: str, owner: str) -> None:
        self._services = services
        self.settings = services.settings
        self.store = services.store
        self.id = run_id
        self.key = run_key(run_id)
        self.name = name
        self.owner = owner
        self.prefix = f"runs/{self.key}"
        self.journal = Journal(services.store, self.key, now=services.now)
        self.generation = 1
        self._fence = services.fence()
        self._boundaries = Boundaries(self.journal)
        self._holding: Holding | None = None
        self._lease: Lease | None = None
        self._heartbeat = RunHeartbeat(
            self.store,
            self.prefix,
            settings=self.settings.lease,
            now=services.now,
            clock=services.clock,
            keeper=services.keeper,
        )
        self._given_back = False
        self._keep = False
        self._left = False

    @classmethod
    def attach(cls, id: uuid.UUID | str, client: Client | None = None) -> Run:  # noqa: A002 - the word of the field
        """Find a run again from any process, by id or key. See `Client.attach`."""
        from mlops_sdk.client import Client as DefaultClient  # noqa: PLC0415 - client.py builds on this module

        return (client or DefaultClient()).attach(id)

    def open(self) -> None:
        """Write the first journal entry of a new run, or continue where the journal ends. Called by the client."""
        first = self.journal.first()
        if first is None:
            deployment = str(self.settings.deployment_id)
            self.journal.append(
                EntryKind.EVENT, "run", run_id=str(self.id), name=self.name, owner=self.owner, deployment_id=deployment
            )
            return
        history = self.history()
        self.name = history.name or self.name
        self.owner = history.owner or self.owner
        latest = history.latest
        if latest is not None:
            ended = latest.state is LeaseState.RELEASED
            self.generation = latest.number + 1 if ended else latest.number

    # What the run has

    @property
    def clock(self) -> Clock:
        """Durations and pauses."""
        return self._services.clock

    @property
    def client_key(self) -> SshKey:
        """The key by which this process logs in to the machines of this generation."""
        return client_key(self._broker_key, self.id, self.generation)

    @property
    def peer_key(self) -> SshKey:
        """The key by which the machines of this generation log in to each other."""
        return peer_key(self._broker_key, self.id, self.generation)

    @property
    def credential(self) -> RunCredential:
        """The run's own application credential.

        Raises:
            LeaseLost: there is none before `lease` and after `release`.
        """
        credential = self._holds.credential
        if credential is None:
            raise LeaseLost(f"run {self.key!r} has no credential", next_step="call run.lease() first")
        return credential

    def history(self) -> History:
        """What the journal tells of this run."""
        return read_history(self.journal.entries())

    def on_event(self, callback: EventCallback) -> None:
        """Be told at each boundary: step, "before" or "after", details.

        An exception in a callback aborts what the run is getting; it is logged and ignored while the run gives back.
        """
        self._boundaries.listen(callback)

    # Lease

    def lease(self, request: LeaseRequest | None = None) -> Lease:
        """Machines for this run: all that were asked for, deployed. Look-up-or-create: called again, it adopts.

        On any failure everything that was got is given back before the error leaves this call.

        Args:
            request: What is wanted. None, or a request repeated with another deadline, continues this generation's own.

        Raises:
            BudgetExceeded: the owner's budget has no room for it; nothing was asked for.
            NoCapacity: not enough machines within `request.wait_s`.
            NodeFailed: a machine did not come up; `next_generation` opens a new try.
            LeaseLost: this generation was given back already.
            AccessDenied: Keystone or Ironic refuses us.
        """
        return drive(self.leasing(request), self._services.clock)

    def leasing(self, request: LeaseRequest | None = None) -> Steps[Lease]:
        """`lease`, as steps. Closed at a pause, it leaves what it got as it is: for whoever goes on elsewhere."""
        warm_until = self._warm_until(request)
        request = self._ask(request)
        try:
            lease = yield from self._acquiring(request)
            if warm_until is not None and warm_until > lease.deadline:
                self.extend(warm_until)
            return known_lease(self.held)
        except GeneratorExit:
            raise
        except BaseException as error:
            reason = EndReason.CANCELLED
            if isinstance(error, MlopsError):
                reason = EndReason.NO_CAPACITY if isinstance(error, NoCapacity) else EndReason.NODE_FAILED
            with _keeping(error):
                yield from self.releasing(reason)
            raise

    def leasing_in(self, generation: int, request: LeaseRequest) -> Steps[Lease]:
        """`leasing` in exactly this generation, as steps. Earlier ones are given back first.

        Raises:
            LeaseLost: this generation was given back already.
        """
        yield from self._opening(generation)
        return (yield from self.leasing(request))

    def beginning_in(self, generation: int, request: LeaseRequest) -> Steps[None]:
        """The first half of `leasing_in`, as steps: everything is asked for, and nothing waited for.

        Whatever it ends with, a lease may be under way: somebody has to call `leasing_in` then, which also gives back
        what cannot be completed.
        """
        yield from self._opening(generation)
        yield from self._holds.begin(self._ask(request))

    def adopting(self) -> Steps[Lease]:
        """The machines that this generation was leased already, as steps; makes none, gives none back if that fails.

        Raises:
            LeaseLost: this generation holds no lease, or lost it.
            ServiceUnavailable: a service is away; the lease may be all right.
        """
        generation = self._holds.state()
        if generation.state not in {LeaseState.ACTIVE, LeaseState.BEFORE_END}:
            raise LeaseLost(
                f"generation {self.generation} of run {self.key!r} holds no machines",
                seen=generation.state.value,
                next_step="lease machines first, or open the next generation",
            )
        return (yield from self._acquiring(known(generation.request)))

    def release(self, reason: EndReason = EndReason.FINISHED) -> tuple[NodeEvidence, ...]:
        """Give every machine of this generation back, wait for its cleaning, revoke the credential. Idempotent.

        Returns the evidence per machine, also when the reaper or another process was faster.
        """
        return drive(self.releasing(reason), self._services.clock)

    def releasing(self, reason: EndReason = EndReason.FINISHED) -> Steps[tuple[NodeEvidence, ...]]:
        """`release`, as steps."""
        generation = self._holds.state()
        if self._given_back or generation.request is None:
            self._heartbeat.stop()
            return tuple(p.evidence for p in generation.pieces.values() if p.evidence is not None)
        reason = generation.why(reason)
        self.journal.note(EntryKind.INTENT, "release", generation=self.generation, reason=reason.value)
        evidence = yield from self._holds.give_back(generation, reason)
        self.journal.note(
            EntryKind.OUTCOME,
            "release",
            generation=self.generation,
            outcomes={item.resource: item.outcome.value for item in evidence},
        )
        self._heartbeat.stop()
        self._heartbeat.forget()
        self._given_back = True
        self._lease = None
        return evidence

    def next_generation(self) -> int:
        """Give this generation back and open the next one: how a retry after a failure begins."""
        return drive(self.opening_next(), self._services.clock)

    def opening_next(self) -> Steps[int]:
        """`next_generation`, as steps."""
        yield from self.releasing(EndReason.NODE_FAILED)
        self.generation += 1
        self._given_back = False
        self._holding = None
        self.journal.append(EntryKind.EVENT, "generation", generation=self.generation)
        return self.generation

    def prove(self) -> Proof:
        """Everything this run ever created, with the evidence that it was given back. Looks; changes nothing."""
        return prove(self.key, self.history(), self._services, self._fence)

    # Ends of the process's care

    def keep(self) -> None:
        """Leave the `with` block without giving back: attach again within the renewal time, or the reaper acts."""
        self._keep = True

    def rest(self, *, resting: bool) -> None:
        """While resting nothing is renewed, and the lease may end by itself; the end of a rest renews at once."""
        self._heartbeat.rest(resting=resting)

    def close(self) -> None:
        """Stop renewing and leave everything as it is. Idempotent."""
        self._heartbeat.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del kind, traceback
        if self._keep or self._left:
            self.close()
            return
        if error is None:
            self.release()
            return
        reason = reason_of(error)
        with _keeping(error):
            if reason is EndReason.WORK_FAILED and self.is_to_be_held():
                with suppress(MlopsError):  # what cannot be held is given back
                    until = self.hold()
                    words = f"its machines stay until {until:%Y-%m-%d %H:%M:%S} UTC: `mlops lease login {self.key}`"
                    error.add_note(words)
                    return
            self.release(reason)

    def _warm_until(self, request: LeaseRequest | None) -> datetime | None:
        """The deadline that is wanted for machines that were kept warm; None when they were not."""
        if request is None or self._holds.state().state is not LeaseState.WARM:
            return None
        return request.deadline

    @property
    def _broker_key(self) -> str:
        return self.settings.broker_key.get_secret_value()

    def _opening(self, generation: int) -> Steps[None]:
        while self.generation < generation:
            yield from self.opening_next()
        if self.generation > generation:
            raise LeaseLost(
                f"generation {generation} of run {self.key!r} was given back",
                seen=f"the run is at generation {self.generation}",
                next_step="a retry opens the next generation",
            )

    def _ask(self, request: LeaseRequest | None) -> LeaseRequest:
        """What is asked for from now on; the journal knows it before anything exists."""
        generation = self._holds.state()
        request = agreed(generation, request, run_key=self.key, given_back=self._given_back)
        if generation.request is None:
            reserve(self._services, request, owner=self.owner, run_key=self.key, generation=self.generation)
        self._holds.ask(request)
        self.journal.append(EntryKind.INTENT, "lease", generation=self.generation, request=request_to_json(request))
        return request

    def _acquiring(self, request: LeaseRequest) -> Steps[Lease]:
        nodes = self._leased((yield from self._holds.get(request)), request).nodes
        self._left = False
        self.journal.append(
            EntryKind.OUTCOME,
            "lease",
            generation=self.generation,
            nodes=[{"id": n.id, "name": n.name, "image": n.image, "driver": n.driver} for n in nodes],
        )
        return known_lease(self._lease)

    def _leased(self, nodes: tuple[Node, ...], request: LeaseRequest) -> Lease:
        count = request.nodes
        self._lease = Lease(nodes=nodes[:count], spares=nodes[count:], generation=self.generation, request=request)
        return self._lease

    @property
    def _holds(self) -> Holding:
        """What the current generation holds."""
        if self._holding is None or self._holding.number != self.generation:
            self._holding = Holding(
                self._services,
                self.journal,
                self._boundaries,
                self._fence,
                self._heartbeat,
                run_id=self.id,
                owner=self.owner,
                number=self.generation,
            )
        return self._holding


@contextmanager
def _keeping(error: BaseException) -> Generator[None]:
    """Do not let an error while giving back hide the error that made us give back: note it on that one."""
    try:
        yield
    except MlopsError as second:
        error.add_note(f"while giving back: {second}; the reaper returns what is left")
