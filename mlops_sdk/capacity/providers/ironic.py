"""Leases on Ironic: one allocation per machine, all or none.

`ironic_acquire` gets the machines, `ironic_release` gives them back, `ironic_api` makes the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime, timedelta

from mlops_sdk.capacity import quote as pricing
from mlops_sdk.capacity.evidence import NodeEvidence
from mlops_sdk.capacity.lease import EndReason, LeaseRequest, belongs
from mlops_sdk.capacity.loss import Statement
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.owned import Held, Owned, PoolMachine, Seen, Standing
from mlops_sdk.capacity.provider import Entitled, Grant, Party, Provider, Returning, release_all, release_held
from mlops_sdk.capacity.providers.ironic_acquire import Acquisition
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi, NotYet
from mlops_sdk.capacity.providers.ironic_fence import cut_off, power_of
from mlops_sdk.capacity.providers.ironic_history import last_cleaning
from mlops_sdk.capacity.providers.ironic_instance import deployed_for, marker_of
from mlops_sdk.capacity.providers.ironic_reclean import REASON_LENGTH
from mlops_sdk.capacity.providers.ironic_release import Release
from mlops_sdk.capacity.providers.ironic_sights import sights_of
from mlops_sdk.capacity.providers.ironic_states import OURS, is_stray, is_unfinished, judge_outcome, why_not_by_hand
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine, is_free, is_in_use, supply_of, words_of
from mlops_sdk.capacity.watching import Phase, Sight, watched
from mlops_sdk.errors import MlopsError
from mlops_sdk.steps import Steps, drive

NAME = "ironic"
_OWN_LOOKS = 150  # polls: how often a release looks though a shared poller sees it on its way; a stuck machine is ended


class IronicLeases(Provider):
    """`Provider` on Ironic.

    Args:
        api: Ironic, through the login of the party.
        party: Who acts.
        ours: Ironic, through the deployment's login: it says what is deployed, which a run's login may not.
    """

    def __init__(self, api: BaremetalApi, party: Party, *, ours: BaremetalApi) -> None:
        self._api = api
        self._ours = ours
        self._party = party
        self._settings = party.settings.lease

    @property
    def name(self) -> str:
        """See `Provider.name`."""
        return NAME

    def now(self) -> datetime:
        """Ironic's clock."""
        return self._api.now()

    def quote(self, request: LeaseRequest) -> pricing.Quote:
        """See `Provider.quote`."""
        supply = supply_of(request, machines=self._api.list_machines(), allocations=self._api.list_allocations())
        return pricing.priced(
            request,
            supply,
            prices=self._party.settings.node_seconds_price,
            currency=self._party.settings.currency,
            now=self._api.now(),
        )

    def pool(self) -> Iterator[PoolMachine]:
        """See `Provider.pool`."""
        machines = list(self._api.list_machines())  # first: one that is taken in between still counts as free
        allocations = {allocation.id: allocation for allocation in self._api.list_allocations()}
        deployment = str(self._party.settings.deployment_id)
        for machine in machines:
            yield _pool_machine(machine, allocations.get(machine.allocation_id), deployment)

    def address_of(self, node_id: str) -> str:
        """The machine in Ironic's API."""
        return self._api.address_of(node_id)

    def acquire(self, grant: Grant, *, deployed: Collection[str] = ()) -> Steps[tuple[Node, ...]]:
        """See `Provider.acquire`."""
        return self._acquisition(grant).acquire(deployed)

    def begin(self, grant: Grant, *, deployed: Collection[str] = ()) -> Steps[None]:
        """See `Provider.begin`."""
        return self._acquisition(grant).begin(deployed)

    def inspect(self, held: Held) -> Seen:
        """See `Provider.inspect`. Unfinished is a machine whose tear-down or cleaning failed, or still goes on."""
        allocation = self._api.get_allocation(held.allocation_id or held.name)
        machine = self._api.get_machine(held.node_id) if held.node_id else None
        words = "Ironic knows no allocation of this name"
        standing = Standing.ENDED
        if allocation is not None:
            words = f"state {allocation.state!r}, machine {allocation.node_id or 'none'}"
            standing = Standing.HELD
        elif machine is not None and (is_unfinished(machine) or is_stray(machine, held.name)):
            standing = Standing.UNFINISHED
        if not held.node_id:
            return Seen(standing=standing, words=words)
        cleaning = last_cleaning(machine, self._api.history(machine.id)) if machine is not None else None
        outcome = judge_outcome(
            machine,
            deployed=held.deployed,
            cleaning=cleaning,
            started_at=held.since or self._api.now(),
            skew_s=self._settings.clock_skew_s,
        )
        state = words_of(machine) if machine else "not visible"
        steps = f" ({', '.join(cleaning.steps)})" if cleaning and cleaning.steps else ""
        cleaned = f", cleaned {cleaning.finished_at:%Y-%m-%dT%H:%M:%S}Z{steps}" if cleaning else ""
        return Seen(standing=standing, words=words, outcome=outcome, machine_words=f"{state}{cleaned}")

    def renew(self, grant: Grant) -> int:
        """See `Provider.renew`. The deadline stays what it is: somebody else may have extended it."""
        return sum(self._api.set_times(name, renewed_until=self._renewed_until()) for name in grant.names)

    def extend(self, grant: Grant, *, renewed_until: datetime | None = None) -> int:
        """See `Provider.extend`."""
        until, deadline = renewed_until or self._renewed_until(), grant.request.deadline
        return sum(self._api.set_times(name, renewed_until=until, deadline=deadline) for name in grant.names)

    def returning(self, held: Held, *, reason: EndReason, entitled: Entitled, run_key: str) -> Returning:
        """See `Provider.returning`."""
        return Release(self._api, self._ours, self._party, held, reason=reason, entitled=entitled, run_key=run_key)

    def release(
        self,
        grant: Grant,
        held: Iterable[Held],
        *,
        reason: EndReason,
        on_evidence: Callable[[NodeEvidence], None],
    ) -> Steps[tuple[NodeEvidence, ...]]:
        """See `Provider.release`."""
        pieces = {item.name: item for item in held}
        todo = dict(pieces)

        def note(evidence: NodeEvidence) -> None:
            todo.pop(evidence.resource, None)
            on_evidence(evidence)

        return watched(
            release_held(self, self._party, grant, pieces.values(), reason=reason, on_evidence=note),
            provider=NAME,
            keys=lambda: (key for item in todo.values() for key in (item.name, item.node_id) if key),
            at_most_s=_OWN_LOOKS * self._settings.poll_s,
            # the allocation goes while its machine is cleaned; one whose machine we do not know is looked for
            quiet={Phase.GOING, Phase.ABSENT} if all(item.node_id for item in pieces.values()) else {Phase.GOING},
        )

    def clean(self, name: str) -> str:
        """Try once more to clean a machine that is out of the pool; says what came of it.

        Raises:
            MlopsError: there is no such machine, it is in use, or a person took it out of the pool.
        """
        machine = next((found for found in self._api.list_machines() if name in {found.name, found.id}), None)
        if machine is None:
            raise MlopsError(f"Ironic shows no machine {name!r} to this project", next_step="see `mlops lease list`")
        if (why := why_not_by_hand(machine)) is not None:
            raise MlopsError(f"machine {name!r} is left as it is: {why}", seen=words_of(machine))
        # the id of the machine stands for that of an allocation, of which there is none
        held = Held(name=machine.name, allocation_id=machine.id, node_id=machine.id, deployed=True)
        returning = self.returning(held, reason=EndReason.FINISHED, entitled=lambda _name, _marker: False, run_key="")
        steps = release_all([returning], settings=self._settings, clock=self._party.clock, on_evidence=lambda _: None)
        (evidence,) = drive(steps, self._party.clock)
        if evidence.clean:
            return f"clean, back in the pool ({', '.join(evidence.steps)})"
        return f"{evidence.outcome.value}, out of the pool: {evidence.last_error}"

    def take_out(self, node_id: str, words: str) -> bool:
        """See `Fencing.take_out`."""
        machine = self._api.get_machine(node_id)
        if machine is None or machine.taken or machine.maintenance:
            return False
        try:
            self._api.put_out(node_id, f"{OURS}{words}"[:REASON_LENGTH])
        except NotYet:
            return False
        return True

    def power(self, held: Held) -> Statement:
        """See `Fencing.power`."""
        return power_of(self._api, held)

    def cut_off(self, held: Held, *, entitled: Entitled) -> Steps[None]:
        """See `Fencing.cut_off`."""
        return cut_off(self._api, self._party, held, entitled=entitled)

    def list_owned(self) -> Iterator[Owned]:
        """See `Provider.list_owned`."""
        deployment = str(self._party.settings.deployment_id)
        for allocation in self._api.list_allocations():
            marker = allocation.marker
            if marker is None or not belongs(allocation.name, marker, deployment):
                continue
            yield Owned(
                provider=NAME,
                kind="allocation",
                id=allocation.id,
                name=allocation.name,
                marker=marker,
                created_at=allocation.created_at,
                node_id=allocation.node_id,
            )
        for machine in self._api.list_unallocated():
            name, marker = deployed_for(machine), marker_of(machine)
            if marker is not None and belongs(name, marker, deployment) and is_stray(machine, name):
                yield Owned(provider=NAME, kind="machine", id=machine.id, name=name, marker=marker, node_id=machine.id)

    def sights(self) -> dict[str, Sight]:
        """See `Watchable.sights`."""
        allocations = list(self._api.list_allocations())
        return sights_of(allocations, self._api.list_machines(brief=True))

    def _renewed_until(self) -> datetime:
        return self._api.now() + timedelta(seconds=self._settings.renew_for_s)

    def _acquisition(self, grant: Grant) -> Acquisition:
        def give_back() -> Steps[tuple[NodeEvidence, ...]]:
            held = [Held(name=name) for name in grant.names]
            return self.release(grant, held, reason=EndReason.NO_CAPACITY, on_evidence=lambda _: None)

        return Acquisition(self._api, self._ours, self._party, grant, give_back)


def _pool_machine(machine: Machine, allocation: Allocation | None, deployment: str) -> PoolMachine:
    marker = allocation.marker if allocation is not None else None
    return PoolMachine(
        provider=NAME,
        id=machine.id,
        name=machine.name,
        resource_class=machine.resource_class,
        state=words_of(machine),
        power=machine.power_state,
        held_by=allocation.name if allocation else ("somebody else" if machine.taken else ""),
        traits=machine.traits,
        free=is_free(machine),
        in_service=is_free(machine) or is_in_use(machine),
        since=allocation.created_at if allocation is not None else "",
        marker=marker if allocation is not None and belongs(allocation.name, marker, deployment) else None,
    )
