"""Gives one Ironic machine back, a step at a time. The run and the reaper walk the same path."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta

from mlops_sdk.capacity.evidence import Cleaning, NodeEvidence, Outcome
from mlops_sdk.capacity.fence import Claim
from mlops_sdk.capacity.lease import EndReason, to_iso
from mlops_sdk.capacity.owned import Held
from mlops_sdk.capacity.provider import Entitled, Party, Returning
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi, NotYet
from mlops_sdk.capacity.providers.ironic_history import last_cleaning
from mlops_sdk.capacity.providers.ironic_instance import deployed_for
from mlops_sdk.capacity.providers.ironic_reclean import Tries, may_try, reason_to_put_out
from mlops_sdk.capacity.providers.ironic_states import ReleaseStep, is_stray, judge_outcome, release_step
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine
from mlops_sdk.errors import AccessDenied, ServiceUnavailable

UNKNOWN_POLLS = 5
_TEAR_DOWNS = 3
_ABORTS = 3
_AGAIN = {"clean failed", "manageable", "error"}


class Release(Returning):
    """The release of one piece. Call `step` until it returns evidence.

    Every action is preceded by a claim on the fence and a fresh look at the owner. "Gone" is success. A machine whose
    cleaning failed is handed over by a run, with the claim; the reaper cleans it again, so many times, and then takes
    it out of the pool. A person who asks for it begins to count anew.

    Args:
        api: Ironic, through the login of the party.
        ours: Ironic, through the deployment's login.
        party: Who acts.
        held: What to give back.
        reason: Why.
        entitled: Whether we may give this allocation back.
        run_key: Whose it is; noted in the claim.
    """

    def __init__(
        self,
        api: BaremetalApi,
        ours: BaremetalApi,
        party: Party,
        held: Held,
        *,
        reason: EndReason,
        entitled: Entitled,
        run_key: str,
    ) -> None:
        self._api = api
        self._ours = ours
        self._fence = party.fence
        self._held = held
        self._reason = reason
        self._entitled = entitled
        self._run_key = run_key
        self._by = party.by
        self._settings = party.settings.lease
        self._skew_s = self._settings.clock_skew_s
        self._boundary = party.boundary
        self._started_at = held.since
        self._allocation_id = held.allocation_id
        self._begun = False
        self._node_id = held.node_id
        self._deployed = held.deployed
        self._tear_downs = 0
        self._aborts = 0
        self._tries: Tries | None = None
        self._cleaning: Cleaning | None = None
        self._state = ""
        self._state_since: datetime | None = None
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
        self._machine = machine = self._api.get_machine(self._node_id) if self._node_id else None
        overdue = self._is_overdue(machine)
        recleaning = self._by == "person" or (allocation is None and self._tries_of(machine).made > 0)
        stray = machine is not None and is_stray(machine, self.name)
        step = release_step(allocation, machine, recleaning=recleaning, overdue=overdue, stray=stray)
        if step is ReleaseStep.UNKNOWN:
            return self._count_unknown()
        self._unknown = 0
        if step in {ReleaseStep.TEAR_DOWN, ReleaseStep.DROP, ReleaseStep.ABORT}:
            return self._act(step, allocation)
        if machine is not None and step in {ReleaseStep.RECLEAN, ReleaseStep.PROVIDE}:
            return self._clean_again(step, machine, overdue=overdue)
        if step is ReleaseStep.WAIT:
            return None
        return self._finish()

    def evidence(self, outcome: Outcome) -> NodeEvidence:
        """What is known now, under the given outcome."""
        machine, cleaning = self._machine, self._cleaning
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
            cleaned_at=to_iso(cleaning.finished_at) if cleaning else "",
            steps=cleaning.steps if cleaning else (),
            recleans=self._tries.made if self._tries else 0,
            last_error=(machine.last_error if machine else "") or self._words,
            started_at=to_iso(self._started_at) if self._started_at else "",
            finished_at=to_iso(self._finished_at(outcome)),
        )

    def _finished_at(self, outcome: Outcome) -> datetime:
        """Now; but when we never saw the allocation, somebody else gave it back before, and its cleaning says when."""
        if outcome is Outcome.CLEANED and not self._begun and self._cleaning is not None:
            return self._cleaning.finished_at
        return self._api.now()

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
        if step is ReleaseStep.ABORT and self._aborts >= _ABORTS:
            return self._hand_over() if self._by == "run" else self._put_out()
        if step is ReleaseStep.TEAR_DOWN and allocation is None and not self._may_repeat():
            return self._stopped()
        try:
            self._do(step, allocation)
        except NotYet as signal:
            self._words = str(signal)
        return self.evidence(Outcome.PENDING) if self.abandoned else None

    def _do(self, step: ReleaseStep, allocation: Allocation | None) -> None:
        if step is ReleaseStep.DROP:
            # a machine never gets back to `available` under its allocation: nothing of ours ran on it
            self._deployed = self._deployed and self._provision_state != "available"
            state = self._provision_state
            with self._boundary("allocation.delete", self.name, node_id=self._node_id, provision_state=state) as detail:
                if not self._is_as_seen(allocation):
                    detail.update(changed=True)
                    return
                if self._machine is not None and deployed_for(self._machine) == self.name:
                    self._ours.set_instance(self._node_id, {})  # a deployment that arrives later is refused
                self._api.delete_allocation(self.name)
        elif step is ReleaseStep.ABORT:
            if self._is_as_seen(allocation):
                self._aborts += 1
                self._state_since = None  # it has its time again to come to its end
                self._api.abort(self._node_id)
        else:
            self._deployed = True
            with self._boundary("machine.tear_down", self.name, node_id=self._node_id) as detail:
                if not self._is_as_seen(allocation):
                    detail.update(changed=True)
                    return
                self._api.tear_down(self._node_id)
            self._tear_downs += 1

    def _is_as_seen(self, allocation: Allocation | None) -> bool:
        """Asked last: claim and journal took time, and what was given back meanwhile may be the next tenant's."""
        if allocation is not None:
            return self._look() is not None and not self.abandoned
        machine = self._api.get_machine(self._node_id)
        return machine is not None and not machine.taken

    def _clean_again(self, step: ReleaseStep, machine: Machine, *, overdue: bool) -> NodeEvidence | None:
        if self._by == "run":
            return self._hand_over()
        if not self._may_act(None):
            return None
        if overdue:
            return self._put_out()
        if step is ReleaseStep.RECLEAN and not self._counted(machine):
            return self._stopped()
        try:
            if step is ReleaseStep.RECLEAN:
                self._api.manage(machine.id)
            else:
                self._api.provide(machine.id)
        except NotYet as signal:
            self._words = str(signal)
        return None

    def _may_repeat(self) -> bool:
        """Whether a tear-down that failed may be asked for again now."""
        if self._by == "run" or self._machine is None:
            return self._tear_downs < _TEAR_DOWNS
        return self._counted(self._machine)

    def _stopped(self) -> NodeEvidence | None:
        """It may not be tried now: because it was tried often enough, or because it is too early."""
        if self._by == "run":
            return self._hand_over()
        made = self._tries.made if self._tries else 0
        return self._put_out() if made >= self._settings.reclean_tries else None

    def _counted(self, machine: Machine) -> bool:
        """Whether it may be tried once more now. The try is in the claim before it is made: no crash loses it."""
        tries = self._tries_of(machine)
        now = self._api.now()
        if not may_try(tries, now=now, limit=self._settings.reclean_tries, pause_s=self._settings.renew_for_s):
            return False
        self._tries = tries.another(now)
        if self._may_act(None):
            return True
        self._tries = None  # somebody else is at work on it
        return False

    def _put_out(self) -> NodeEvidence | None:
        """Nobody gets this machine until a person has looked; the evidence says so."""
        machine = self._machine
        if machine is None or not self._may_act(None):
            return None
        made = self._tries.made if self._tries else 0
        try:
            self._api.put_out(machine.id, reason_to_put_out(machine, self.name, made))
        except NotYet as signal:
            self._words = str(signal)
            return None
        except AccessDenied as error:  # Ironic itself keeps it out: it is not `available`
            self._words = f"{machine.last_error}; it could not be put into maintenance: {error.seen}"
        else:
            self._machine = self._api.get_machine(machine.id)
        self._drop_claim()
        return self.evidence(Outcome.NOT_CLEAN)

    def _hand_over(self) -> NodeEvidence:
        """Leave a claim that anybody of ours may take over: the reaper's sweep finds the machine by it."""
        with suppress(ServiceUnavailable):
            if self._may_act(None) and self._claim is not None:
                self._fence.yield_up(self._claim)
        return self.evidence(Outcome.NOT_CLEAN)

    def _tries_of(self, machine: Machine | None) -> Tries:
        """How often it was cleaned again, by the claim of whoever did. A run never does; a person begins anew."""
        if self._tries is not None or self._by != "reaper" or machine is None:
            return self._tries or Tries()
        if machine.provision_state in _AGAIN and (claim := self._fence.read(self._resource)) is not None:
            self._tries = Tries.parse(claim.details)
        return self._tries or Tries()

    def _is_overdue(self, machine: Machine | None) -> bool:
        state = machine.provision_state if machine else ""
        if state != self._state or self._state_since is None:
            self._state, self._state_since = state, self._api.now()
        return self._api.now() - self._state_since > timedelta(seconds=self._settings.clean_timeout_s)

    @property
    def _resource(self) -> str:
        """What is claimed."""
        return self._allocation_id or self._node_id

    def _may_act(self, allocation: Allocation | None) -> bool:
        """Whether the fence is ours.

        Without S3 there are no claims. Then only the run itself may go on, and only while its lease is renewed well
        into the future: the reaper acts on overdue leases, and cannot claim either.
        """
        try:
            self._claim = self._fence.claim(
                self._resource,
                provider="ironic",
                name=self.name,
                node_id=self._node_id,
                run_key=self._run_key,
                **(self._tries.to_json() if self._tries else {}),
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
        machine = self._machine
        if machine is not None and self._deployed:
            self._cleaning = last_cleaning(machine, self._api.history(machine.id))
        cleaning = self._cleaning
        outcome = judge_outcome(
            machine,
            deployed=self._deployed,
            cleaning=cleaning,
            started_at=self._started_at or self._api.now(),
            skew_s=self._skew_s,
        )
        if outcome is Outcome.PENDING:
            return None
        self._words = ""
        if outcome is Outcome.UNPROVEN and cleaning is not None and not cleaning.erased:
            self._words = f"no step of its cleaning erases disks: {', '.join(cleaning.steps) or 'none is on record'}"
        self._drop_claim()
        return self.evidence(outcome)

    def _drop_claim(self) -> None:
        """Ours, or the one of whoever handed over to the reaper."""
        with suppress(ServiceUnavailable):  # then it expires, and the reaper's sweep removes it
            if self._claim is None and self._by == "reaper" and self._fence.read(self._resource) is not None:
                self._may_act(None)
            if self._claim is not None:
                self._fence.drop(self._claim)

    def _count_unknown(self) -> NodeEvidence | None:
        self._unknown += 1
        if self._unknown < UNKNOWN_POLLS:
            return None
        state = self._machine.provision_state if self._machine else ""
        self._words = f"provision state {state!r} is not in the table of this version"
        return self.evidence(Outcome.NOT_CLEAN)
