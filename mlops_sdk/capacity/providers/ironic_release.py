"""Gives one Ironic machine back, a step at a time. The run and the reaper walk the same path."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.evidence import NodeEvidence, Outcome, judge_outcome
from mlops_sdk.capacity.fence import Claim, Fence
from mlops_sdk.capacity.lease import Allocation, EndReason, Machine, ReleaseStep, release_step, to_iso
from mlops_sdk.capacity.owned import Held
from mlops_sdk.capacity.provider import Entitled, Returning
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi, NotYet
from mlops_sdk.errors import ServiceUnavailable

UNKNOWN_POLLS = 5
_TEAR_DOWNS = 3
_CLEANING = {"cleaning", "clean wait"}


class Release(Returning):
    """The release of one piece. Call `step` until it returns evidence.

    Every action is preceded by a claim on the fence and a fresh look at the owner. "Gone" is success.

    Args:
        api: Ironic.
        fence: Claims of this party.
        held: What to give back.
        reason: Why.
        entitled: Whether we may give this allocation back.
        run_key: Whose it is; noted in the claim.
        by: ``run`` or ``reaper``.
        skew_s: Tolerated difference between clocks.
        boundary: Told before and after each call that changes something.
    """

    def __init__(
        self,
        api: BaremetalApi,
        fence: Fence,
        held: Held,
        *,
        reason: EndReason,
        entitled: Entitled,
        run_key: str,
        by: str,
        skew_s: float,
        boundary: Boundary = no_boundary,
    ) -> None:
        self._api = api
        self._fence = fence
        self._held = held
        self._reason = reason
        self._entitled = entitled
        self._run_key = run_key
        self._by = by
        self._skew_s = skew_s
        self._boundary = boundary
        self._started_at = held.since
        self._allocation_id = held.allocation_id
        self._begun = False
        self._node_id = held.node_id
        self._deployed = held.deployed
        self._saw_cleaning = False
        self._tear_downs = 0
        self._unknown = 0
        self._words = ""
        self._claim: Claim | None = None
        self._machine: Machine | None = None
        self.abandoned = False

    @property
    def name(self) -> str:
        """Name of the allocation."""
        return self._held.name

    def step(self) -> NodeEvidence | None:
        """Look, act once if there is something to do, and return the evidence when it is over."""
        allocation = self._look()
        if self.abandoned:
            return self.evidence(Outcome.PENDING)
        self._machine = self._api.get_machine(self._node_id) if self._node_id else None
        machine = self._machine
        if machine is not None and machine.provision_state in _CLEANING:
            self._saw_cleaning = True
        step = release_step(allocation, machine)
        if step is ReleaseStep.UNKNOWN:
            return self._count_unknown()
        self._unknown = 0
        if step in {ReleaseStep.TEAR_DOWN, ReleaseStep.DROP}:
            return self._act(step, allocation)
        if step is ReleaseStep.WAIT:
            return None
        return self._finish()

    def evidence(self, outcome: Outcome) -> NodeEvidence:
        """What is known now, under the given outcome."""
        machine = self._machine
        cleaned_at = machine.cleaned_at if machine else None
        return NodeEvidence(
            resource=self.name,
            allocation_id=self._allocation_id,
            node_id=self._node_id,
            node_name=machine.name if machine else "",
            outcome=outcome,
            reason=self._reason,
            released_by=self._by,
            provision_state=machine.provision_state if machine else "",
            power_state=machine.power_state if machine else "",
            cleaned_at=to_iso(cleaned_at) if cleaned_at else "",
            last_error=(machine.last_error if machine else "") or self._words,
            started_at=to_iso(self._started_at) if self._started_at else "",
            finished_at=to_iso(self._api.now()),
        )

    def _look(self) -> Allocation | None:
        """The allocation as it is now; one of the same name but another id is not what we began to give back."""
        allocation = self._api.get_allocation(self.name)
        if self._started_at is None:
            self._started_at = self._api.now()
        if allocation is None or (self._allocation_id and allocation.id != self._allocation_id):
            return None
        if not self._entitled(allocation.name, allocation.marker):
            self.abandoned = True
            if self._claim is not None:
                self._fence.yield_up(self._claim)
            return allocation
        if not self._begun:  # from here on the release counts from when we began to give it back
            self._begun = True
            self._started_at = self._api.now()
        self._allocation_id = allocation.id
        self._node_id = allocation.node_id or self._node_id
        return allocation

    def _act(self, step: ReleaseStep, allocation: Allocation | None) -> NodeEvidence | None:
        if not self._may_act(allocation):
            return None  # somebody else gives it back; we only watch
        if allocation is not None:
            self._look()  # the claim took time: is it still the same allocation, and still ours to give back?
            if self.abandoned:
                return self.evidence(Outcome.PENDING)
        if step is ReleaseStep.TEAR_DOWN and allocation is None and self._tear_downs >= _TEAR_DOWNS:
            return self.evidence(Outcome.NOT_CLEAN)  # the claim stays: the reaper's sweep tries again
        try:
            if step is ReleaseStep.DROP:
                # a machine never gets back to `available` under its allocation: nothing of ours ran on it
                self._deployed = self._deployed and self._provision_state != "available"
                state = self._provision_state
                with self._boundary("allocation.delete", self.name, node_id=self._node_id, provision_state=state):
                    self._api.delete_allocation(self.name)
            else:
                self._deployed = True
                with self._boundary("machine.tear_down", self.name, node_id=self._node_id):
                    self._api.tear_down(self._node_id)
                self._tear_downs += 1
        except NotYet as signal:
            self._words = str(signal)
        return None

    def _may_act(self, allocation: Allocation | None) -> bool:
        """Whether the fence is ours.

        Without S3 there are no claims. Then only the run itself may go on, and only while its lease is renewed well
        into the future: the reaper acts on overdue leases, and cannot claim either.
        """
        try:
            self._claim = self._fence.claim(
                self._allocation_id or self._node_id,
                provider="ironic",
                name=self.name,
                node_id=self._node_id,
                run_key=self._run_key,
            )
        except ServiceUnavailable:
            marker = allocation.marker if allocation else None
            margin = timedelta(seconds=2 * self._skew_s)
            if self._by != "run" or marker is None or marker.renewed_until < self._api.now() + margin:
                raise
            return True
        return self._claim is not None

    @property
    def _provision_state(self) -> str:
        return self._machine.provision_state if self._machine else "available"

    def _finish(self) -> NodeEvidence | None:
        outcome = judge_outcome(
            self._machine,
            deployed=self._deployed,
            saw_cleaning=self._saw_cleaning,
            started_at=self._started_at or self._api.now(),
            skew_s=self._skew_s,
        )
        if outcome is Outcome.PENDING:
            return None
        self._words = ""
        if self._claim is not None:
            with suppress(ServiceUnavailable):  # then it expires, and the reaper's sweep removes it
                self._fence.drop(self._claim)
        return self.evidence(outcome)

    def _count_unknown(self) -> NodeEvidence | None:
        self._unknown += 1
        if self._unknown < UNKNOWN_POLLS:
            return None
        state = self._machine.provision_state if self._machine else ""
        self._words = f"provision state {state!r} is not in the table of this version"
        return self.evidence(Outcome.NOT_CLEAN)
