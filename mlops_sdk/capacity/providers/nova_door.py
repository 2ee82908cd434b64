"""Whether a server answers SSH with the host key of its lease, and lets the lease in."""

from __future__ import annotations

from typing import Protocol

from mlops_sdk.errors import NodeFailed, RemoteCommandError
from mlops_sdk.remote.ssh import Host, run_once

_TRY_S = 5.0


class Door(Protocol):
    """Looks at one server."""

    def refuses(self, host: Host) -> str:
        """Why it does not let the lease in yet; "" when it does.

        Raises:
            HostKeyMismatch: somebody else answers at its address.
        """
        ...


class SshDoor(Door):
    """Over SSH; a try takes at most a few seconds."""

    def refuses(self, host: Host) -> str:
        """See `Door.refuses`."""
        try:
            run_once(host, ["true"], timeout_s=_TRY_S, login_s=_TRY_S)
        except NodeFailed as error:
            return error.seen or error.what
        except RemoteCommandError as error:
            if type(error) is not RemoteCommandError:
                raise
            return error.seen or error.what
        return ""
