"""Who lives beside our runs on the stack's Ironic, and must not be touched."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import SecretStr

from mlops_sdk.capacity.lease import Marker
from mlops_sdk.capacity.providers.ironic_api import IronicApi
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import KeystoneSettings
from support import eventually

CLASS = "gpu.h200.8x"


def marker_of(owner: str, *, lasts_s: float, deployment_id: str = "") -> Marker:
    """Of a run of somebody else: of another deployment unless one is given."""
    until = datetime.now(UTC) + timedelta(seconds=lasts_s)
    return Marker(
        run_id=str(uuid.uuid4()),
        deployment_id=deployment_id or str(uuid.uuid4()),
        generation=1,
        index=0,
        nodes=1,
        owner=owner,
        deadline=until,
        renewed_until=until,
    )


class stranger_in_our_project:  # noqa: N801 - reads as a word
    """A colleague's allocation in the same project, under a name like ours, without our marker."""

    def __init__(self, baremetal: IronicApi) -> None:
        self._api = baremetal
        self._name = "ml-aaaaaaaaaaaa-g1-0"

    def __enter__(self) -> tuple[str, str]:
        marker = marker_of("colleague", lasts_s=-3600.0)
        self._api.create_allocation(name=self._name, resource_class=CLASS, traits=(), marker=marker)
        eventually(lambda: self._state() == "active", within_s=20, what="the colleague has a machine")
        allocation = self._api.get_allocation(self._name)
        assert allocation is not None
        return self._name, allocation.node_id

    def __exit__(self, *error: object) -> None:
        self._api.delete_allocation(self._name)

    def _state(self) -> str:
        found = self._api.get_allocation(self._name)
        return found.state if found else ""


class other_tenant:  # noqa: N801 - reads as a word
    """A second project with an allocation of its own that even copies our deployment's marker."""

    def __init__(self, stack: Any) -> None:
        tenant = stack.admin["other_tenant"]
        login = KeystoneSettings(
            auth_url=stack.settings.keystone.auth_url,
            region=stack.settings.keystone.region,
            username=tenant["username"],
            password=SecretStr(tenant["password"]),
            project_name=tenant["project_name"],
        )
        self._api = IronicApi(Cloud(login))
        self._deployment = str(stack.settings.deployment_id)
        self._name = "ml-bbbbbbbbbbbb-g1-0"

    def __enter__(self) -> tuple[IronicApi, str]:
        marker = marker_of("other", lasts_s=-3600.0, deployment_id=self._deployment)
        self._api.create_allocation(name=self._name, resource_class=CLASS, traits=(), marker=marker)
        return self._api, self._name

    def __exit__(self, *error: object) -> None:
        self._api.delete_allocation(self._name)
