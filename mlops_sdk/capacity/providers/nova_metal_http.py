"""What a login may read in Ironic of the machine under a server of Nova; and to end one that Nova has forgotten."""

from __future__ import annotations

from mlops_sdk.capacity.evidence import Cleaning
from mlops_sdk.capacity.providers.ironic_api import IronicApi, NotYet
from mlops_sdk.capacity.providers.ironic_history import last_cleaning
from mlops_sdk.capacity.providers.ironic_view import Machine
from mlops_sdk.cloud import Cloud
from mlops_sdk.errors import AccessDenied


class MetalHttp:
    """Ironic through one login. What it does not show is None: to most logins it shows little or nothing."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._ironic = IronicApi(cloud)

    def under(self, server_id: str) -> Machine | None:
        """The machine that a server is on."""
        if not self._cloud.has("baremetal"):
            return None
        try:
            return self._ironic.find_machine(server_id)
        except AccessDenied:
            return None

    def get(self, node_id: str) -> tuple[Machine, Cleaning | None] | None:
        """A machine, with its last cleaning that ended well."""
        if not self._cloud.has("baremetal"):
            return None
        try:
            machine = self._ironic.get_machine(node_id)
        except AccessDenied:
            return None
        if machine is None:
            return None
        try:
            history = self._ironic.history(node_id)
        except AccessDenied:
            history = ()
        return machine, last_cleaning(machine, history)

    def end(self, node_id: str, server_id: str) -> str:
        """Tear down a machine that still has this server on it; why Ironic does not, in words, else ""."""
        try:
            machine = self._ironic.get_machine(node_id)
            if machine is not None and machine.instance_id == server_id:
                self._ironic.tear_down(node_id)
        except NotYet as signal:
            return str(signal)
        except AccessDenied as error:
            return error.seen
        return ""
