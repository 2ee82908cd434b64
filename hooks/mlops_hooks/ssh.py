"""`mlops_ssh`: a host with a known key."""

from __future__ import annotations

from mlops_hooks.connection import ConnectionHook, Fields
from mlops_hooks.forms import SSH
from mlops_sdk.remote.ssh import Host, fingerprint, run_once

_SSH_PORT = 22


class SshHook(ConnectionHook[Host]):
    """SSH to a host whose key is pinned."""

    form = SSH

    @classmethod
    def parse(cls, fields: Fields) -> Host:
        """See `ConnectionHook.parse`."""
        return Host(
            name=fields.conn_id,
            address=fields.required("host"),
            port=fields.port or _SSH_PORT,
            username=fields.login or "root",
            host_public_key=fields.required("host_public_key"),
            client_private_key=fields.required("private_key"),
        )

    def get_conn(self) -> Host:
        """What `mlops_sdk.remote.ssh.connect` needs."""
        return self.settings()

    def ask(self) -> str:
        """A login."""
        host = self.settings()
        run_once(host, ["true"])
        shown = fingerprint(host.host_public_key)
        return f"{host.username}@{host.address}:{host.port} lets us in and holds the pinned key {shown}"
