"""What lists said some changes ago: the answer of a replica that lags behind."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from mlops_sdk.testing.http_cloud.keystone import PROJECT

if TYPE_CHECKING:
    from mlops_sdk.testing.http_cloud.messages import Answer, Call
    from mlops_sdk.testing.http_cloud.site import HttpCloud

_LISTS: Final = ("/v1/allocations", "/v1/nodes", "/application_credentials", "/access_rules")


class Past:
    """The states before each change.

    Args:
        cloud: Whose.
        kept: Whether anybody will ask; copies are dear.
    """

    def __init__(self, cloud: HttpCloud, *, kept: bool) -> None:
        self._cloud = cloud
        self.kept = kept
        self._states: list[tuple[Any, ...]] = []

    def before(self, call: Call) -> None:
        """Something is about to change."""
        if self.kept and call.service != "s3":
            # what these objects hold is replaced, never changed in place: copies of the objects are enough
            state = ({key: copy.copy(item) for key, item in part.items()} for part in self._state())
            self._states.append(tuple(state))

    def answer(self, call: Call, changes: int) -> Answer:
        """A list as it was so many changes ago; anything else as it is. S3 is consistent."""
        if call.service == "s3" or not call.path.endswith(_LISTS) or not self._states:
            return self._cloud.deliver(call)
        self._cloud.ironic.settle()
        now = self._state()
        self._set(self._states[-min(changes, len(self._states))])
        try:
            if call.service == "baremetal" and self._cloud.keystone.login_of(call) is not None:
                return self._cloud.ironic.answer(call, PROJECT)
            return self._cloud.deliver(call)
        finally:
            self._set(now)

    def _state(self) -> tuple[Any, ...]:
        ironic, keystone = self._cloud.ironic, self._cloud.keystone
        return (ironic.nodes, ironic.allocations, keystone.credentials, keystone.rules)

    def _set(self, state: tuple[Any, ...]) -> None:
        ironic, keystone = self._cloud.ironic, self._cloud.keystone
        ironic.nodes, ironic.allocations, keystone.credentials, keystone.rules = state
