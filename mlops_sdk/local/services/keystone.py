"""Keystone on SQLite: projects, users, roles and the catalogue of the stack, and the reaper's own credential."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import openstack
from openstack.connection import Connection
from openstack.identity.v3._proxy import Proxy

from mlops_sdk.local.layout import write_private_json
from mlops_sdk.local.probes import answers_http
from mlops_sdk.local.service import Command, Service
from mlops_sdk.local.site import REGION, Site

OUR_PROJECT: Final = "ml-research"
OTHER_PROJECT: Final = "other-team"
REAPER_CREDENTIAL: Final = "mlops-reaper"
CLEANER: Final = "mlops-cleaner"  # the reaper's user for what Cyborg grants to services only
SERVICE_PROJECT: Final = "service"
_PROJECTS: Final = (SERVICE_PROJECT, OUR_PROJECT, OTHER_PROJECT)
_DOMAIN: Final = "default"
_REVISION: Final = 1  # raise it when what `_populate` makes changes, so that old state directories get it too


def keystone_service(site: Site) -> Service:
    """The identity service."""
    keystone = _Keystone(site)
    return Service(
        name="keystone",
        heavy=True,
        address=site.url("keystone"),
        prepare=keystone.prepare,
        command=keystone.command,
        probe=lambda: answers_http(site.addresses.keystone, "/v3"),
        finish=keystone.finish,
    )


def identity(site: Site) -> dict[str, Any]:
    """What the last populating left: ``{"projects": {name: id}, "reaper_credential_id": ...}``."""
    return json.loads((site.layout.data("keystone") / "identity.json").read_text())


def connect(site: Site, username: str, password: str, **scope: str) -> Connection:
    """An OpenStack connection of one of the stack's users; `scope` is ``project_name`` or ``system_scope``."""
    domains = {"user_domain_id": _DOMAIN}
    if "project_name" in scope:
        domains["project_domain_id"] = _DOMAIN
    return openstack.connect(
        auth={"auth_url": f"{site.url('keystone')}/v3", "username": username, "password": password, **domains, **scope},
        region_name=REGION,
        load_yaml_config=False,
        load_envvars=False,
    )


def register(
    site: Site,
    users: Mapping[str, str],
    endpoints: Iterable[tuple[str, str, str]],
    *,
    roles: Iterable[str] = ("admin", "service"),
) -> None:
    """Make users of services that the stack does not always have, and their place in the catalogue. Idempotent.

    Args:
        site: Whose Keystone.
        users: Password by name.
        endpoints: Name, type and URL of each service.
        roles: That each of the users has in the project of services.
    """
    api = _identity_api(connect(site, "admin", site.secrets.keystone_admin, project_name="admin"))
    known = {str(role.name): role for role in api.roles()}
    for name, password in users.items():
        _user(api, name, password, _project(api, SERVICE_PROJECT), [known[role] for role in roles])
    for name, kind, url in endpoints:
        _catalogue(api, name, kind, url)


class _Keystone:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._root = site.layout.data("keystone")
        self._config = self._root / "keystone.conf"

    def prepare(self) -> None:
        self._site.once("keystone", self._create)
        self._write_config()

    def command(self) -> Command:
        server = self._site.tools.infra("openstack", "serve_wsgi.py")
        port = str(self._site.addresses.keystone)
        return Command(
            argv=(str(self._site.tools.openstack_python), str(server), "keystone.wsgi.api:application", port),
            env={"OS_KEYSTONE_CONFIG_DIR": str(self._root), "OS_KEYSTONE_CONFIG_FILES": "keystone.conf"},
        )

    def finish(self) -> None:
        done = self._root / "identity.json"
        if done.exists() and identity(self._site).get("revision") == _REVISION:
            return
        write_private_json(done, {"revision": _REVISION, **_populate(self._site)})

    def _create(self, root: Path) -> None:
        for folder in ("fernet", "credential"):
            (root / folder).mkdir(mode=0o700)
        self._write_config()
        self._site.run(
            [
                self._site.tools.openstack_python,
                self._site.tools.infra("openstack", "prepare_keystone.py"),
                self._config,
                f"{self._site.url('keystone')}/v3",
                REGION,
            ],
            log=self._site.layout.log("keystone-setup"),
            env={"OS_BOOTSTRAP_PASSWORD": self._site.secrets.keystone_admin},
        )

    def _write_config(self) -> None:
        self._site.render("keystone.conf", {"root": self._root}, self._config)


def _populate(site: Site) -> dict[str, Any]:
    """Make projects, users, roles, catalogue and the reaper's credential; what is there already stays."""
    secrets = site.secrets
    api = _identity_api(connect(site, "admin", secrets.keystone_admin, project_name="admin"))
    projects = {name: _project(api, name) for name in _PROJECTS}
    roles = {str(role.name): role for role in api.roles()}
    _user(api, "ironic", secrets.keystone_ironic, projects[SERVICE_PROJECT], (roles["admin"], roles["service"]))
    _user(api, "mlops", secrets.keystone_mlops, projects[OUR_PROJECT], (roles["member"], roles["reader"]))
    _user(api, "other", secrets.keystone_other, projects[OTHER_PROJECT], (roles["member"],))
    _catalogue(api, "ironic", "baremetal", site.url("ironic"))
    return {"projects": projects, "reaper_credential_id": _reaper_credential(site)}


def _project(api: Proxy, name: str) -> str:
    found = api.find_project(name, domain_id=_DOMAIN)
    return str((found or api.create_project(name=name, domain_id=_DOMAIN)).id)


def _user(api: Proxy, name: str, password: str, project: str, roles: Iterable[Any]) -> None:
    user = api.find_user(name, domain_id=_DOMAIN) or api.create_user(
        name=name, password=password, domain_id=_DOMAIN, default_project_id=project
    )
    for role in roles:
        api.assign_project_role_to_user(project, user, role)


def _catalogue(api: Proxy, name: str, kind: str, url: str) -> None:
    service = next(iter(api.services(type=kind)), None) or api.create_service(name=name, type=kind)
    present = {str(endpoint.interface) for endpoint in api.endpoints(service_id=service.id)}
    for interface in {"public", "internal", "admin"} - present:
        api.create_endpoint(service_id=service.id, interface=interface, region_id=REGION, url=url)


def _identity_api(cloud: Connection) -> Proxy:
    """The identity calls of version 3, which the connection only finds at run time."""
    return cast("Proxy", cloud.identity)


def _reaper_credential(site: Site) -> str:
    """An unrestricted credential: only such a one may delete the credentials of runs."""
    cloud = connect(site, "mlops", site.secrets.keystone_mlops, project_name=OUR_PROJECT)
    api, user = _identity_api(cloud), str(cloud.current_user_id)
    for old in api.application_credentials(user=user, name=REAPER_CREDENTIAL):
        api.delete_application_credential(user, old)
    made = api.create_application_credential(
        user, name=REAPER_CREDENTIAL, secret=site.secrets.reaper_credential, unrestricted=True
    )
    return str(made.id)
