"""Ironic and Keystone in memory, as far as leases use them, with scripted failures; passes the real ones' contract.

cloud = FakeCloud()
client = cloud.client()
with client.start_run() as run: ...
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlops_sdk.capacity.provider import Party, Provider
from mlops_sdk.capacity.providers.ironic_history import HistoryEntry
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine
from mlops_sdk.capacity.providers.static import NAME as STATIC
from mlops_sdk.capacity.providers.static import StaticHosts
from mlops_sdk.capacity.reaper import Reaper
from mlops_sdk.client import Client
from mlops_sdk.config import KeystoneSettings, Settings
from mlops_sdk.identity.credential import AccessRule, CredentialBroker, StoredCredential
from mlops_sdk.keeper import Keeper, ThreadKeeper
from mlops_sdk.services import Services
from mlops_sdk.testing.baremetal import FakeBaremetal
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.credentials import FakeCredentials
from mlops_sdk.testing.faults import FaultScript
from mlops_sdk.testing.hosts import FakeHosts
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.testing.settings import fake_settings, with_hosts


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
