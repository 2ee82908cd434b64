"""Neutron's mechanism driver of the embedded stack: every port is bound on every host, at once, without an agent.

What a server's port may talk to is decided where it is plugged in: by the firewall of the stack's network.
"""

from __future__ import annotations

from typing import Any

from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.plugins.ml2 import api


class AnyHost(api.MechanismDriver):
    """Binds the first segment of a port's network."""

    def initialize(self) -> None:
        """Nothing to connect to."""

    @property
    def connectivity(self) -> str:
        """What Neutron shows as the kind of network."""
        return portbindings.CONNECTIVITY_L2

    def bind_port(self, context: Any) -> None:
        """Bind; the port is active from then on."""
        for segment in context.segments_to_bind:
            context.set_binding(segment[api.ID], portbindings.VIF_TYPE_OTHER, {}, status=constants.PORT_STATUS_ACTIVE)
            return
