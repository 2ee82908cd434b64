"""`mlops_ssh`: a host with a known key."""

from __future__ import annotations

from dataclasses import replace

from airflow.sdk import Connection

from mlops_hooks.connection import ConnectionHook, Fields, read_fields
from mlops_hooks.forms import SSH
from mlops_sdk.errors import SettingsError
from mlops_sdk.remote.ssh import Host, fingerprint, run_once

_SSH_PORT = 22


class SshHook(ConnectionHook[Host]):
    """SSH to a host whose key is pinned, through a gateway of its own connection if one is named."""

    form = SSH

    def settings(self) -> Host:
        """See `ConnectionHook.settings`; the gateway's connection is read too."""
        connection = self.get_connection(self.conn_id)
        gateway = self._gateway(connection)
        host = self._read(connection)
        return replace(host, via=gateway.as_gateway(gateway.get_connection(gateway.conn_id))) if gateway else host

    async def asettings(self) -> Host:
        """As `settings`, for triggers."""
        connection = await self.aget_connection(self.conn_id)
        gateway = self._gateway(connection)
        host = self._read(connection)
        return (
            replace(host, via=gateway.as_gateway(await gateway.aget_connection(gateway.conn_id))) if gateway else host
        )

    def as_gateway(self, connection: Connection) -> Host:
        """What a connection says that another one names as its gateway.

        Raises:
            SettingsError: it is behind a gateway itself.
        """
        if behind := self._gateway(connection):
            raise SettingsError(
                f"connection {self.conn_id!r} is a gateway and names another one",
                seen=behind.conn_id,
                next_step="leave its field gateway_conn_id empty: there is one gateway on a way",
            )
        return self._read(connection)

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

    def _gateway(self, connection: Connection) -> SshHook | None:
        name = read_fields(connection, self.form).text("gateway_conn_id")
        return SshHook(name) if name else None

    def get_conn(self) -> Host:
        """What `mlops_sdk.remote.ssh.connect` needs."""
        return self.settings()

    def ask(self) -> str:
        """A login."""
        host = self.settings()
        run_once(host, ["true"])
        shown = fingerprint(host.host_public_key)
        way = f" through {host.via.name!r}" if host.via else ""
        return f"{host.username}@{host.address}:{host.port}{way} lets us in and holds the pinned key {shown}"
