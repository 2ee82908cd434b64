"""What several test modules share and no fixture can be."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import openstack
from openstack.exceptions import BadRequestException, ConflictException

from mlops_sdk.config import Settings
from mlops_sdk.local.control import ServiceStatus


def eventually(holds: Callable[[], bool], *, within_s: float, what: str = "it") -> float:
    """Wait for something to become true; the seconds it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within_s, f"not within {within_s} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


def operator_of(admin: Mapping[str, Any]) -> openstack.connection.Connection:
    """A system-scoped administrator, by the content of a stack's admin.json."""
    return openstack.connect(
        auth={
            "auth_url": admin["auth_url"],
            "username": admin["admin_username"],
            "password": admin["admin_password"],
            "user_domain_id": "default",
            "system_scope": "all",
        },
        region_name=admin["region"],
        load_yaml_config=False,
        load_envvars=False,
    )


def deploy_by_hand(
    operator: openstack.connection.Connection, node: str, config_drive: Mapping[str, Any], *, settings: Settings
) -> None:
    """Let a machine be deployed, as who owns the cloud does it: with an image of this deployment."""
    image = settings.ironic_images["*"].source
    told = {"op": "replace", "path": "/instance_info", "value": {"image_source": image}}
    operator.baremetal.patch_node(node, [told])
    operator.baremetal.set_node_provision_state(node, "active", config_drive=dict(config_drive))


def take_back_everything(operator: openstack.connection.Connection, *, owner: str) -> None:
    """Whatever a killed test session left on its own stack: every machine is torn down and belongs to `owner` again."""
    api = operator.baremetal

    def taken_back() -> bool:
        clean = True
        for node in api.nodes(details=True):
            try:
                if node.provision_state not in {"available", "deleting", "cleaning", "manageable"}:
                    api.set_node_provision_state(node, "deleted")
                elif node.allocation_id:
                    api.delete_allocation(node.allocation_id, ignore_missing=True)
                elif node.provision_state == "available" and not node.reservation:
                    if node.owner != owner or "fault" in node.extra:
                        extra = {key: value for key, value in node.extra.items() if key != "fault"}
                        api.update_node(node, owner=owner, extra=extra)
                    continue
            except (BadRequestException, ConflictException):  # it is on its way: look again
                pass
            clean = False
        return clean

    eventually(taken_back, within_s=120, what="the machines of an earlier test session are back")
    for allocation in api.allocations():
        api.delete_allocation(allocation, ignore_missing=True)


def tell(service: ServiceStatus) -> None:
    """How far a stack has come, to whoever watches the tests."""
    sys.stderr.write(f"stack: {service.name} {service.state}\n")
