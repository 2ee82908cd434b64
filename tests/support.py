"""What several test modules share and no fixture can be."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import openstack


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
