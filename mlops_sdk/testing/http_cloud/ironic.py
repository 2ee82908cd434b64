"""Ironic in memory: nodes, allocations and provisioning over time, with the answers of the real one.

What was seen of Ironic 39 and is obeyed here: an allocation is decided a moment after it was asked for; a node that
the conductor works on is locked (409); tear-down drops the allocation, also when it fails, and cleans afterwards;
deploying asks for no allocation, but for an image, which tear-down forgets; the time is in the `Date` of each reply,
in whole seconds.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Final

from mlops_sdk.testing.http_cloud.messages import Answer, Call

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_TEARS_DOWN_FROM: Final = {"active", "deploy failed", "error", "wait call-back", "deploy hold", "rescue", "clean hold"}
_KEEPS_ALLOCATION_IN: Final = {"active", "deploying", "wait call-back", "deploy failed", "deleting", "error"}
_NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How many seconds things take."""

    allocate_s: float = 0.5
    deploy_s: float = 20.0
    tear_down_s: float = 5.0
    clean_s: float = 40.0


@dataclass(slots=True, kw_only=True)
class FakeNode:
    """A machine, and how it behaves.

    Attributes:
        fails: How many more times ``deploy``, ``tear_down`` and ``clean`` fail; ``hang``: so many never call back.
        history: What happened to it, newest first.
        user: Name of the allocation, or ``""``, under which it was deployed last; "nobody" without one.
        next: What becomes of it, and when.
    """

    id: str
    name: str
    project: str
    resource_class: str
    traits: tuple[str, ...] = ()
    provision_state: str = "available"
    power_state: str = "power off"
    maintenance: bool = False
    fault: str = ""
    last_error: str = ""
    allocation: str = ""
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    instance_info: dict[str, Any] = field(default_factory=dict[str, Any])
    maintenance_reason: str = ""
    fails: Counter[str] = field(default_factory=Counter[str])
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    locked: bool = False
    user: str = ""
    next: tuple[float, str] = (_NEVER, "")


@dataclass(slots=True, kw_only=True)
class FakeAllocation:
    """An allocation as Ironic keeps it. `wanted` is decided at `due`."""

    id: str
    name: str
    resource_class: str
    traits: tuple[str, ...]
    extra: dict[str, Any]
    created_at: str
    due: float
    state: str = "allocating"
    node: str = ""
    last_error: str = ""


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
        self._due = _NEVER
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
        self._due = min([node.next[0] for node in self.nodes.values()] + waiting, default=_NEVER)

    def _step(self, at: float) -> None:
        for found in list(self.allocations.values()):
            if found.state == "allocating" and found.due <= at:
                self._allocate(found)
        for node in self.nodes.values():
            if node.next[0] <= at:
                state, node.next = node.next[1], (_NEVER, "")
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
            if _takes(node, "tear_down"):
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
        then = "clean failed" if _takes(node, "clean") else "available"
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
            return Answer(status=200, body=_versions())
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
            shown = [_allocation(found) for found in self.allocations.values()]
            return Answer(status=200, body=_page("allocations", shown, call))
        found = self.allocations.get(ident) or next((a for a in self.allocations.values() if a.id == ident), None)
        if found is None:
            return fault(404, f"Allocation {ident} could not be found.")
        if call.method == "PATCH":
            return _patch(found, call.body)
        if call.method == "DELETE":
            return self._delete(found)
        return Answer(status=200, body=_allocation(found))

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
        return Answer(status=201, body=_allocation(made))

    def _delete(self, found: FakeAllocation) -> Answer:
        node = self.nodes.get(found.node)
        if node is not None:
            if node.locked:
                return fault(409, _locked(node))
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
            found = [_node(node) for node in mine if not (free_only and node.allocation)]
            return Answer(status=200, body=_page("nodes", found, call))
        node = self.nodes.get(ident)
        if node is None or node.project != project:
            return fault(404, f"Node {ident} could not be found.")
        if call.method == "GET":
            shown = {"history": [dict(raw) for raw in node.history]} if rest == ["history"] else _node(node)
            return Answer(status=200, body=shown)
        return fault(409, _locked(node)) if node.locked else self._change_node(node, call, rest)

    def _change_node(self, node: FakeNode, call: Call, rest: list[str]) -> Answer:
        if call.method == "PATCH":
            return _patch_node(node, call.body)
        if rest == ["maintenance"]:
            return _maintain(node, call)
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
        if _takes(node, "hang"):
            node.provision_state = "wait call-back"
            return
        then = "deploy failed" if _takes(node, "deploy") else "active"
        self._change(node, to="deploying", at=now + self.pace.deploy_s, then=then)

    def _http_date(self) -> str:
        second = int(self._monotonic() + self.offset_s)
        if self._date[0] != second:
            self._date = (second, format_datetime(START + timedelta(seconds=second), usegmt=True))
        return self._date[1]


def copied(value: Any) -> Any:
    """A copy of what JSON can say, all the way down."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def fault(status: int, words: str) -> Answer:
    """An error as Ironic says it."""
    return Answer(
        status=status, body={"error_message": {"faultcode": "Client", "faultstring": words, "debuginfo": None}}
    )


def _takes(node: FakeNode, what: str) -> bool:
    """Whether it fails this time."""
    if node.fails[what] <= 0:
        return False
    node.fails[what] -= 1
    return True


def _patch_node(node: FakeNode, patch: list[dict[str, Any]]) -> Answer:
    """Of what a machine is to be deployed with, all at once."""
    (operation,) = patch
    if operation["path"] != "/instance_info":
        return fault(400, f"Couldn't apply patch '{patch}'")
    node.instance_info = copied(operation["value"])
    return Answer(status=200, body=_node(node))


def _maintain(node: FakeNode, call: Call) -> Answer:
    node.maintenance = call.method == "PUT"
    node.maintenance_reason = str((call.body or {}).get("reason") or "")
    if not node.maintenance:
        node.fault = ""
    return Answer(status=202)


def _locked(node: FakeNode) -> str:
    return f"Node {node.id} is locked by host conductor-1, please retry after the current operation is completed."


def _patch(found: FakeAllocation, patch: list[dict[str, Any]]) -> Answer:
    """RFC 6902, "replace" below ``/extra``: all of it or nothing."""
    changed = copied(found.extra)
    for operation in patch:
        *path, last = operation["path"].removeprefix("/extra/").split("/")
        target: Any = changed
        for part in path:
            target = target.get(part) if isinstance(target, dict) else None
        if operation["op"] != "replace" or not isinstance(target, dict) or last not in target:
            return fault(400, f"Couldn't apply patch '{patch}'. Reason: can't replace a non-existent object")
        target[last] = operation["value"]
    found.extra = changed
    return Answer(status=200, body=_allocation(found))


def _page(collection: str, shown: list[dict[str, Any]], call: Call) -> dict[str, Any]:
    limit = int(call.query.get("limit", "1000"))
    marker = call.query.get("marker", "")
    start = next((i + 1 for i, raw in enumerate(shown) if raw["uuid"] == marker), 0)
    body: dict[str, Any] = {collection: shown[start : start + limit]}
    if start + limit < len(shown):
        body["next"] = f"http://ironic.invalid{call.path}?limit={limit}&marker={shown[start + limit - 1]['uuid']}"
    return body


def _allocation(found: FakeAllocation) -> dict[str, Any]:
    return {
        "uuid": found.id,
        "name": found.name,
        "state": found.state,
        "node_uuid": found.node or None,
        "last_error": found.last_error or None,
        "created_at": found.created_at,
        "resource_class": found.resource_class,
        "traits": list(found.traits),
        "extra": copied(found.extra),
    }


def _node(node: FakeNode) -> dict[str, Any]:
    return {
        "uuid": node.id,
        "name": node.name,
        "provision_state": node.provision_state,
        "power_state": node.power_state,
        "maintenance": node.maintenance,
        "maintenance_reason": node.maintenance_reason or None,
        "fault": node.fault or None,
        "last_error": node.last_error or None,
        "allocation_uuid": node.allocation or None,
        "instance_uuid": node.allocation or None,
        "owner": node.project,
        "resource_class": node.resource_class,
        "traits": list(node.traits),
        "properties": {"gpus": 8},
        "extra": copied(node.extra),
        "instance_info": copied(node.instance_info),
        "reservation": "conductor-1" if node.locked else None,
    }


def _versions() -> dict[str, Any]:
    version = {
        "id": "v1",
        "status": "CURRENT",
        "version": "1.109",
        "min_version": "1.1",
        "links": [{"rel": "self", "href": "http://ironic.invalid/v1/"}],
    }
    return {"id": "v1", "name": "OpenStack Ironic API", "default_version": version, "versions": [version]} | version
