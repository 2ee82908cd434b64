"""Ironic and Keystone in memory, as far as leases use them, with scripted failures; passes the real ones' contract.

cloud = FakeCloud()
client = cloud.client()
with client.start_run() as run: ...
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from mlops_sdk.capacity.lease import MARKER, Marker, to_iso
from mlops_sdk.capacity.provider import Party, Provider
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi, NameTaken, NotYet
from mlops_sdk.capacity.providers.ironic_history import HistoryEntry
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine
from mlops_sdk.capacity.providers.static import NAME as STATIC
from mlops_sdk.capacity.providers.static import StaticHosts
from mlops_sdk.capacity.reaper import Reaper
from mlops_sdk.client import Client
from mlops_sdk.config import KeystoneSettings, Settings
from mlops_sdk.errors import AccessDenied, RemoteError
from mlops_sdk.identity import credential as identity
from mlops_sdk.identity.credential import AccessRule, CredentialApi, CredentialBroker, StoredCredential, StoredRule
from mlops_sdk.keeper import Keeper, ThreadKeeper
from mlops_sdk.services import Services
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.faults import FaultScript
from mlops_sdk.testing.hosts import FakeHosts
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.testing.settings import fake_settings, with_hosts

_NOT_FREE = {"deploying", "wait call-back", "deleting", "cleaning", "clean wait"}


@dataclass(slots=True, kw_only=True)
class _Change:
    """What becomes of a machine at a time."""

    at: float
    state: str


@dataclass(slots=True, kw_only=True)
class FakeMachine:
    """A machine, and how it behaves.

    Attributes:
        shown: As Ironic shows it.
        fails: Which of ``deploy``, ``tear_down``, ``clean`` fail; ``hang`` never calls back; ``bmc`` does not answer.
    """

    shown: Machine
    fails: set[str] = field(default_factory=set[str])
    next: _Change | None = None
    history: list[HistoryEntry] = field(default_factory=list[HistoryEntry])


class FakeCloud:
    """The services of one cloud, shared by all logins to it.

    Args:
        machines: How many machines of class ``gpu.h200.8x`` there are, in project ``ours``.
        settings: The deployment; default: short times.
        hosts: How many hosts of class ``gpu.static`` its fixed pool has; 0 for no such pool.
    """

    def __init__(self, machines: int = 4, settings: Settings | None = None, *, hosts: int = 0) -> None:
        self.clock = FakeClock()
        self.faults = FaultScript()
        self.s3 = MemoryS3(self.faults)
        self.settings = with_hosts(settings or fake_settings(), hosts)
        self.hosts = FakeHosts(self.faults)
        self.machines: dict[str, FakeMachine] = {}
        self.allocations: dict[str, Allocation] = {}
        self.allocation_due: dict[str, float] = {}
        self.credentials: dict[str, StoredCredential] = {}
        self.secrets: dict[str, str] = {}
        self.access_rules: dict[str, AccessRule] = {}
        self.rules_of: dict[str, set[str]] = {}
        self.config_drives: dict[str, Mapping[str, Any]] = {}
        self.lock = threading.RLock()
        for number in range(1, machines + 1):
            self.add_machine(f"gpu-{number:02d}")

    def add_machine(self, name: str, *, owner: str = "ours") -> FakeMachine:
        """Enroll one more."""
        shown = Machine(
            id=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
            name=name,
            provision_state="available",
            power_state="power off",
            owner=owner,
            resource_class="gpu.h200.8x",
            traits=("CUSTOM_GPU_H200",),
            properties={"gpus": 8},
            extra={"address": f"10.0.0.{len(self.machines) + 1}", "image": "image-1"},
        )
        machine = FakeMachine(shown=shown)
        self.machines[shown.id] = machine
        return machine

    def client(self, *, keeper: Keeper | None = None) -> Client:
        """A client of this cloud: its own "process"."""
        return Client.with_services(self.services(keeper=keeper))

    def services(self, *, keeper: Keeper | None = None) -> Services:
        """What a run talks to."""
        broker = CredentialBroker(FakeCredentials(self), self.settings.broker_key)
        return Services(
            settings=self.settings,
            store=memory_store(self.s3),
            broker=broker,
            baremetal=FakeBaremetal(self),
            connect=lambda login: FakeBaremetal(self, login),
            clock=self.clock,
            keeper=keeper or ThreadKeeper(),
            others={STATIC: self._open_static} if self.settings.static_hosts else {},
        )

    def _open_static(self, login: KeystoneSettings | None, party: Party) -> Provider:
        del login
        return StaticHosts(memory_store(self.s3), party, self.clock.now, self.hosts)

    def reaper(self) -> Reaper:
        """A reaper of this cloud."""
        return Reaper(self.services())

    @property
    def held(self) -> dict[str, str]:
        """Machines somebody holds: name of the machine to name of the allocation."""
        self.settle()
        by_id = {allocation.id: allocation.name for allocation in self.allocations.values()}
        shown = [machine.shown for machine in self.machines.values()]
        return {m.name: by_id[m.allocation_id] for m in shown if m.allocation_id}

    def settle(self) -> None:
        """Let everything happen that is due by now."""
        with self.lock:
            for name, due in list(self.allocation_due.items()):
                if self.clock.monotonic() >= due:
                    del self.allocation_due[name]
                    self._allocate(name)
            for machine in self.machines.values():
                while machine.next is not None and self.clock.monotonic() >= machine.next.at:
                    self._arrive(machine, machine.next)

    def change(self, machine: FakeMachine, *, to: str, after_s: float, then: str) -> None:
        """Put a machine into a transient state, and say what follows."""
        machine.shown = replace(machine.shown, provision_state=to)
        machine.next = _Change(at=self.clock.monotonic() + after_s, state=then)

    def clean(self, machine: FakeMachine) -> None:
        """Start the cleaning of a machine: three seconds."""
        steps = [{"step": "erase_devices", "interface": "deploy", "priority": 10}]
        self._record(machine, "automated_cleaning_start", f"Starting automated cleaning with steps={steps}")
        self.change(machine, to="cleaning", after_s=3, then="clean failed" if "clean" in machine.fails else "clean")
        machine.shown = replace(machine.shown, power_state="power off")

    def _record(self, machine: FakeMachine, kind: str, words: str, *, error: bool = False) -> None:
        """Into the machine's history, in the real one's words."""
        machine.history.insert(0, HistoryEntry(at=self.clock.now(), kind=kind, words=words, error=error))

    def _allocate(self, name: str) -> None:
        allocation = self.allocations.get(name)
        if allocation is None:
            return
        wanted = allocation.extra.get("_wanted", ("", (), ()))
        free = [
            machine
            for machine in self.machines.values()
            if machine.shown.provision_state == "available"
            and not machine.shown.allocation_id
            and not machine.shown.maintenance
            and machine.shown.owner == "ours"
            and machine.shown.resource_class == wanted[0]
            and set(wanted[1]) <= set(machine.shown.traits)
            and (not wanted[2] or {machine.shown.id, machine.shown.name} & set(wanted[2]))
        ]
        if not free:
            words = f"Failed to process allocation: no available nodes match the resource class {wanted[0]}"
            self.allocations[name] = replace(allocation, state="error", last_error=words)
            return
        free[0].shown = replace(free[0].shown, allocation_id=allocation.id)
        self.allocations[name] = replace(allocation, state="active", node_id=free[0].shown.id)

    def _arrive(self, machine: FakeMachine, change: _Change) -> None:
        machine.next = None
        state = change.state
        if state == "deleted":
            self._drop_allocation(machine)
            if "tear_down" in machine.fails:
                machine.shown = replace(machine.shown, provision_state="error", last_error="Failed to tear down: stuck")
                return
            self.clean(machine)
        elif state == "clean":
            self._record(machine, "automated_cleaning_end", "Automated Cleaning completed successfully with steps=[]")
            machine.shown = replace(machine.shown, provision_state="available", last_error="")
        elif state == "clean failed":
            words = "Automated Cleaning aborted at step 'erase_devices' with steps=[]"
            self._record(machine, "automated_cleaning_end", words, error=True)
            machine.shown = replace(
                machine.shown,
                provision_state=state,
                maintenance=True,
                maintenance_reason=machine.shown.maintenance_reason or "disk stuck",
                fault="clean failure",
                last_error="disk stuck",
            )
        elif state == "deploy failed":
            machine.shown = replace(machine.shown, provision_state=state, last_error="machine did not boot")
        else:
            machine.shown = replace(machine.shown, provision_state=state, power_state="power on")

    def _drop_allocation(self, machine: FakeMachine) -> None:
        names = [n for n, a in self.allocations.items() if a.id == machine.shown.allocation_id]
        for name in names:
            del self.allocations[name]
        machine.shown = replace(machine.shown, allocation_id="", instance={})


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
            if machine is not None and machine.shown.provision_state in {"active", *_NOT_FREE}:
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

    def _call(self, name: str) -> _Call:
        return _Call(self._cloud, name, self._login)


class FakeCredentials(CredentialApi):
    """`CredentialApi` of a `FakeCloud`."""

    def __init__(self, cloud: FakeCloud) -> None:
        self._cloud = cloud

    def find(self, name: str) -> StoredCredential | None:
        """By name."""
        with _Call(self._cloud, "find_credential", None):
            return self._cloud.credentials.get(name)

    def list(self) -> Iterator[StoredCredential]:
        """All."""
        with _Call(self._cloud, "list_credentials", None):
            return iter(list(self._cloud.credentials.values()))

    def create(
        self,
        *,
        name: str,
        secret: str,
        description: str,
        expires_at: datetime,
        roles: Sequence[str],
        access_rules: Sequence[AccessRule],
    ) -> StoredCredential:
        """Store."""
        del expires_at, roles
        with _Call(self._cloud, "create_credential", None):
            if name in self._cloud.credentials:
                raise identity.NameTaken(name)
            rules = {f"rule {rule.method} {rule.path}": rule for rule in access_rules}
            self._cloud.access_rules.update(rules)  # equal rules of one user are one
            self._cloud.rules_of[name] = set(rules)
            stored = StoredCredential(id=f"id-{name}", name=name, description=description)
            self._cloud.credentials[name] = stored
            self._cloud.secrets[stored.id] = secret
            return stored

    def delete(self, credential_id: str) -> bool:
        """Delete."""
        with _Call(self._cloud, "delete_credential", None):
            names = [n for n, c in self._cloud.credentials.items() if c.id == credential_id]
            for name in names:
                del self._cloud.credentials[name]
            return bool(names)

    def access_rules(self) -> Iterator[StoredRule]:
        """All."""
        with _Call(self._cloud, "list_access_rules", None):
            return iter([StoredRule(id=key, path=rule.path) for key, rule in self._cloud.access_rules.items()])

    def delete_access_rule(self, rule_id: str) -> bool:
        """Delete."""
        with _Call(self._cloud, "delete_access_rule", None):
            if any(rule_id in used for name, used in self._cloud.rules_of.items() if name in self._cloud.credentials):
                return False
            return self._cloud.access_rules.pop(rule_id, None) is not None


class _Call:
    """Around each call: due changes happen, the login is checked, the script may fail it."""

    def __init__(self, cloud: FakeCloud, name: str, login: KeystoneSettings | None) -> None:
        self._cloud = cloud
        self._name = name
        self._login = login
        self._fault = cloud.faults.call(name)

    def __enter__(self) -> None:
        self._fault.__enter__()
        self._cloud.lock.acquire()
        try:
            self._check()
        except BaseException:
            self._cloud.lock.release()
            raise

    def __exit__(self, *error: object) -> None:
        self._cloud.lock.release()
        if error[0] is None:
            self._fault.__exit__(None, None, None)

    def _check(self) -> None:
        login = self._login
        if login is not None:
            secret = login.application_credential_secret.get_secret_value()
            stored = {c.id for c in self._cloud.credentials.values()}
            known = self._cloud.secrets.get(login.application_credential_id)
            if login.application_credential_id not in stored or secret != known:
                raise AccessDenied(f"{self._name} was refused", seen="401 unauthorized")
        self._cloud.settle()


def _public(allocation: Allocation) -> Allocation:
    return replace(allocation, extra={key: value for key, value in allocation.extra.items() if key != "_wanted"})
