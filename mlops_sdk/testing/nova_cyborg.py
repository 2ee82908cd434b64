"""Cyborg in memory: device profiles, and the accelerator requests that tie cards to servers."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlops_sdk.capacity.device_profiles import NO_CYBORG, DeviceProfile
from mlops_sdk.capacity.providers.nova_cyborg import ONLY_SERVICES, AcceleratorRequest
from mlops_sdk.errors import AccessDenied


@dataclass(slots=True, kw_only=True)
class FakeCyborg:
    """A cloud's Cyborg.

    Attributes:
        profiles: By name; None: the cloud has no Cyborg.
        away: It does not answer Nova, which forgets its servers all the same.
        service: Whether our login may do what only services may.
        requests: By id.
    """

    profiles: dict[str, DeviceProfile] | None = None
    away: bool = False
    service: bool = False
    requests: dict[str, AcceleratorRequest] = field(default_factory=dict[str, AcceleratorRequest])

    def shown(self) -> Mapping[str, DeviceProfile] | str:
        """The profiles, or why there are none."""
        return NO_CYBORG if self.profiles is None else dict(self.profiles)

    def of(self, server_id: str) -> tuple[AcceleratorRequest, ...]:
        """Requests of a server, or all."""
        return tuple(each for each in self.requests.values() if not server_id or each.server == server_id)

    def bind(self, server_id: str, profile: str) -> None:
        """As Nova does for a server that got a host."""
        for _ in range((self.profiles or {})[profile].devices):
            made = AcceleratorRequest(id=str(uuid.uuid4()), state="Bound", profile=profile, server=server_id)
            self.requests[made.id] = made

    def forget(self, server_id: str) -> None:
        """As Nova does for a server that it forgets: it does not look whether it worked."""
        if not self.away:
            self._drop(server_id)

    def free(self, server_id: str) -> None:
        """As a service of the cloud does."""
        if not self.service:
            raise AccessDenied("accelerator DELETE was refused", seen="403", next_step=ONLY_SERVICES)
        self._drop(server_id)

    def _drop(self, server_id: str) -> None:
        for each in self.of(server_id):
            del self.requests[each.id]
