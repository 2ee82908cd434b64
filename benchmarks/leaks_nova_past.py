"""What lists of servers, ports and volumes said some changes ago."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from benchmarks.leaks_past import Past
from mlops_sdk.testing.http_cloud.keystone import PROJECT

if TYPE_CHECKING:
    from mlops_sdk.testing.http_cloud.messages import Answer, Call
    from mlops_sdk.testing.http_cloud.server_site import ServerSite
    from mlops_sdk.testing.http_cloud.site import HttpCloud

_SERVICES: Final = {"compute", "network", "block-storage"}
_LISTS: Final = ("/servers/detail", "/ports", "/volumes/detail")


class ServersPast(Past):
    """The states before each change, of these services too.

    Args:
        base: Of the other services.
        cloud: Whose.
        site: Its servers.
    """

    def __init__(self, base: Past, cloud: HttpCloud, site: ServerSite) -> None:
        super().__init__(cloud, kept=base.kept)
        self._base = base
        self._login = cloud.keystone.login_of
        self._deliver = cloud.deliver
        self._site = site
        self._before: list[tuple[Any, ...]] = []

    def before(self, call: Call) -> None:
        """See `Past.before`."""
        self._base.before(call)
        if self.kept and call.service in _SERVICES:
            self._before.append(tuple({key: copy.copy(item) for key, item in part.items()} for part in self._things()))

    def answer(self, call: Call, changes: int) -> Answer:
        """See `Past.answer`."""
        if call.service not in _SERVICES or not call.path.endswith(_LISTS) or not self._before:
            return self._base.answer(call, changes)
        if self._login(call) is None:
            return self._deliver(call)
        self._site.settle()
        now = self._things()
        self._put(self._before[-min(changes, len(self._before))])
        try:
            return self._site.answer(call, PROJECT)
        finally:
            self._put(now)

    def _things(self) -> tuple[Any, ...]:
        return (self._site.nova.servers, self._site.neutron.ports, self._site.cinder.volumes)

    def _put(self, state: tuple[Any, ...]) -> None:
        self._site.nova.servers, self._site.neutron.ports, self._site.cinder.volumes = state
