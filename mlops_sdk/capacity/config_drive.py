"""What a leased machine is told at its first boot: its name, its run, its SSH host key, who may log in. Pure."""

from __future__ import annotations

import json
from typing import Any

from mlops_sdk.capacity.lease import Marker
from mlops_sdk.capacity.providers.ironic_view import Machine
from mlops_sdk.identity.ssh_keys import SshKey


def user_data(hostname: str, *, host: SshKey, authorized: tuple[str, ...], root: bool = False) -> str:
    """Cloud-config written as JSON, which is YAML. It holds the private host key of this lease.

    Args:
        hostname: Of the machine.
        host: Its SSH host key.
        authorized: Public keys that may log in: as the image's own user, and as root if `root`.
        root: Whether root may log in where the image forbids it; a leased machine's image does not.
    """
    told: dict[str, Any] = {
        "hostname": hostname,
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host.private, "ed25519_public": host.public},
        "ssh_authorized_keys": list(authorized),
    }
    if root:
        told["disable_root"] = False
    return "#cloud-config\n" + json.dumps(told)


def config_drive(
    machine: Machine, *, allocation: str, run_key: str, marker: Marker, host: SshKey, authorized: tuple[str, ...]
) -> dict[str, Any]:
    """A config drive as Ironic's provision call takes it.

    Ironic stores it with the machine's instance information and drops it at tear-down.
    """
    meta_data = {
        "uuid": machine.id,
        "name": allocation,
        "hostname": machine.name,
        "mlops": {"run_key": run_key, "generation": marker.generation, "owner": marker.owner},
    }
    told = user_data(machine.name, host=host, authorized=authorized)
    return {"meta_data": meta_data, "user_data": told, "network_data": {}}
