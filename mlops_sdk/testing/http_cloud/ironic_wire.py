"""What Ironic keeps of machines and allocations, and how it shows them and refuses: the shapes of its JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from mlops_sdk.testing.http_cloud.messages import Answer, Call

NEVER: Final = float("inf")


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
    next: tuple[float, str] = (NEVER, "")


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


def takes(node: FakeNode, what: str) -> bool:
    """Whether it fails this time."""
    if node.fails[what] <= 0:
        return False
    node.fails[what] -= 1
    return True


def patch_node(node: FakeNode, patch: list[dict[str, Any]]) -> Answer:
    """Of what a machine is to be deployed with, all at once."""
    (operation,) = patch
    if operation["path"] != "/instance_info":
        return fault(400, f"Couldn't apply patch '{patch}'")
    node.instance_info = copied(operation["value"])
    return Answer(status=200, body=node_shown(node))


def maintain(node: FakeNode, call: Call) -> Answer:
    """Into maintenance and out of it, as a person does it."""
    node.maintenance = call.method == "PUT"
    node.maintenance_reason = str((call.body or {}).get("reason") or "")
    if not node.maintenance:
        node.fault = ""
    return Answer(status=202)


def locked(node: FakeNode) -> str:
    """The words of the 409 while a conductor works on it."""
    return f"Node {node.id} is locked by host conductor-1, please retry after the current operation is completed."


def patch_allocation(found: FakeAllocation, patch: list[dict[str, Any]]) -> Answer:
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
    return Answer(status=200, body=allocation_shown(found))


def page(collection: str, shown: list[dict[str, Any]], call: Call) -> dict[str, Any]:
    """One page of a list, and where the next one is."""
    limit = int(call.query.get("limit", "1000"))
    marker = call.query.get("marker", "")
    start = next((i + 1 for i, raw in enumerate(shown) if raw["uuid"] == marker), 0)
    body: dict[str, Any] = {collection: shown[start : start + limit]}
    if start + limit < len(shown):
        body["next"] = f"http://ironic.invalid{call.path}?limit={limit}&marker={shown[start + limit - 1]['uuid']}"
    return body


def allocation_shown(found: FakeAllocation) -> dict[str, Any]:
    """An allocation, as the API shows it."""
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


def node_shown(node: FakeNode) -> dict[str, Any]:
    """A node, as the API shows it to who may see all of it."""
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


def versions() -> dict[str, Any]:
    """What the root of the API says."""
    version = {
        "id": "v1",
        "status": "CURRENT",
        "version": "1.109",
        "min_version": "1.1",
        "links": [{"rel": "self", "href": "http://ironic.invalid/v1/"}],
    }
    return {"id": "v1", "name": "OpenStack Ironic API", "default_version": version, "versions": [version]} | version
