"""What Nova's requests must look like, and what its replies do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mlops_sdk.testing.http_cloud.messages import Answer

if TYPE_CHECKING:
    from mlops_sdk.testing.http_cloud.nova import FakeServer

_KEYS: Final = 128
_LONGEST: Final = 255
_USER_DATA: Final = 65535
_KEY: Final = re.compile(r"^[a-zA-Z0-9\-_:. ]{1,255}$")
ZONE: Final = "nova"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeFlavor:
    """A flavor."""

    id: str
    name: str
    vcpus: int = 8
    ram_mb: int = 65536
    disk_gb: int = 40
    specs: Mapping[str, str] = field(default_factory=dict[str, str])


def fault(status: int, kind: str, words: str) -> Answer:
    """An error as Nova says it."""
    return Answer(status=status, body={kind: {"code": status, "message": words}})


def cannot(server: FakeServer, what: str) -> str:
    """Why an action does not fit the state that a server is in."""
    state = {"BUILD": "building", "SHUTOFF": "stopped"}.get(server.status, server.status.lower())
    return f"Cannot '{what}' instance {server.id} while it is in vm_state {state}"


def refused_form(wanted: Mapping[str, Any], flavor: FakeFlavor | None, images: Mapping[str, str]) -> Answer | None:
    """The refusal of a server that is wrong as it is asked for; None when it is not."""
    metadata: Mapping[str, str] = wanted.get("metadata") or {}
    words = _wrong_text(metadata, str(wanted.get("user_data") or ""))
    if not words and flavor is None:
        words = f"Flavor {wanted.get('flavorRef')} could not be found."
    if not words and "imageRef" in wanted and wanted["imageRef"] not in images:
        words = "Can not find requested image"
    if not words and wanted.get("availability_zone", ZONE) != ZONE:
        words = "The requested availability zone is not available"
    if words:
        return fault(400, "badRequest", words)
    if len(metadata) > _KEYS:
        return fault(403, "forbidden", f"Maximum number of metadata items exceeds {_KEYS}")
    return None


def _wrong_text(metadata: Mapping[str, str], user_data: str) -> str:
    for key, value in metadata.items():
        if not _KEY.match(key):
            return f"'{key}' does not match any of the regexes: '^[a-zA-Z0-9-_:. ]{{1,255}}$'"
        if len(value) > _LONGEST:
            return f"Invalid input for field/attribute {key}. Value: {value}. is too long"
    return "Invalid input for field/attribute user_data. Value is too long" if len(user_data) >= _USER_DATA else ""


def flavor_shown(flavor: FakeFlavor) -> dict[str, Any]:
    """A flavor in a list."""
    return {
        "id": flavor.id,
        "name": flavor.name,
        "vcpus": flavor.vcpus,
        "ram": flavor.ram_mb,
        "disk": flavor.disk_gb,
        "OS-FLV-EXT-DATA:ephemeral": 0,
        "extra_specs": dict(flavor.specs),
    }


def server_shown(server: FakeServer) -> dict[str, Any]:
    """A server, as its project sees it."""
    shown: dict[str, Any] = {
        "id": server.id,
        "name": server.name,
        "tenant_id": server.project,
        "status": server.status,
        "OS-EXT-STS:task_state": server.task or None,
        "OS-SRV-USG:launched_at": server.launched or None,
        "created": f"{server.created:%Y-%m-%dT%H:%M:%SZ}",
        "metadata": dict(server.metadata),
        "hostId": hashlib.sha224(f"{server.project}{server.host}".encode()).hexdigest() if server.host else "",
        "flavor": {"original_name": server.flavor.name, "extra_specs": dict(server.flavor.specs)},
        "addresses": {},
        "locked": server.locked,
    }
    if server.fault:
        shown["fault"] = {"code": 500, "message": server.fault}
    return shown


def unknown_shown(server: FakeServer) -> dict[str, Any]:
    """What is told of a server whose cell does not answer: nothing that says whose it is."""
    return {
        "id": server.id,
        "tenant_id": server.project,
        "status": "UNKNOWN",
        "created": f"{server.created:%Y-%m-%dT%H:%M:%SZ}",
    }


def limits_shown(flavors: Iterable[FakeFlavor], most: int) -> dict[str, Any]:
    """Quota, and what is used of it."""
    used = list(flavors)
    absolute = {
        "maxTotalInstances": most,
        "totalInstancesUsed": len(used),
        "maxTotalCores": -1,
        "totalCoresUsed": sum(flavor.vcpus for flavor in used),
        "maxTotalRAMSize": -1,
        "totalRAMUsed": sum(flavor.ram_mb for flavor in used),
    }
    return {"limits": {"rate": [], "absolute": absolute}}
