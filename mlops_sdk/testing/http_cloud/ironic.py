"""Ironic in memory: nodes, allocations and provisioning over time, with the answers of the real one.

What was seen of Ironic 39 and is obeyed here: an allocation is decided a moment after it was asked for; a node that
the conductor works on is locked (409); tear-down drops the allocation, also when it fails, and cleans afterwards;
deploying asks for no allocation, but for an image, which tear-down forgets; the time is in the `Date` of each reply,
in whole seconds.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Final

from mlops_sdk.testing.http_cloud.ironic_wire import (
    NEVER,
    FakeAllocation,
    FakeNode,
    allocation_shown,
    copied,
    fault,
    locked,
    maintain,
    node_shown,
    page,
    patch_allocation,
    patch_node,
    takes,
    versions,
)
from mlops_sdk.testing.http_cloud.messages import Answer, Call

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_TEARS_DOWN_FROM: Final = {"active", "deploy failed", "error", "wait call-back", "deploy hold", "rescue", "clean hold"}
_KEEPS_ALLOCATION_IN: Final = {"active", "deploying", "wait call-back", "deploy failed", "deleting", "error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How many seconds things take."""

    allocate_s: float = 0.5
    deploy_s: float = 20.0
    tear_down_s: float = 5.0
    clean_s: float = 40.0


class FakeIronic:
    """One Ironic.

    Args:
        monotonic: The world's clock, in seconds.
        pace: How long things take.

    Attributes:
        offset_s: How far Ironic's own clock is from the world's.
        on_free: Told when a machine becomes available.
    """

    def __init__(self, monotonic: Callable[[], float], pace: Pace | None = None) -> None:
        self.nodes: dict[str, FakeNode] = {}
        self.allocations: dict[str, FakeAllocation] = {}
        self.offset_s = 0.0
        self.on_free: Callable[[FakeNode], None] | None = None
        self.pace = pace or Pace()
        self._monotonic = monotonic
        self._due = NEVER
        self._numbers = 0
        self._date = (-1, "")

    def add_node(self, name: str, *, resource_class: str, project: str, traits: tuple[str, ...] = ()) -> FakeNode:
        """Enroll a machine."""
        node = FakeNode(
            id=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
            name=name,
            project=project,
            resource_class=resource_class,
            traits=traits,
            extra={"address": f"10.0.0.{len(self.nodes) + 1}", "image": "image-1"},
        )
        self.nodes[node.id] = node
        return node

    def now(self) -> datetime:
        """Ironic's own clock."""
        return START + timedelta(seconds=self._monotonic() + self.offset_s)

    def node_of(self, allocation: str) -> FakeNode | None:
        """The machine of an allocation, by the allocation's name."""
        found = self.allocations.get(allocation)
        return self.nodes.get(found.node) if found else None

    def handle(self, call: Call, project: str) -> Answer:
        """Carry out one request of somebody who is logged in to a project."""
        self.settle()
        return self.answer(call, project)

    def answer(self, call: Call, project: str) -> Answer:
        """The same, in the state that it is in: nothing else happens first."""
        answer = self._handle(call, project)
        return Answer(status=answer.status, body=answer.body, headers=self.date)

    @property
    def date(self) -> dict[str, str]:
        """The header by which it tells the time."""
        return {"Date": self._http_date()}

    def settle(self) -> None:
        """Let everything happen that is due by now, in its order."""
        now = self._monotonic()
        while self._due <= now:
            self._step(self._due)
            self._plan()

    # What happens by itself

    def _plan(self) -> None:
        waiting = [found.due for found in self.allocations.values() if found.state == "allocating"]
        self._due = min([node.next[0] for node in self.nodes.values()] + waiting, default=NEVER)

    def _step(self, at: float) -> None:
        for found in list(self.allocations.values()):
            if found.state == "allocating" and found.due <= at:
                self._allocate(found)
        for node in self.nodes.values():
            if node.next[0] <= at:
                state, node.next = node.next[1], (NEVER, "")
                self._arrive(node, state, at)

    def _change(self, node: FakeNode, *, to: str, at: float, then: str) -> None:
        node.provision_state, node.next, node.locked = to, (at, then), True
        self._due = min(self._due, at)

    def _allocate(self, wanted: FakeAllocation) -> None:
        for node in self.nodes.values():
            suits = node.resource_class == wanted.resource_class and set(wanted.traits) <= set(node.traits)
            if suits and node.provision_state == "available" and not node.allocation and not node.maintenance:
                node.allocation, wanted.node, wanted.state = wanted.id, node.id, "active"
                return
        wanted.state = "error"
        wanted.last_error = (
            f"Failed to process allocation {wanted.id}: no available nodes match the resource class "
            f"{wanted.resource_class}"
        )

    def _arrive(self, node: FakeNode, state: str, at: float) -> None:
        node.locked = False
        if state == "torn down":
            self._drop_allocation_of(node)
            node.power_state, node.instance_info = "power off", {}
            if takes(node, "tear_down"):
                node.provision_state, node.last_error = "error", "Failed to tear down: the BMC does not answer"
                return
            self._clean(node, at)
        elif state == "available":
            self._record(node, at, "automated_cleaning_end", "Automated Cleaning completed successfully with steps=[]")
            node.provision_state, node.last_error, node.user = state, "", ""
            if self.on_free is not None:
                self.on_free(node)
        elif state == "clean failed":
            words = "Automated Cleaning aborted at step 'erase_devices' with steps=[]"
            self._record(node, at, "automated_cleaning_end", words, severity="ERROR")
            node.provision_state, node.maintenance, node.fault = state, True, "clean failure"
            node.last_error = node.maintenance_reason = "Failed to clean: a disk is stuck"
        elif state == "deploy failed":
            node.provision_state, node.last_error = state, "the machine did not boot"
        else:
            node.provision_state, node.power_state = state, "power on"

    def _clean(self, node: FakeNode, at: float) -> None:
        steps = [{"step": "erase_devices", "interface": "deploy", "priority": 10}]
        self._record(node, at, "automated_cleaning_start", f"Starting automated cleaning with steps={steps}")
        then = "clean failed" if takes(node, "clean") else "available"
        self._change(node, to="cleaning", at=at + self.pace.clean_s, then=then)

    def _record(self, node: FakeNode, at: float, kind: str, words: str, *, severity: str = "INFO") -> None:
        moment = START + timedelta(seconds=at + self.offset_s)
        raw = {"created_at": moment.isoformat(), "event_type": kind, "event": words, "severity": severity}
        node.history.insert(0, raw)

    def _drop_allocation_of(self, node: FakeNode) -> None:
        for name in [name for name, found in self.allocations.items() if found.id == node.allocation]:
            del self.allocations[name]
        node.allocation = ""

    # Requests

    def _handle(self, call: Call, project: str) -> Answer:
        if call.path in {"/", "/v1", "/v1/"}:
            return Answer(status=200, body=versions())
        parts = call.path.removeprefix("/v1/").split("/")
        collection, ident = parts[0], parts[1] if len(parts) > 1 else ""
        if collection == "allocations":
            return self._on_allocations(call, ident)
        if collection == "nodes":
            return self._on_nodes(call, ident, project, parts[2:])
        return fault(404, f"The resource could not be found: {call.path}")

    def _on_allocations(self, call: Call, ident: str) -> Answer:
        if call.method == "POST":
            return self._create(call.body)
        if not ident:
            shown = [allocation_shown(found) for found in self.allocations.values()]
            return Answer(status=200, body=page("allocations", shown, call))
        found = self.allocations.get(ident) or next((a for a in self.allocations.values() if a.id == ident), None)
        if found is None:
            return fault(404, f"Allocation {ident} could not be found.")
        if call.method == "PATCH":
            return patch_allocation(found, call.body)
        if call.method == "DELETE":
            return self._delete(found)
        return Answer(status=200, body=allocation_shown(found))

    def _create(self, body: Mapping[str, Any]) -> Answer:
        name = str(body["name"])
        if name in self.allocations:
            return fault(409, f"An allocation with name {name} already exists.")
        self._numbers += 1
        made = FakeAllocation(
            id=str(uuid.UUID(int=self._numbers)),
            name=name,
            resource_class=str(body["resource_class"]),
            traits=tuple(body.get("traits") or ()),
            extra=copied(body.get("extra") or {}),
            created_at=self.now().isoformat(),
            due=self._monotonic() + self.pace.allocate_s,
        )
        self.allocations[name] = made
        self._due = min(self._due, made.due)
        return Answer(status=201, body=allocation_shown(made))

    def _delete(self, found: FakeAllocation) -> Answer:
        node = self.nodes.get(found.node)
        if node is not None:
            if node.locked:
                return fault(409, locked(node))
            if node.provision_state in _KEEPS_ALLOCATION_IN and not node.maintenance:
                return fault(
                    409, f"Cannot remove instance UUID {found.id} from node {node.id}: it is {node.provision_state}"
                )
            node.allocation = ""
        del self.allocations[found.name]
        return Answer(status=204)

    def _on_nodes(self, call: Call, ident: str, project: str, rest: list[str]) -> Answer:
        if ident in {"", "detail"}:
            free_only = call.query.get("associated") == "False"
            mine = [node for node in self.nodes.values() if node.project == project]
            found = [node_shown(node) for node in mine if not (free_only and node.allocation)]
            return Answer(status=200, body=page("nodes", found, call))
        node = self.nodes.get(ident)
        if node is None or node.project != project:
            return fault(404, f"Node {ident} could not be found.")
        if call.method == "GET":
            shown = {"history": [dict(raw) for raw in node.history]} if rest == ["history"] else node_shown(node)
            return Answer(status=200, body=shown)
        return fault(409, locked(node)) if node.locked else self._change_node(node, call, rest)

    def _change_node(self, node: FakeNode, call: Call, rest: list[str]) -> Answer:
        if call.method == "PATCH":
            return patch_node(node, call.body)
        if rest == ["maintenance"]:
            return maintain(node, call)
        if rest == ["states", "power"]:
            node.power_state = str(call.body["target"])
            return Answer(status=202)
        return self._provision(node, str(call.body["target"]))

    def _provision(self, node: FakeNode, target: str) -> Answer:
        now = self._monotonic()
        if target == "active" and node.maintenance:
            return fault(400, f"The deploy operation can't be performed on node {node.id}: it is in maintenance.")
        match (target, node.provision_state):
            case ("active", "available") if not node.instance_info.get("image_source"):
                return fault(400, f"Failed to validate deploy or power info for node {node.id}: no image_source")
            case ("active", "available"):
                self._deploy(node, now)
            case ("deleted", state) if state in _TEARS_DOWN_FROM:
                self._change(node, to="deleting", at=now + self.pace.tear_down_s, then="torn down")
            case ("manage", "clean failed" | "available"):
                node.provision_state = "manageable"
            case ("provide", "manageable"):
                self._clean(node, now)
            case ("abort", "wait call-back"):
                node.provision_state, node.last_error = "deploy failed", "Deployment was aborted by request"
            case (_, state):
                words = f'The requested action "{target}" can not be performed on node "{node.id}" while it is in state'
                return fault(400, f'{words} "{state}".')
        return Answer(status=202)

    def _deploy(self, node: FakeNode, now: float) -> None:
        """Asks for no allocation, as the real one does not."""
        node.user = next((found.name for found in self.allocations.values() if found.id == node.allocation), "nobody")
        if takes(node, "hang"):
            node.provision_state = "wait call-back"
            return
        then = "deploy failed" if takes(node, "deploy") else "active"
        self._change(node, to="deploying", at=now + self.pace.deploy_s, then=then)

    def _http_date(self) -> str:
        second = int(self._monotonic() + self.offset_s)
        if self._date[0] != second:
            self._date = (second, format_datetime(START + timedelta(seconds=second), usegmt=True))
        return self._date[1]
