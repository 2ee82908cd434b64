"""serve-1: a static SSH host with haproxy in front of two places for vLLM. Nothing serves until a model is rolled out.

It is isolated like the machines behind the BMCs and started from the same parts, but always on and unknown to Ironic.
Who deploys to it knows it by connection only: the `mlops_ssh` and `mlops_vllm` that `serving_connections` gives.
"""

from __future__ import annotations

import ipaddress
import shutil
import socket
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, SecretStr

from mlops_sdk.errors import StackError
from mlops_sdk.identity import ssh_keys
from mlops_sdk.identity.ssh_keys import SshKey
from mlops_sdk.local.layout import Layout, write_private_json
from mlops_sdk.local.network import StaticHost
from mlops_sdk.local.probes import answers_http
from mlops_sdk.local.service import Command, NotReady, Service
from mlops_sdk.local.site import Site
from mlops_sdk.remote.ssh import Host
from mlops_sdk.serving import router
from mlops_sdk.serving.target import SLOTS, Engine, VllmTarget

if TYPE_CHECKING:
    from mlops_sdk.local.services.machines import MachineNetwork

NAME: Final = "serve-1"
SSH_CONN_ID: Final = "mlops_serve_1"
VLLM_CONN_ID: Final = "mlops_vllm"
_HOST_NUMBER: Final = 200  # in the subnet; the machines begin at 11
_MAC: Final = "02:4d:4c:01:00:01"
_PORT: Final = 8000
_SLOT_PORTS: Final = {"blue": 8101, "green": 8102}
_ROOT: Final = "/scratch/serving"
_PROXY: Final = f"{_ROOT}/proxy"
_PYTHON: Final = "/opt/image/bin/python"
_SSH: Final = 22
_TIMEOUT_S: Final = 3.0


class ServingAccess(BaseModel):
    """How to reach the serving host: the content of `serving.json` (0600)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    host_public_key: str
    private_key: SecretStr
    base_url: str
    root: str = _ROOT
    python: str = _PYTHON
    haproxy_socket: str = f"{_PROXY}/admin.sock"
    ports: dict[str, int]
    engine: Engine

    @classmethod
    def load(cls, layout: Layout) -> ServingAccess:
        """What a stack wrote.

        Raises:
            StackError: it has not started its serving host yet.
        """
        try:
            return cls.model_validate_json(layout.serving_json.read_bytes())
        except OSError as error:
            raise StackError(
                f"the stack in {str(layout.state_dir)!r} has no serving host",
                seen=str(error),
                next_step=f"start its service {NAME!r}",
            ) from error

    def target(self) -> VllmTarget:
        """What `mlops_sdk.serving.deploy.roll_out` takes."""
        host = Host(
            name=NAME,
            address=self.address,
            host_public_key=self.host_public_key,
            client_private_key=self.private_key.get_secret_value(),
        )
        return VllmTarget(
            host=host,
            base_url=self.base_url,
            root=self.root,
            python=self.python,
            haproxy_socket=self.haproxy_socket,
            ports=self.ports,
            engine=self.engine,
        )


def serving_host(subnet: str) -> StaticHost:
    """Its place in the stack's network."""
    address = str(ipaddress.IPv4Network(subnet)[_HOST_NUMBER])
    return StaticHost(name=NAME, mac=_MAC, address=address, serves=_PORT)


def serving_access(site: Site) -> ServingAccess:
    """How to reach it. Nothing has to run for this."""
    address = serving_host(site.addresses.subnet).address
    return ServingAccess(
        address=address,
        host_public_key=_host_key(site).public,
        private_key=SecretStr(_client_key(site).private),
        base_url=f"http://{address}:{_PORT}",
        ports=_SLOT_PORTS,
        engine=Engine.for_cpu(),
    )


def serving_connections(site: Site) -> dict[str, dict[str, Any]]:
    """The two Airflow connections by id, as the fields of `airflow.models.Connection`. They hold a private key."""
    access = serving_access(site)
    return {
        SSH_CONN_ID: {
            "conn_type": "mlops_ssh",
            "host": access.address,
            "port": _SSH,
            "login": "root",
            "extra": {
                "private_key": access.private_key.get_secret_value(),
                "host_public_key": access.host_public_key,
            },
        },
        VLLM_CONN_ID: {
            "conn_type": "mlops_vllm",
            "host": access.base_url,
            "extra": {
                "ssh_conn_id": SSH_CONN_ID,
                "root": access.root,
                "python": access.python,
                "haproxy_socket": access.haproxy_socket,
                "ports": access.ports,
                "engine": access.engine.model_dump(mode="json"),
            },
        },
    }


def serving_service(site: Site, network: MachineNetwork) -> Service:
    """The host as a supervised service: its process is the host's power supply."""
    config = site.layout.data("serving") / "host.json"
    address = serving_host(site.addresses.subnet).address
    return Service(
        name=NAME,
        needs=("network",),
        address=f"{address}:{_PORT}",
        prepare=lambda: _prepare(site, network.description(), config),
        command=lambda: Command(
            argv=(sys.executable, "-I", "-S", str(site.tools.infra("farm", "static_host.py")), "--config", str(config))
        ),
        probe=lambda: _probe(address),
        finish=lambda: _write_access(site),
    )


def _prepare(site: Site, fabric: dict[str, Any], config: Path) -> None:
    host = serving_host(site.addresses.subnet)
    proxy = config.parent / "scratch" / Path(_PROXY).relative_to("/scratch")
    proxy.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in (
        (router.BACKEND_FILE, router.backend(_PROXY, _SLOT_PORTS, ready=())),
        (router.VERSIONS_FILE, router.versions(dict.fromkeys(SLOTS, ""))),
    ):
        if not (proxy / name).exists():  # the roll-outs write them from then on
            (proxy / name).write_text(content)
    known = config.parent / "scratch" / Path(_ROOT).relative_to("/scratch") / "cache" / "vllm"
    found_out = site.tools.vllm_image / "vllm-cache"
    if found_out.is_dir():  # an image that was made otherwise finds it out at its first roll-out
        shutil.copytree(found_out, known, dirs_exist_ok=True)
    rendered = config.with_name("haproxy.cfg")
    site.render("haproxy.cfg", {"proxy": _PROXY, "address": host.address, "port": _PORT}, rendered)
    key = _host_key(site)
    write_private_json(
        config,
        {
            "name": host.name,
            "mac": host.mac,
            "address": host.address,
            "fabric": fabric,
            "image_dir": str(site.tools.vllm_image),
            "slot": str(config.parent),
            "neighbours": {},
            "user_data": {
                "ssh_keys": {"ed25519_private": key.private, "ed25519_public": key.public},
                "ssh_authorized_keys": [_client_key(site).public],
            },
            "extra_files": {"/etc/haproxy/haproxy.cfg": rendered.read_text()},
            "services": {"once": [_resume()], "keep": [_haproxy()]},
        },
    )


def _haproxy() -> list[str]:
    return ["/usr/sbin/haproxy", "-db", "-f", "/etc/haproxy/haproxy.cfg", "-f", f"{_PROXY}/{router.BACKEND_FILE}"]


def _resume() -> list[str]:
    """What served before the host went down serves again. Before the first roll-out there is no keeper to ask."""
    keeper = f"{_ROOT}/bin/keeper.py"
    return ["/bin/sh", "-c", f"[ ! -e {keeper} ] || exec {_PYTHON} -I -S {keeper} --root {_ROOT} resume"]


def _probe(address: str) -> None:
    """SSH and the proxy answer; that nothing is served behind it (503) is no fault of the host."""
    try:
        with socket.create_connection((address, _SSH), timeout=_TIMEOUT_S) as connection:
            greeting = connection.recv(4)
    except OSError as error:
        raise NotReady(f"SSH at {address}: {error}") from error
    if greeting != b"SSH-":
        raise NotReady(f"SSH at {address}: it says {greeting!r}")
    answers_http(_PORT, "/health", host=address, below=504)


def _write_access(site: Site) -> None:
    access = serving_access(site)
    value = access.model_dump(mode="json") | {"private_key": access.private_key.get_secret_value()}
    write_private_json(site.layout.serving_json, value)


def _host_key(site: Site) -> SshKey:
    """Derived from secrets that are chosen once per state directory: the same at every start."""
    return ssh_keys.host_key(site.secrets.broker_key, _key_owner(site), 0, 0)


def _client_key(site: Site) -> SshKey:
    return ssh_keys.client_key(site.secrets.broker_key, _key_owner(site), 0)


def _key_owner(site: Site) -> uuid.UUID:
    return uuid.uuid5(uuid.UUID(site.secrets.deployment_id), NAME)
