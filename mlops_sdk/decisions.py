"""What a run, or whoever attaches to it, decides about a lease that there is: more time, notice, to keep it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.orders import Keeping, Notice
from mlops_sdk.errors import MlopsError
from mlops_sdk.heartbeat import RunHeartbeat
from mlops_sdk.holding import Holding
from mlops_sdk.services import Services
from mlops_sdk.steps import drive

if TYPE_CHECKING:
    from mlops_sdk.run import Lease


class LeaseDecisions(ABC):
    """That part of `Run`. `mlops_sdk.capacity.orders` holds the rules, `mlops_sdk.holding` makes them true."""

    _services: Services
    _heartbeat: RunHeartbeat
    _lease: Lease | None
    _left: bool

    @property
    @abstractmethod
    def _holds(self) -> Holding:
        """What the current generation holds."""

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
