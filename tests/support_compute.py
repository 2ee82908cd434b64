"""The embedded stack's Nova, for tests: who uses it, and what a server needs to be reached."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openstack
from openstack.exceptions import ResourceNotFound

from mlops_sdk.config import Settings
from mlops_sdk.identity import ssh_keys
from mlops_sdk.identity.ssh_keys import SshKey
from mlops_sdk.local import control
from mlops_sdk.local.isolation import members
from mlops_sdk.local.layout import Layout
from mlops_sdk.local.process import StackProcess
from mlops_sdk.remote.ssh import Host
from support import eventually, tell


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeHandle:
    """A running stack with the compute profile.

    `settings` are the user's and broker's, `admin` the content of admin.json, `offers` that of compute.json.
    """

    layout: Layout
    pid: int
    settings: Settings
    reaper_settings: Settings
    admin: dict[str, Any]
    offers: dict[str, Any]

    def user(self) -> Any:
        """The user of our project."""
        keystone = self.settings.keystone
        return _connect(self.admin, keystone.username, keystone.password.get_secret_value(), keystone.project_name)

    def stranger(self) -> Any:
        """The user of the other project."""
        other = self.admin["other_tenant"]
        return _connect(self.admin, other["username"], other["password"], other["project_name"])

    def operator(self) -> Any:
        """Who sees all projects."""
        return _connect(self.admin, self.admin["admin_username"], self.admin["admin_password"], "admin")

    def service(self, name: str) -> control.ServiceStatus:
        """One service as it is now."""
        return next(s for s in control.status(self.layout).services if s.name == name)


@contextmanager
def compute_stack(state_dir: Path, *, only: Sequence[str]) -> Generator[ComputeHandle]:
    """A stack with the compute profile (what `make setup-compute` installs): so much of it, and no server at first."""
    process = StackProcess(state_dir, only=(*only, "settings"), profiles=("compute",), faults=True)
    layout = process.layout
    try:
        process.wait_ready(timeout_s=300, changed=tell)
        handle = ComputeHandle(
            layout=layout,
            pid=process.pid,
            settings=Settings.load(layout.client_toml),
            reaper_settings=Settings.load(layout.reaper_toml),
            admin=json.loads(layout.admin_json.read_text()),
            offers=json.loads(layout.compute_json.read_text()),
        )
        take_back_servers(handle.operator())
        yield handle
        inside = members(process.pid)
    finally:
        process.stop()
    assert control.leftovers(layout, inside) == []


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What a server is told at its first boot, so that it can be reached."""

    run_id: uuid.UUID = field(default_factory=uuid.uuid4)

    @property
    def host(self) -> SshKey:
        """The server's."""
        return ssh_keys.host_key("test", self.run_id, 1, 0)

    @property
    def client(self) -> SshKey:
        """Ours."""
        return ssh_keys.client_key("test", self.run_id, 1)

    @property
    def user_data(self) -> str:
        """As Nova takes it."""
        told = {
            "ssh_keys": {"ed25519_private": self.host.private, "ed25519_public": self.host.public},
            "ssh_authorized_keys": [self.client.public],
        }
        return base64.b64encode(f"#cloud-config\n{json.dumps(told)}".encode()).decode()

    def at(self, address: str) -> Host:
        """How to log in."""
        return Host(
            name="server",
            address=address,
            host_public_key=self.host.public,
            client_private_key=self.client.private,
        )


def create(cloud: Any, offers: dict[str, Any], *, name: str, flavor: str, **more: Any) -> Any:
    """Ask for a server; returns at once."""
    return cloud.compute.create_server(
        name=name,
        flavor_id=cloud.compute.find_flavor(flavor, ignore_missing=False).id,
        image_id=cloud.image.find_image(offers["image"], ignore_missing=False).id,
        networks=[{"uuid": offers["network_id"]}],
        **more,
    )


def settled(cloud: Any, server: Any, *, within_s: float = 90) -> Any:
    """The server once Nova has decided about it."""
    eventually(
        lambda: cloud.compute.get_server(server.id).status in {"ACTIVE", "ERROR"},
        within_s=within_s,
        what=f"{server.name} is ACTIVE or in ERROR",
    )
    return cloud.compute.get_server(server.id)


def gone(cloud: Any, server: Any, *, within_s: float = 60) -> None:
    """Wait until Nova knows no such server."""

    def is_gone() -> bool:
        try:
            cloud.compute.get_server(server.id)
        except ResourceNotFound:
            return True
        return False

    eventually(is_gone, within_s=within_s, what=f"{server.name} is gone")


def address_of(server: Any) -> str:
    """Its IPv4 address."""
    return next(port["addr"] for ports in server.addresses.values() for port in ports)


def heal(operator: Any, server: Any) -> None:
    """Let a server that could not be ended end. Nova lets nobody change the metadata of one in ERROR."""
    eventually(
        lambda: operator.compute.get_server(server.id).task_state is None, within_s=60, what=f"{server.name} rests"
    )
    operator.compute.reset_server_state(server, "active")
    operator.compute.delete_server_metadata(server, keys=["fault"])


def take_back_servers(operator: Any) -> None:
    """Whatever a killed test session left: servers, ports and volumes of all projects."""
    for server in operator.compute.servers(all_projects=True):
        if server.metadata.get("fault") == "destroy":
            heal(operator, server)
        operator.compute.delete_server(server, ignore_missing=True)
    eventually(
        lambda: not list(operator.compute.servers(all_projects=True)),
        within_s=120,
        what="the servers of an earlier test session are gone",
    )
    for port in operator.network.ports():
        operator.network.delete_port(port, ignore_missing=True)
    for volume in operator.block_storage.volumes(all_projects=True):
        operator.block_storage.delete_volume(volume, force=True, ignore_missing=True)


def _connect(admin: dict[str, Any], username: str, password: str, project: str) -> Any:
    return openstack.connect(
        auth={
            "auth_url": admin["auth_url"],
            "username": username,
            "password": password,
            "project_name": project,
            "user_domain_id": "default",
            "project_domain_id": "default",
        },
        region_name=admin["region"],
        load_yaml_config=False,
        load_envvars=False,
    )
