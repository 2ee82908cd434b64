"""Cyborg's API, as far as servers of Nova with accelerators need it."""

from __future__ import annotations

from collections.abc import Mapping

from mlops_sdk.capacity.device_profiles import NO_CYBORG, NOT_SHOWN, DeviceProfile
from mlops_sdk.capacity.providers.nova_cyborg import ONLY_SERVICES, AcceleratorRequest, request_of
from mlops_sdk.cloud import Cloud
from mlops_sdk.errors import AccessDenied

_KIND = "accelerator"
_REQUESTS = "/v2/accelerator_requests"


class CyborgHttp:
    """The real service; a cloud may have none.

    Args:
        cloud: Through the login of whoever acts.
        service: Through a login with the role of a service, if there is one.
    """

    def __init__(self, cloud: Cloud, service: Cloud | None = None) -> None:
        self._cloud = cloud
        self._service = service

    def profiles(self) -> Mapping[str, DeviceProfile] | str:
        """See `ComputeApi.device_profiles`."""
        if not self._cloud.has(_KIND):
            return NO_CYBORG
        try:
            body = self._cloud.request(_KIND, "GET", "/v2/device_profiles").body
        except AccessDenied:
            return NOT_SHOWN
        found = (
            DeviceProfile(
                name=str(raw["name"]),
                groups=tuple({str(key): str(value) for key, value in group.items()} for group in raw["groups"]),
            )
            for raw in body.get("device_profiles", [])
        )
        return {profile.name: profile for profile in found}

    def requests(self, server_id: str = "") -> tuple[AcceleratorRequest, ...] | None:
        """See `ComputeApi.accelerator_requests`."""
        if not self._cloud.has(_KIND):
            return ()
        query = {"instance": server_id} if server_id else {}
        try:
            body = self._cloud.request(_KIND, "GET", _REQUESTS, params=query).body
        except AccessDenied:
            return None
        return tuple(request_of(raw) for raw in body.get("arqs", []))

    def free(self, server_id: str) -> None:
        """See `ComputeApi.free_accelerators`."""
        if self._service is None:
            raise AccessDenied(
                f"what Cyborg has bound to server {server_id} cannot be deleted with this login",
                seen="no login with the role 'service' is configured",
                next_step=ONLY_SERVICES,
            )
        self._cloud.request(
            _KIND,
            "DELETE",
            _REQUESTS,
            params={"instance": server_id},
            headers={"X-Service-Token": self._service.token()},
        )
