"""`mlops_vllm`: where a model is served, and what deploys it there."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from mlops_hooks.connection import ConnectionHook, Fields
from mlops_hooks.forms import VLLM
from mlops_hooks.ssh import SshHook
from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.remote.ssh import Host
from mlops_sdk.serving.target import Engine, VllmTarget

_TIMEOUT_S = 10.0
_NOTHING_BEHIND = 503


class VllmConfig(BaseModel):
    """The proxy that users talk to, and the host behind it.

    Attributes:
        base_url: Of the proxy, as users reach it.
        ssh_conn_id: Connection to the host.
        root: Folder on the host.
        python: Interpreter with vLLM there.
        haproxy_socket: Path of haproxy's socket on the host.
        ports: Of the slots, by name.
        engine: How vLLM runs there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str
    ssh_conn_id: str
    root: str
    python: str
    haproxy_socket: str
    ports: Mapping[str, int]
    engine: Engine = Engine()


class VllmHook(ConnectionHook[VllmConfig]):
    """vLLM behind haproxy on an SSH host."""

    form = VLLM

    @classmethod
    def parse(cls, fields: Fields) -> VllmConfig:
        """See `ConnectionHook.parse`."""
        given = fields.given("ssh_conn_id", "root", "python", "haproxy_socket", "ports", "engine")
        return VllmConfig.model_validate({"base_url": fields.required("host").rstrip("/"), **given})

    def target(self) -> VllmTarget:
        """What a roll-out works on: this connection and the SSH connection that it names."""
        config = self.settings()
        return _target(config, SshHook(config.ssh_conn_id).settings())

    async def atarget(self) -> VllmTarget:
        """As `target`, for triggers: does not block the event loop."""
        config = await self.asettings()
        return _target(config, await SshHook(config.ssh_conn_id).asettings())

    def get_conn(self) -> VllmConfig:
        """What a roll-out needs to know of the target."""
        return self.settings()

    def ask(self) -> str:
        """Which models are served."""
        url = f"{self.settings().base_url}/v1/models"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply:  # noqa: S310 - the connection's own URL
                body: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as error:
            if error.code == _NOTHING_BEHIND:
                return f"the proxy at {url} answers; no model is served behind it yet"
            raise ServiceUnavailable(
                f"{url!r} answered with an error",
                seen=f"{error.code} {error.reason}",
                next_step="see the logs of haproxy and vLLM on the serving host",
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServiceUnavailable(
                f"the proxy at {url!r} gave no usable answer",
                seen=str(error),
                next_step="check the base URL, and haproxy on the serving host",
            ) from error
        names = ", ".join(str(model.get("id")) for model in body.get("data", []))
        return f"the proxy at {url} answers and serves {names or 'nothing'}"


def _target(config: VllmConfig, host: Host) -> VllmTarget:
    return VllmTarget(
        host=host,
        base_url=config.base_url,
        root=config.root,
        python=config.python,
        haproxy_socket=config.haproxy_socket,
        ports=config.ports,
        engine=config.engine,
    )
