"""Leases on Ironic: one allocation per machine, all or none.

`ironic_acquire` gets the machines, `ironic_release` gives them back, `ironic_api` makes the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime, timedelta

from mlops_sdk.capacity import quote as pricing
from mlops_sdk.capacity.evidence import NodeEvidence, judge_outcome
from mlops_sdk.capacity.lease import Allocation, EndReason, LeaseRequest, Machine, belongs
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.owned import Held, Owned, PoolMachine, Seen, Standing
from mlops_sdk.capacity.provider import Entitled, Grant, Party, Provider, Returning, release_all
from mlops_sdk.capacity.providers.ironic_acquire import Acquisition
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi
from mlops_sdk.capacity.providers.ironic_release import Release
from mlops_sdk.names import run_key
from mlops_sdk.steps import Steps

NAME = "ironic"


class IronicLeases(Provider):
    """`Provider` on Ironic.

    Args:
        api: Ironic, through the login of the party.
        party: Who acts.
    """

    def __init__(self, api: BaremetalApi, party: Party) -> None:
        self._api = api
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
        machines = list(self._api.list_machines())
        return pricing.quote(
            request,
            machines=machines,
            allocations=self._api.list_allocations(),
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
        """See `Provider.inspect`. A machine in `error` without allocation is one whose tear-down failed."""
        allocation = self._api.get_allocation(held.allocation_id or held.name)
        machine = self._api.get_machine(held.node_id) if held.node_id else None
        words = "Ironic knows no allocation of this name"
        standing = Standing.ENDED
        if allocation is not None:
            words = f"state {allocation.state!r}, machine {allocation.node_id or 'none'}"
            standing = Standing.HELD
        elif machine is not None and machine.provision_state == "error" and not machine.allocation_id:
            standing = Standing.UNFINISHED
        if not held.node_id:
            return Seen(standing=standing, words=words)
        outcome = judge_outcome(
            machine,
            deployed=held.deployed,
            saw_cleaning=False,
            started_at=held.since or self._api.now(),
            skew_s=self._settings.clock_skew_s,
        )
        state = machine.provision_state if machine else "not visible"
        cleaned = f", cleaned {machine.cleaned_at:%Y-%m-%dT%H:%M:%S}Z" if machine and machine.cleaned_at else ""
        return Seen(standing=standing, words=words, outcome=outcome, machine_words=f"{state}{cleaned}")

    def renew(self, grant: Grant) -> int:
        """See `Provider.renew`. The deadline stays what it is: somebody else may have extended it."""
        return sum(self._api.set_times(name, renewed_until=self._renewed_until()) for name in grant.names)

    def extend(self, grant: Grant) -> int:
        """See `Provider.extend`. Renews too."""
        deadline = grant.request.deadline
        return sum(
            self._api.set_times(name, renewed_until=self._renewed_until(), deadline=deadline) for name in grant.names
        )

    def returning(self, held: Held, *, reason: EndReason, entitled: Entitled, run_key: str) -> Returning:
        """See `Provider.returning`."""
        return Release(
            self._api,
            self._party.fence,
            held,
            reason=reason,
            entitled=entitled,
            run_key=run_key,
            by=self._party.by,
            skew_s=self._settings.clock_skew_s,
            boundary=self._party.boundary,
        )

    def release(
        self,
        grant: Grant,
        held: Iterable[Held],
        *,
        reason: EndReason,
        on_evidence: Callable[[NodeEvidence], None],
    ) -> Steps[tuple[NodeEvidence, ...]]:
        """See `Provider.release`."""
        key = run_key(grant.run_id)
        releases = [self.returning(item, reason=reason, entitled=grant.owns, run_key=key) for item in held]
        return release_all(releases, settings=self._settings, clock=self._party.clock, on_evidence=on_evidence)

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

    def _renewed_until(self) -> datetime:
        return self._api.now() + timedelta(seconds=self._settings.renew_for_s)

    def _acquisition(self, grant: Grant) -> Acquisition:
        def give_back() -> Steps[tuple[NodeEvidence, ...]]:
            held = [Held(name=name) for name in grant.names]
            return self.release(grant, held, reason=EndReason.NO_CAPACITY, on_evidence=lambda _: None)

        return Acquisition(self._api, self._party, grant, give_back)


def _pool_machine(machine: Machine, allocation: Allocation | None, deployment: str) -> PoolMachine:
    marker = allocation.marker if allocation is not None else None
    return PoolMachine(
        provider=NAME,
        id=machine.id,
        name=machine.name,
        resource_class=machine.resource_class,
        state=f"{machine.provision_state}, in maintenance" if machine.maintenance else machine.provision_state,
        power=machine.power_state,
        held_by=allocation.name if allocation else ("somebody else" if machine.allocation_id else ""),
        traits=machine.traits,
        free=pricing.is_free(machine),
        in_service=pricing.is_free(machine) or pricing.is_in_use(machine),
        since=allocation.created_at if allocation is not None else "",
        marker=marker if allocation is not None and belongs(allocation.name, marker, deployment) else None,
    )
