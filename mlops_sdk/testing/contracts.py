"""What every implementation of the outside calls must do: run by the tests against the fake and the real services."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from mlops_sdk.capacity.lease import Marker, from_iso
from mlops_sdk.capacity.providers import ironic_api
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi, NotYet
from mlops_sdk.capacity.providers.ironic_history import last_cleaning
from mlops_sdk.capacity.providers.ironic_instance import (
    deployed_for,
    instance_of,
    marker_of,
    same_instance,
)
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine
from mlops_sdk.identity import credential
from mlops_sdk.identity.credential import CredentialApi, run_access_rules
from mlops_sdk.identity.credential_marker import CredentialMarker
from mlops_sdk.names import resource_name

_POLLS = 600


class ContractBroken(AssertionError):
    """An implementation does not do what the protocol says."""


def check_baremetal(
    api: BaremetalApi, *, resource_class: str, image: Mapping[str, Any], sleep: Callable[[float], None]
) -> None:
    """Allocate, mark, free, deploy and tear down one machine; gone is never an error."""
    run_id = uuid.uuid4()
    name = resource_name(run_id, 1, 0)
    _expect(api.get_allocation(name) is None, "an allocation that never was is None")
    _expect(api.get_machine(str(uuid.uuid4())) is None, "a machine that never was is None")
    _expect(not api.delete_allocation(name), "deleting what is gone is False")
    marker = _marker(api, run_id)
    _expect(api.history(str(uuid.uuid4())) == (), "a machine that never was has no history")
    _expect(not api.set_times(name, renewed_until=marker.renewed_until), "renewing what is gone is False")
    try:
        _check_allocation(api, name, marker, resource_class, sleep)
        _check_deployment(api, _allocate(api, name, marker, resource_class, sleep), image, sleep)
        _check_cleaning_again(api, name, marker, resource_class, sleep)
        _check_no_capacity(api, name, marker, sleep)
    finally:
        api.delete_allocation(name)


def _check_allocation(
    api: BaremetalApi, name: str, marker: Marker, resource_class: str, sleep: Callable[[float], None]
) -> None:
    allocation = _allocate(api, name, marker, resource_class, sleep)
    _expect(allocation.marker == marker, "the marker comes back as it was sent")
    _expect(api.get_allocation(allocation.id) == allocation, "by id as by name")
    _expect(name in {a.name for a in api.list_allocations()}, "it is listed")
    machine = _machine(api, allocation)
    _expect(machine.allocation_id == allocation.id, "the machine shows its allocation")
    _expect(machine.provision_state == "available", "allocated is not deployed")
    _expect(machine.id in {m.id for m in api.list_machines()}, "the machine is listed")
    try:
        api.create_allocation(name=name, resource_class=resource_class, traits=(), marker=marker)
    except ironic_api.NameTaken:
        pass
    else:
        raise ContractBroken("a name is taken once")
    later = marker.renewed_until + timedelta(seconds=39)
    _expect(api.set_times(name, renewed_until=later), "it can be renewed")
    _expect(_marker_of(api, name) == replace(marker, renewed_until=later), "and nothing else of the marker changes")
    _expect(api.set_times(name, renewed_until=later, deadline=later), "it can be extended")
    _expect(_marker_of(api, name) == replace(marker, renewed_until=later, deadline=later), "the new times are there")
    _expect(api.delete_allocation(name), "deleting what is there is True")
    _expect(api.get_allocation(name) is None, "deleted is gone")
    _expect(not _machine(api, allocation).allocation_id, "its machine is free")


def _check_deployment(
    api: BaremetalApi, allocation: Allocation, image: Mapping[str, Any], sleep: Callable[[float], None]
) -> None:
    name, marker = allocation.name, _marker_of(api, allocation.name)
    if marker is None:
        raise ContractBroken("the marker is there")
    drive = {"meta_data": {"name": name}, "user_data": "#cloud-config\n{}", "network_data": {}}
    _refused(lambda: api.deploy(allocation.node_id, drive), "without an image nothing is deployed")
    instance = instance_of(image, allocation=name, marker=marker)
    api.set_instance(allocation.node_id, instance)
    told = _machine(api, allocation)
    _expect(same_instance(told, instance) and marker_of(told) == marker, "the machine says what it is for")
    api.deploy(allocation.node_id, drive)
    _refused(lambda: api.deploy(allocation.node_id, drive), "a machine is deployed once")
    _wait(lambda: _machine(api, allocation).provision_state == "active", sleep, "deployed")
    api.power_off(allocation.node_id)
    _wait(lambda: _is_off(_machine(api, allocation)), sleep, "switched off")
    _refused(lambda: api.delete_allocation(name), "the allocation of an active machine stays")
    api.tear_down(allocation.node_id)
    _wait(lambda: api.get_allocation(name) is None, sleep, "tear-down drops the allocation")
    _wait(lambda: _machine(api, allocation).provision_state == "available", sleep, "cleaned")
    _expect(not _machine(api, allocation).instance, "what it was deployed with is forgotten")
    _refused(lambda: api.deploy(allocation.node_id, drive), "a deployment that comes too late is refused")
    api.set_instance(allocation.node_id, instance)
    unallocated = {machine.id: machine for machine in api.list_unallocated()}
    _expect(deployed_for(unallocated[allocation.node_id]) == name, "machines that nobody has are listed with it")
    api.set_instance(allocation.node_id, {})


def _check_cleaning_again(
    api: BaremetalApi, name: str, marker: Marker, resource_class: str, sleep: Callable[[float], None]
) -> None:
    machine = _machine(api, _allocate(api, name, marker, resource_class, sleep))
    _expect(api.delete_allocation(name), "nobody has it")

    def shown() -> Machine:
        found = api.get_machine(machine.id)
        if found is None:
            raise ContractBroken("a machine stays visible")
        return found

    _refused(lambda: api.provide(machine.id), "only a machine in hand is cleaned")
    api.put_out(machine.id, "mlops: contract")
    _expect((shown().maintenance, shown().maintenance_reason) == (True, "mlops: contract"), "out, with the reason")
    api.manage(machine.id)
    _wait(lambda: shown().provision_state == "manageable", sleep, "in hand")
    began = api.now()
    api.provide(machine.id)
    _wait(lambda: shown().provision_state == "available", sleep, "cleaned")
    _expect((shown().maintenance, shown().maintenance_reason) == (False, ""), "and back")
    cleaning = last_cleaning(shown(), api.history(machine.id))
    _expect(cleaning is not None and cleaning.erased, "its history says that disks were erased")
    _expect(cleaning is not None and cleaning.finished_at >= began - timedelta(seconds=2), "and when")


def _check_no_capacity(api: BaremetalApi, name: str, marker: Marker, sleep: Callable[[float], None]) -> None:
    api.create_allocation(name=name, resource_class="no.such.class", traits=(), marker=marker)
    _wait(lambda: _state(api, name) == "error", sleep, "an impossible request fails")
    found = api.get_allocation(name)
    _expect(found is not None and "no available nodes" in found.last_error, "and says why")
    _expect(api.delete_allocation(name), "and can be deleted")


def check_credentials(api: CredentialApi) -> None:
    """Create with a chosen secret, find, list, delete; rules outlive their credential and stay while in use."""
    run_id = uuid.uuid4()
    name = resource_name(run_id, 1, "cred")
    rules = run_access_rules(run_id, 1)
    moment = from_iso("2099-01-01T00:00:00")
    marker = CredentialMarker(
        run_id=str(run_id), deployment_id=str(uuid.uuid4()), generation=1, created_at=moment, deadline=moment
    )

    def create() -> credential.StoredCredential:
        return api.create(
            name=name,
            secret="a secret of our choice",  # noqa: S106 - of a credential that lives for one test
            description=str(marker),
            expires_at=moment,
            roles=credential.ROLES,
            access_rules=rules,
        )

    _expect(api.find(name) is None, "a credential that never was is None")
    stored = create()
    try:
        _expect(stored.marker == marker, "the marker comes back")
        _expect(api.find(name) == stored, "it is found by name")
        _expect(name in {c.name for c in api.list()}, "it is listed")
        try:
            create()
        except credential.NameTaken:
            pass
        else:
            raise ContractBroken("a name is taken once")
        ours = [rule for rule in api.access_rules() if rule.run_piece and str(rule.run_piece.run_key) in name]
        _expect(len(ours) == len([r for r in rules if "/ml-" in r.path]), "the rules that name the run are listed")
        _expect(not api.delete_access_rule(ours[0].id), "a rule in use stays")
    finally:
        deleted = api.delete(stored.id)
    _expect(deleted, "deleting what is there is True")
    _expect(not api.delete(stored.id), "deleting what is gone is False")
    _expect(all(api.delete_access_rule(rule.id) for rule in ours), "rules nobody uses can be deleted")
    _expect(not api.delete_access_rule(ours[0].id), "deleting a rule that is gone is False")


def _allocate(
    api: BaremetalApi, name: str, marker: Marker, resource_class: str, sleep: Callable[[float], None]
) -> Allocation:
    api.create_allocation(name=name, resource_class=resource_class, traits=(), marker=marker)
    _wait(lambda: _state(api, name) != "allocating", sleep, "allocated")
    allocation = api.get_allocation(name)
    if allocation is None or allocation.state != "active" or not allocation.node_id:
        raise ContractBroken(f"expected an active allocation with a machine, not {allocation!r}")
    return allocation


def _marker_of(api: BaremetalApi, name: str) -> Marker | None:
    found = api.get_allocation(name)
    return found.marker if found else None


def _marker(api: BaremetalApi, run_id: uuid.UUID) -> Marker:
    until = api.now() + timedelta(seconds=60)
    return Marker(
        run_id=str(run_id),
        deployment_id=str(uuid.uuid5(run_id, "contract")),
        generation=1,
        index=0,
        nodes=1,
        owner="contract",
        deadline=until,
        renewed_until=until,
    )


def _machine(api: BaremetalApi, allocation: Allocation) -> Machine:
    machine = api.get_machine(allocation.node_id)
    if machine is None:
        raise ContractBroken("the machine of an allocation is visible")
    return machine


def _is_off(machine: Machine) -> bool:
    return machine.power_state == "power off" and not machine.target_power_state and not machine.locked


def _state(api: BaremetalApi, name: str) -> str:
    found = api.get_allocation(name)
    return found.state if found else ""


def _refused(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except NotYet:
        return
    raise ContractBroken(f"expected NotYet: {what}")


def _wait(done: Callable[[], bool], sleep: Callable[[float], None], what: str) -> None:
    for _ in range(_POLLS):
        if done():
            return
        sleep(0.2)
    raise ContractBroken(f"never: {what}")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ContractBroken(f"expected: {what}")
