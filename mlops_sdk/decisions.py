"""What a run, or whoever attaches to it, does with a lease that there is: more time, to keep it, another machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mlops_sdk.capacity.lease import LeaseRequest, to_iso
from mlops_sdk.capacity.loss import Statement
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.orders import Keeping, Notice
from mlops_sdk.config import Settings
from mlops_sdk.errors import LeaseLost, MlopsError
from mlops_sdk.heartbeat import RunHeartbeat
from mlops_sdk.holding import Holding
from mlops_sdk.services import Services
from mlops_sdk.steps import Steps, drive

if TYPE_CHECKING:
    from mlops_sdk.run import Lease


class LeaseDecisions(ABC):
    """That part of `Run`. `mlops_sdk.capacity.orders` holds the rules, `mlops_sdk.holding` makes them true."""

    key: str
    generation: int
    settings: Settings
    _services: Services
    _heartbeat: RunHeartbeat
    _lease: Lease | None
    _left: bool

    @property
    @abstractmethod
    def _holds(self) -> Holding:
        """What the current generation holds."""

    @abstractmethod
    def _leased(self, nodes: tuple[Node, ...], request: LeaseRequest) -> Lease:
        """These are its machines from now on."""

    @property
    def held(self) -> Lease | None:
        """The lease this process holds, with its deadline as it is now, or None."""
        lease, grant = self._lease, self._heartbeat.grant
        if lease is None or grant is None or grant.request.deadline == lease.deadline:
            return lease
        return replace(lease, request=replace(lease.request, deadline=grant.request.deadline))

    def raise_if_lost(self) -> None:
        """Check that the machines are still ours.

        Raises:
            LeaseLost: past the deadline, not renewed in time, or given back by somebody else.
        """
        lease = self.held
        if lease is None:
            raise LeaseLost(f"run {self.key!r} holds no lease", next_step="call run.lease() first")
        seen = ""
        if self._services.now() > lease.deadline:
            seen = f"the deadline {to_iso(lease.deadline)} has passed"
        elif self._heartbeat.renewed < len(lease.nodes):
            seen = f"{self._heartbeat.renewed} of {len(lease.nodes)} allocations are still there"
        elif self._heartbeat.silent_for_s > self.settings.lease.renew_for_s:
            cause = f" ({self._heartbeat.error})" if self._heartbeat.error else ""
            seen = f"not renewed for {self._heartbeat.silent_for_s:.0f} s{cause}"
        if seen:
            raise LeaseLost(
                f"run {self.key!r} lost its lease (generation {self.generation})",
                seen=seen,
                next_step="release, and lease again with run.next_generation()",
            )

    @property
    def deadline(self) -> datetime:
        """Hard end of the lease that the run has, whichever process holds it.

        Raises:
            LeaseLost: it never asked for one.
        """
        return self._holds.deadline()

    def ending(self) -> Notice | None:
        """The notice that the lease has, or None while its end is not near. For `run_job` and whoever works on it.

        A lease has notice from `lease.notice_s` before its deadline on, and as soon as somebody of a higher priority
        is promised its machines. The run's journal is told once.
        """
        return None if self._lease is None else self._holds.notice()

    def hold(self, seconds: float | None = None) -> datetime:
        """What ran on the machines failed: leave them as they are for a person, for so long at most; until when.

        They stay without this process, paid for, and end by themselves: at the deadline, or then. `mlops lease login`
        logs in to them, `extend` gives more time, `release` ends it.

        Args:
            seconds: None: what the request says (`hold_on_failure_s`).

        Raises:
            LeaseLost: the run holds no machines, or somebody else needs them.
        """
        if seconds is None:
            request = self._holds.state().request
            seconds = request.hold_on_failure_s if request is not None else 0.0
        return self._leave(Keeping.DEBUG, seconds)

    def park(self, seconds: float) -> datetime:
        """Done for now, but a later task of this run may need the same machines: keep them warm; until when.

        Who leases the same in this run until then gets them as they are, without another deployment. Nobody renews
        them: the reaper returns them then, at the latest at the deadline. The time is a line of its own in the cost.

        Raises:
            LeaseLost: the run holds no machines, or somebody else needs them: release.
        """
        return self._leave(Keeping.WARM, seconds)

    def look(self) -> tuple[Node, ...]:
        """The machines that the run holds, whichever process does, for who logs in by hand. Changes nothing.

        Raises:
            LeaseLost: it holds none.
        """
        return drive(self._holds.look(), self._services.clock)

    def extend(self, deadline: datetime) -> datetime:
        """Give the lease a later deadline; from any process, whichever holds it. Idempotent.

        The budget is asked first. The machines carry the new deadline when this returns; the process that holds the
        lease knows it at its next heartbeat, and gets a credential that lasts as long.

        Returns the deadline that is true now: of several at once the latest.

        Raises:
            BudgetExceeded: the owner's budget has no room for the time; nothing was changed.
            LeaseLost: the run holds no machines, or they are promised to somebody else.
            SettingsError: it is not later than the deadline that there is.
        """
        found = self._holds.extend(deadline)
        if self._lease is not None:
            with suppress(MlopsError):  # what could not be followed now is followed at the next beat
                self._heartbeat.beat()
        return found

    def is_to_be_held(self) -> bool:
        """Whether the machines stay when what runs on them fails: that was asked for, and their end is not near."""
        lease = self._lease
        return lease is not None and lease.request.hold_on_failure_s > 0 and self.ending() is None

    def _leave(self, why: Keeping, seconds: float) -> datetime:
        until = self._holds.keep(why, seconds)
        self._heartbeat.forget()
        self._lease = None
        self._left = True
        return until

    def replace(self, node: str, *, unfenced: str = "") -> Lease:
        """Put another machine in the place of a lost one, by name or id; the rest stays. `repair` looks first.

        The lost one is switched off through its BMC, which has to confirm it, before a spare or a newly leased machine
        takes its place; then it is given back. A crash at any point is repaired by `lease` of whoever attaches.

        Args:
            node: Of `held`.
            unfenced: Where its BMC cannot be asked: your word, kept in the journal, that it is off.

        Raises:
            NotFenced: its BMC does not confirm that it is off; nothing has changed.
            NoCapacity: there is no machine for its place.
            LeaseLost: it is no part of this lease.
            SettingsError: machines of this provider cannot be replaced one by one.
        """
        return drive(self.replacing(node, unfenced=unfenced), self._services.clock)

    def replacing(
        self, node: str, *, unfenced: str = "", why: Mapping[str, Any] | None = None, unfit: Collection[str] = ()
    ) -> Steps[Lease]:
        """`replace`, as steps.

        Args:
            node: As there.
            unfenced: As there.
            why: Evidence of the loss, for the journal.
            unfit: Names of spares that cannot take a place.
        """
        lease = known_lease(self.held)
        found = {n.name: n for n in (*lease.nodes, *lease.spares)} | {n.id: n for n in (*lease.nodes, *lease.spares)}
        if node not in found:
            raise LeaseLost(
                f"machine {node!r} is no part of run {self.key!r}",
                seen=f"it holds {', '.join(n.name for n in lease.nodes)}",
                next_step="see run.held",
            )
        steps = self._holds.replace(
            found[node].index, why=why or {}, unfenced=unfenced, unfit={found[n].index for n in unfit if n in found}
        )
        return self._leased((yield from steps), lease.request)

    @property
    def replaceable(self) -> bool:
        """Whether one lost machine can be replaced while the rest stays: its provider can switch it off."""
        return self._holds.replaceable

    def power(self, node: Node) -> Statement:
        """What the BMC of a leased machine says of it."""
        return self._holds.power(node.index)


def known_lease(lease: Lease | None) -> Lease:
    """The lease of a run that has one.

    Raises:
        LeaseLost: it has none.
    """
    if lease is None:
        raise LeaseLost("this run holds no lease", next_step="call run.lease() first")
    return lease
