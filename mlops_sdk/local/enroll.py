"""Enrol the inventory in Ironic and bring every node that nobody owns to `available`.

State-driven and idempotent: each round looks at all nodes once, asks `next_step` what each needs, fires these calls,
and looks again. So a first enrolment, a second one (nothing to do) and a repair after a crash are the same code.

Who owns a node: whoever has an allocation or instance on it, ours or anybody's. Such nodes are left alone, whatever
state they are in; giving them back is the business of the reaper or of their owner. What nobody owns is repaired:
failed deployments and left-over instances are torn down, failed cleanings repeated, maintenance is ended.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openstack.exceptions
from keystoneauth1.exceptions import ClientException
from openstack.connection import Connection

from mlops_sdk.errors import StackError
from mlops_sdk.local.inventory import Inventory, MachineInventory, NetworkPort

_THREADS = 4
_POLL_S = 0.4
_POWER_OFF = "power off"

_INTERFACES = {
    "bios_interface": "no-bios",
    "boot_interface": "fake",
    "firmware_interface": "fake",  # with "no-firmware" Ironic warns at each inspection and cleaning
    "inspect_interface": "redfish",
    "management_interface": "redfish",
    "network_interface": "noop",
    "power_interface": "redfish",
    "raid_interface": "no-raid",
    "rescue_interface": "no-rescue",
    "vendor_interface": "no-vendor",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BmcAccess:
    """Where the BMCs answer and how to log in."""

    url: str
    username: str
    password: str = field(repr=False)


class Step(enum.Enum):
    """What a node needs next."""

    CREATE = "create"
    UPDATE = "update"
    MANAGE = "manage"
    INSPECT = "inspect"
    POWER_OFF = "power off"
    PROVIDE = "provide"
    ABORT = "abort"
    TEAR_DOWN = "deleted"
    END_MAINTENANCE = "end maintenance"
    WAIT = "wait"
    LEAVE = "leave"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """What `next_step` looks at. `matches`: node, traits and ports are as the inventory wants them."""

    provision_state: str
    maintenance: bool
    owned: bool
    power_state: str
    inspected: bool
    matches: bool


_BY_STATE = {
    "enroll": Step.MANAGE,
    "inspect failed": Step.MANAGE,
    "clean failed": Step.MANAGE,
    "adopt failed": Step.MANAGE,
    "inspect wait": Step.ABORT,
    "clean wait": Step.ABORT,
    "wait call-back": Step.TEAR_DOWN,
    "active": Step.TEAR_DOWN,
    "deploy failed": Step.TEAR_DOWN,
    "error": Step.TEAR_DOWN,
    "available": Step.DONE,
    **dict.fromkeys(("verifying", "inspecting", "cleaning", "deploying", "deleting"), Step.WAIT),
}


def next_step(node: NodeView | None) -> Step:
    """What brings a node nearer to `available`. Pure.

    Raises:
        StackError: for a provision state that this stack never makes.
    """
    if node is None:
        return Step.CREATE
    if node.owned:
        return Step.LEAVE
    if node.maintenance:
        return Step.END_MAINTENANCE
    if node.provision_state in {"manageable", "available"} and not node.matches:
        return Step.UPDATE
    if node.provision_state == "manageable":
        return _from_manageable(node)
    if node.provision_state not in _BY_STATE:
        raise StackError(
            "a node is in a state that the embedded stack does not use",
            seen=f"provision state {node.provision_state!r}",
            next_step="bring it to `available` by hand, or remove the state directory",
        )
    return _BY_STATE[node.provision_state]


def enroll(
    admin: Connection,
    inventory: Inventory,
    *,
    bmc: BmcAccess,
    owner_project_id: str,
    machine_root: Path,
    deploy_interface: str = "machine",
    timeout_s: float = 180.0,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, str]:
    """Enrol all machines; returns when each is `available` or owned by somebody.

    Args:
        admin: A system-scoped connection of an administrator.
        inventory: The machines.
        bmc: Their BMCs.
        owner_project_id: The project that the nodes belong to.
        machine_root: Directory of the machines' slots (the farm's `state_dir`), absolute.
        deploy_interface: `machine`, or `machine-faults` for tests.
        timeout_s: For all of it.
        say: Gets a line for each step taken.

    Returns:
        Node ids by name.

    Raises:
        StackError: when a node does not get there in time (names it and quotes Ironic), or Ironic fails.
    """
    wanted = {
        machine.name: _Wanted(
            machine=machine,
            fields={
                **_node_fields(machine, bmc, str(machine_root / machine.name)),
                "deploy_interface": deploy_interface,
                "resource_class": inventory.resource_class,
                "owner": None if machine.name in inventory.unowned else owner_project_id,
                "shard": inventory.shard or None,
                "extra": _extra(machine, inventory.image),
            },
            traits=sorted(inventory.traits),
            ports=[_port_fields(port) for port in (*machine.infiniband, *machine.ethernet)],
        )
        for machine in inventory.machines
    }
    try:
        return _Enrollment(admin, wanted, say).run(timeout_s)
    except (openstack.exceptions.SDKException, ClientException) as error:
        raise StackError(
            "the machines could not be enrolled in Ironic",
            seen=str(error),
            next_step="see the logs of ironic and keystone in the stack's logs directory",
        ) from error


def _from_manageable(node: NodeView) -> Step:
    if not node.inspected:
        return Step.INSPECT
    if node.power_state != _POWER_OFF:  # an allocation passes over nodes whose power state is not known
        return Step.POWER_OFF
    return Step.PROVIDE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    machine: MachineInventory
    fields: dict[str, Any]
    traits: list[str]
    ports: list[dict[str, Any]]


class _Enrollment:
    def __init__(self, admin: Connection, wanted: Mapping[str, _Wanted], say: Callable[[str], None]) -> None:
        self._api = admin.baremetal
        self._wanted = wanted
        self._say = say

    def run(self, timeout_s: float) -> dict[str, str]:
        deadline = time.monotonic() + timeout_s
        ports: dict[str, set[str]] | None = None
        with ThreadPoolExecutor(_THREADS) as pool:
            while True:
                nodes = {str(node.name): node for node in self._api.nodes(details=True)}
                ports = self._ports_by_node() if ports is None else ports
                steps = {name: next_step(self._view(nodes.get(name), ports, name)) for name in self._wanted}
                if all(step in {Step.DONE, Step.LEAVE} for step in steps.values()):
                    return {name: str(nodes[name].id) for name in self._wanted}
                if time.monotonic() > deadline:
                    raise _late(nodes, steps, timeout_s)
                taken = [pool.submit(self._take, step, name, nodes.get(name), ports) for name, step in steps.items()]
                for one in taken:
                    one.result()
                if {Step.CREATE, Step.UPDATE} & set(steps.values()):
                    ports = None
                time.sleep(_POLL_S)

    def _ports_by_node(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for port in self._api.ports(details=True):
            found.setdefault(str(port.node_id), set()).add(str(port.address))
        return found

    def _view(self, node: Any, ports: Mapping[str, set[str]], name: str) -> NodeView | None:
        if node is None:
            return None
        return NodeView(
            provision_state=str(node.provision_state),
            maintenance=bool(node.is_maintenance),
            owned=bool(node.allocation_id or node.instance_id),
            power_state=str(node.power_state),
            inspected="memory_mb" in (node.properties or {}),
            matches=self._matches(node, ports.get(str(node.id), set()), self._wanted[name]),
        )

    def _matches(self, node: Any, ports: set[str], wanted: _Wanted) -> bool:
        return (
            not _differences(node, wanted.fields)
            and sorted(node.traits or []) == wanted.traits
            and {port["address"] for port in wanted.ports} <= ports
        )

    def _take(self, step: Step, name: str, node: Any, ports: Mapping[str, set[str]]) -> None:
        """Fire one step. A node that is locked, or went on by itself, is looked at again in the next round."""
        if step in {Step.WAIT, Step.LEAVE, Step.DONE}:
            return
        try:
            self._fire(step, name, node, ports)
        except openstack.exceptions.ConflictException:
            return
        except openstack.exceptions.BadRequestException as error:
            if step in {Step.CREATE, Step.UPDATE}:
                raise StackError(
                    f"Ironic refuses to {step.value} node {name!r}",
                    seen=str(error.details or error),
                    next_step="check that the caller is a system-scoped administrator, and the enabled interfaces in "
                    "ironic.conf",
                ) from error
            return  # the node left the state in which this step is allowed
        self._say(f"{name}: {step.value}")

    def _fire(self, step: Step, name: str, node: Any, ports: Mapping[str, set[str]]) -> None:
        if step is Step.CREATE:
            created = self._api.create_node(name=name, **self._wanted[name].fields)
            self._complete(str(created.id), set(), self._wanted[name])
            self._api.set_node_provision_state(created, Step.MANAGE.value)
        elif step is Step.UPDATE:
            self._update(node, self._wanted[name])
            self._complete(str(node.id), ports.get(str(node.id), set()), self._wanted[name])
        elif step is Step.END_MAINTENANCE:
            self._api.unset_node_maintenance(node)
        elif step is Step.POWER_OFF:
            if not node.target_power_state:
                self._api.set_node_power_state(node, _POWER_OFF)
        else:
            self._api.set_node_provision_state(node, step.value)

    def _update(self, node: Any, wanted: _Wanted) -> None:
        changes = {key: wanted.fields[key] for key in _differences(node, wanted.fields)}
        if "extra" in changes and "cleaned" in node.extra:
            changes["extra"] = {**changes["extra"], "cleaned": node.extra["cleaned"]}
        if changes:
            self._api.update_node(node, **changes)

    def _complete(self, node_id: str, present: Iterable[str], wanted: _Wanted) -> None:
        """Traits and ports, of which an interrupted enrolment may have left some out."""
        self._api.set_node_traits(node_id, wanted.traits)
        for port in wanted.ports:
            if port["address"] not in present:
                self._api.create_port(node_id=node_id, **port)


def _differences(node: Any, fields: Mapping[str, Any]) -> list[str]:
    """The wanted fields that the node does not have. Secrets cannot be compared: Ironic shows asterisks."""
    found: list[str] = []
    for key, wanted in fields.items():
        seen = getattr(node, key)
        if key == "driver_info":
            wanted = {k: v for k, v in wanted.items() if k != "redfish_password"}  # noqa: PLW2901 - compared without it
            seen = {k: (seen or {}).get(k) for k in wanted}
        elif key == "extra":
            seen = {k: v for k, v in (seen or {}).items() if k != "cleaned"}
        if seen != wanted:
            found.append(key)
    return found


def _node_fields(machine: MachineInventory, bmc: BmcAccess, machine_dir: str) -> dict[str, Any]:
    return {
        "driver": "fake-hardware",
        **_INTERFACES,
        "driver_info": {
            "redfish_address": bmc.url,
            "redfish_system_id": f"/redfish/v1/Systems/{machine.system_uuid}",
            "redfish_username": bmc.username,
            "redfish_password": bmc.password,
            "redfish_auth_type": "basic",
            "redfish_verify_ca": False,  # the BMCs of the embedded stack speak plain HTTP on loopback
            "machine_dir": machine_dir,
        },
    }


def _extra(machine: MachineInventory, image: str) -> dict[str, Any]:
    return {
        "address": machine.address,
        "image": image,
        "gpus": len(machine.gpus),
        "driver": machine.driver,
        "bmc_firmware": machine.bmc_firmware,
        "topology": machine.topology,
    }


def _port_fields(port: NetworkPort) -> dict[str, Any]:
    return {
        "address": port.mac,
        "physical_network": port.name,
        "is_pxe_enabled": port.name == "eth0",
        "local_link_connection": {
            "switch_id": port.switch_id,
            "port_id": str(port.switch_port),
            "switch_info": port.switch,
        },
        "extra": {"client-id": port.client_id, "rail": port.name} if port.client_id else {},
    }


def _late(nodes: Mapping[str, Any], steps: Mapping[str, Step], timeout_s: float) -> StackError:
    late = [name for name, step in steps.items() if step not in {Step.DONE, Step.LEAVE}]
    seen = [
        f"{name} is {nodes[name].provision_state!r}, {nodes[name].last_error or 'no error reported'}"
        if name in nodes
        else f"{name} is not enrolled"
        for name in late
    ]
    return StackError(
        f"nodes {', '.join(late)} did not become available within {timeout_s:.0f} s",
        seen="; ".join(seen),
        next_step="see the logs of ironic and farm in the stack's logs directory",
    )
