"""The replies of Nova, Neutron, Cinder and Placement as our data. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mlops_sdk.capacity.device_profiles import SPEC as PROFILE_SPEC
from mlops_sdk.capacity.flavors import Flavor
from mlops_sdk.capacity.providers.nova_api import Stock
from mlops_sdk.capacity.providers.nova_view import ROLE, Port, Server, Volume


def server_of(raw: Mapping[str, Any]) -> Server:
    """A server; of a cell that does not answer there is little more than its id."""
    addresses = raw.get("addresses") or {}
    specs: Mapping[str, str] = (raw.get("flavor") or {}).get("extra_specs") or {}
    return Server(
        id=str(raw["id"]),
        name=str(raw.get("name") or ""),
        status=str(raw.get("status") or ""),
        task=str(raw.get("OS-EXT-STS:task_state") or ""),
        created_at=str(raw.get("created") or ""),
        metadata={str(key): str(value) for key, value in (raw.get("metadata") or {}).items()},
        flavor=str((raw.get("flavor") or {}).get("original_name") or ""),
        placed=bool(raw.get("hostId")),
        launched=bool(raw.get("OS-SRV-USG:launched_at")),
        fault=str((raw.get("fault") or {}).get("message") or ""),
        addresses=tuple(str(each["addr"]) for network in addresses.values() for each in network),
        bare_metal=specs.get("resources:VCPU") == "0",
        device_profile=str(specs.get(PROFILE_SPEC) or ""),
    )


def port_of(raw: Mapping[str, Any]) -> Port:
    """A port."""
    return Port(
        id=str(raw["id"]),
        name=str(raw.get("name") or ""),
        line=str(raw.get("description") or ""),
        server=str(raw.get("device_id") or ""),
        network=str(raw.get("network_id") or ""),
        addresses=tuple(str(each["ip_address"]) for each in raw.get("fixed_ips") or ()),
        created_at=str(raw.get("created_at") or ""),
    )


def volume_of(raw: Mapping[str, Any]) -> Volume:
    """A volume."""
    attached = raw.get("attachments") or ()
    return Volume(
        id=str(raw["id"]),
        name=str(raw.get("name") or ""),
        status=str(raw.get("status") or ""),
        role=str((raw.get("metadata") or {}).get(ROLE) or ""),
        line=str(raw.get("description") or ""),
        server=next((str(each.get("server_id") or "") for each in attached), ""),
        created_at=str(raw.get("created_at") or ""),
    )


def flavor_of(raw: Mapping[str, Any]) -> Flavor:
    """A flavor, with what this login may see of it."""
    specs = raw.get("extra_specs")
    return Flavor(
        id=str(raw["id"]),
        name=str(raw["name"]),
        vcpus=int(raw.get("vcpus") or 0),
        ram_mb=int(raw.get("ram") or 0),
        disk_gb=int(raw.get("disk") or 0),
        ephemeral_gb=int(raw.get("OS-FLV-EXT-DATA:ephemeral") or 0),
        specs=None if specs is None else {str(key): str(value) for key, value in specs.items()},
    )


def left_of(absolute: Mapping[str, int], most: str, used: str) -> int | None:
    """What is left of a quota; None for one without a limit, or that Nova does not show."""
    limit = int(absolute.get(most, -1))
    return None if limit < 0 else max(0, limit - int(absolute.get(used, 0)))


def stock_of(body: Mapping[str, Any], traits: Iterable[str]) -> list[Stock]:
    """What the providers of Placement's candidates have, of hosts that have these traits somewhere."""
    summaries: Mapping[str, Any] = body.get("provider_summaries", {})
    by_root: dict[str, set[str]] = {}
    for provider_id, summary in summaries.items():
        root = str(summary.get("root_provider_uuid") or provider_id)
        by_root.setdefault(root, set()).update(summary.get("traits", ()))
    wanted = set(traits)
    return [
        Stock(
            root=str(summary.get("root_provider_uuid") or provider_id),
            capacity={name: int(each["capacity"]) for name, each in summary["resources"].items()},
            used={name: int(each["used"]) for name, each in summary["resources"].items()},
        )
        for provider_id, summary in summaries.items()
        if wanted <= by_root[str(summary.get("root_provider_uuid") or provider_id)]
    ]
