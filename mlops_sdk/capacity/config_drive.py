"""What a leased machine is told at its first boot: its name, its run, its SSH host key, who may log in. Pure."""

from __future__ import annotations

import json
from typing import Any

from mlops_sdk.capacity.lease import Machine, Marker
from mlops_sdk.identity.ssh_keys import SshKey


def config_drive(
    machine: Machine, *, allocation: str, run_key: str, marker: Marker, host: SshKey, authorized: tuple[str, ...]
) -> dict[str, Any]:
    """A config drive as Ironic's provision call takes it.

    `user_data` is cloud-config written as JSON, which is YAML. It holds the private host key of this lease: Ironic
    stores it with the machine's instance information and drops it at tear-down.
    """
    user_data = {
        "hostname": machine.name,
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host.private, "ed25519_public": host.public},
        "ssh_authorized_keys": list(authorized),
    }
    meta_data = {
        "uuid": machine.id,
        "name": allocation,
        "hostname": machine.name,
        "mlops": {"run_key": run_key, "generation": marker.generation, "owner": marker.owner},
    }
    return {"meta_data": meta_data, "user_data": "#cloud-config\n" + json.dumps(user_data), "network_data": {}}
