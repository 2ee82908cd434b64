"""Ironic's API on a cloud in memory."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mlops_sdk.capacity.lease import MARKER, Marker, to_iso
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi, NameTaken, NotYet
from mlops_sdk.capacity.providers.ironic_history import HistoryEntry
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine
from mlops_sdk.config import KeystoneSettings
from mlops_sdk.errors import RemoteError
from mlops_sdk.testing.cloud_call import CloudCall

if TYPE_CHECKING:
    from mlops_sdk.testing.cloud import FakeCloud, FakeMachine

NOT_FREE = {"deploying", "wait call-back", "deleting", "cleaning", "clean wait"}


class FakeBaremetal(BaremetalApi):
    """`BaremetalApi` of a `FakeCloud`, through one login.

    Args:
        cloud: The cloud.
        login: Whose; None is the broker. A revoked credential is refused.
    """

    def __init__(self, cloud: FakeCloud, login: KeystoneSettings | None = None) -> None:
        self._cloud = cloud
        self._login = login

    def now(self) -> datetime:
        """Ironic's clock."""
        return self._cloud.clock.now()

    def get_allocation(self, ident: str) -> Allocation | None:
        """By name or id."""
        with self._call("get_allocation"):
            found = [a for a in self._cloud.allocations.values() if ident in {a.name, a.id}]
            return _public(found[0]) if found else None

    def list_allocations(self) -> Iterator[Allocation]:
        """All."""
        with self._call("list_allocations"):
            return iter([_public(allocation) for allocation in self._cloud.allocations.values()])

    def create_allocation(
        self,
        *,
        name: str,
        resource_class: str,
        traits: Sequence[str],
        marker: Marker,
        candidates: Sequence[str] = (),
        owner: str = "",
    ) -> Allocation:
        """Ask for a machine; the answer comes a second later. There is one project."""
        del owner
        with self._call("create_allocation"):
            if name in self._cloud.allocations:
                raise NameTaken(name)
            allocation = Allocation(
                id=str(uuid.uuid4()),
                name=name,
                state="allocating",
                created_at=to_iso(self.now()),
                extra={MARKER: marker.to_json(), "_wanted": (resource_class, tuple(traits), tuple(candidates))},
            )
            self._cloud.allocations[name] = allocation
            self._cloud.allocation_due[name] = self._cloud.clock.monotonic() + 1
            return _public(allocation)

    def set_times(self, name: str, *, renewed_until: datetime, deadline: datetime | None = None) -> bool:
        """Move the times in the marker."""
        with self._call("set_times"):
            found = self._cloud.allocations.get(name)
            if found is None:
                return False
            if found.marker is None:
                raise RemoteError(f"{name!r} carries no marker", seen="400 Couldn't apply patch")
            times = {"renewed_until": renewed_until, **({"deadline": deadline} if deadline else {})}
            marker = {**found.extra[MARKER], **{key: to_iso(moment) for key, moment in times.items()}}
            self._cloud.allocations[name] = replace(found, extra={**found.extra, MARKER: marker})
            return True

    def delete_allocation(self, name: str) -> bool:
        """Delete; refused while its machine is in use."""
        with self._call("delete_allocation"):
            found = self._cloud.allocations.get(name)
            if found is None:
                return False
            machine = self._cloud.machines.get(found.node_id)
            if machine is not None and machine.shown.provision_state in {"active", *NOT_FREE}:
                raise NotYet(f"409 Cannot remove allocation: node is {machine.shown.provision_state}")
            if machine is not None:
                machine.shown = replace(machine.shown, allocation_id="")
            del self._cloud.allocations[name]
            return True

    def get_machine(self, node_id: str) -> Machine | None:
        """By id."""
        with self._call("get_machine"):
            found = self._cloud.machines.get(node_id)
            return found.shown if found else None

    def list_machines(self, *, brief: bool = False) -> Iterator[Machine]:
        """All, always in full."""
        del brief
        with self._call("list_machines"):
            return iter([machine.shown for machine in self._cloud.machines.values() if machine.shown.owner == "ours"])

    def list_unallocated(self) -> Iterator[Machine]:
        """Of ours."""
        with self._call("list_unallocated"):
            ours = [m.shown for m in self._cloud.machines.values() if m.shown.owner == "ours"]
            return iter([shown for shown in ours if not shown.allocation_id])

    def set_instance(self, node_id: str, instance: Mapping[str, Any]) -> None:
        """At once."""
        with self._call("set_instance"):
            machine = self._cloud.machines[node_id]
            machine.shown = replace(machine.shown, instance=dict(instance))

    def deploy(self, node_id: str, config_drive: Mapping[str, Any]) -> None:
        """Two seconds. Like the usual ways of deploying, it asks for an image."""
        with self._call("deploy"):
            machine = self._cloud.machines[node_id]
            if machine.shown.provision_state != "available":
                raise NotYet(f"400 cannot deploy while {machine.shown.provision_state}")
            if not machine.shown.instance.get("image_source"):
                raise NotYet("400 Failed to validate deploy or power info: 'image_source' is missing")
            self._cloud.config_drives[node_id] = config_drive
            if "hang" in machine.fails:
                machine.shown = replace(machine.shown, provision_state="wait call-back")
                return
            then = "deploy failed" if "deploy" in machine.fails else "active"
            self._cloud.change(machine, to="deploying", after_s=2, then=then)

    def tear_down(self, node_id: str) -> None:
        """One second, then cleaning for three."""
        with self._call("tear_down"):
            machine = self._cloud.machines[node_id]
            state = machine.shown.provision_state
            if state not in {"active", "deploy failed", "error", "wait call-back"}:
                raise NotYet(f"400 cannot delete while {state}")
            self._cloud.config_drives.pop(node_id, None)
            self._cloud.change(machine, to="deleting", after_s=1, then="deleted")

    def abort(self, node_id: str) -> None:
        """At once."""
        with self._call("abort"):
            machine = self._in(node_id, "wait call-back", "clean wait", "clean hold", "deploy hold")
            cleaning = machine.shown.provision_state.startswith("clean")
            self._cloud.change(machine, to="aborting", after_s=0, then="clean failed" if cleaning else "deploy failed")

    def manage(self, node_id: str) -> None:
        """At once."""
        with self._call("manage"):
            machine = self._in(node_id, "clean failed", "available")
            machine.shown = replace(machine.shown, provision_state="manageable")

    def provide(self, node_id: str) -> None:
        """Cleans for three seconds."""
        with self._call("provide"):
            machine = self._in(node_id, "manageable")
            machine.shown = replace(machine.shown, maintenance=False, maintenance_reason="", fault="")
            self._cloud.clean(machine)

    def put_out(self, node_id: str, reason: str) -> None:
        """At once."""
        with self._call("put_out"):
            machine = self._cloud.machines[node_id]
            machine.shown = replace(machine.shown, maintenance=True, maintenance_reason=reason)

    def power_off(self, node_id: str) -> None:
        """At once; nothing happens when its BMC is away."""
        with self._call("power_off"):
            machine = self._cloud.machines[node_id]
            if "bmc" in machine.fails:
                machine.shown = replace(machine.shown, last_error="Failed to change power state: no route to the BMC")
                return
            machine.shown = replace(machine.shown, power_state="power off")

    def history(self, node_id: str) -> Sequence[HistoryEntry]:
        """Newest first."""
        with self._call("history"):
            machine = self._cloud.machines.get(node_id)
            return tuple(machine.history) if machine is not None else ()

    def address_of(self, node_id: str) -> str:
        """Nowhere."""
        return f"http://ironic.invalid/v1/nodes/{node_id}"

    def _in(self, node_id: str, *states: str) -> FakeMachine:
        """The machine, which is in one of these states."""
        machine = self._cloud.machines[node_id]
        if machine.shown.provision_state not in states:
            raise NotYet(f"400 The requested action can not be performed while {machine.shown.provision_state}")
        return machine

    def _call(self, name: str) -> CloudCall:
        return CloudCall(self._cloud, name, self._login)


def _public(allocation: Allocation) -> Allocation:
    return replace(allocation, extra={key: value for key, value in allocation.extra.items() if key != "_wanted"})
