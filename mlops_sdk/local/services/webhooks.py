"""Pushes start runs: the repositories that are pushed to, the receiver's settings, and the dispatcher."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Final

from mlops_sdk.local.layout import write_private, write_private_json
from mlops_sdk.local.probes import said
from mlops_sdk.local.service import Command, Service
from mlops_sdk.local.services.airflow import API, USER
from mlops_sdk.local.settings_files import to_toml
from mlops_sdk.local.site import Site

REPOSITORY: Final = "local/code"
DAG: Final = "retrain_lm"
_REF: Final = "refs/heads/main"
_RECEIVER: Final = "/webhooks/github"
_CONFIG_VARIABLE: Final = "MLOPS_WEBHOOK_CONFIG"


def webhook_environment(site: Site) -> dict[str, str]:
    """Where receiver and dispatcher find their settings."""
    return {_CONFIG_VARIABLE: str(_settings_file(site))}


def webhook_services(site: Site) -> tuple[Service, ...]:
    """The step that makes repositories and settings, and the dispatcher."""
    log = site.layout.log("dispatcher")
    return (
        Service(name="git", address=str(code_repository(site)), prepare=lambda: _prepare(site)),
        Service(
            name="dispatcher",
            needs=("git", API),
            command=lambda: Command(
                argv=(sys.executable, "-m", "mlops_sdk.webhooks.dispatch"), env=webhook_environment(site)
            ),
            probe=lambda: said(log, "started"),
            stop_timeout_s=3.0,
        ),
    )


def code_repository(site: Site) -> Path:
    """The bare repository whose pushes start the loop."""
    return site.layout.data("git") / "code.git"


def data_repository(site: Site) -> Path:
    """The bare repository in which DVC pins data."""
    return site.layout.data("git") / "data.git"


def git_connections(site: Site) -> dict[str, dict[str, Any]]:
    """The Airflow connection by which a DAG finds the data repository."""
    return {"mlops_data": {"conn_type": "generic", "host": str(data_repository(site))}}


def _settings_file(site: Site) -> Path:
    return site.layout.data("git") / "webhook.toml"


def _prepare(site: Site) -> None:
    site.layout.data("git").mkdir(mode=0o700, exist_ok=True)
    code, data = code_repository(site), data_repository(site)
    for bare in (code, data):  # creating one again changes nothing
        log = site.layout.log("git-setup")
        site.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", bare], log=log)
    secret = [site.secrets.webhook]
    where = {"url": site.url("airflow") + _RECEIVER, "secrets": secret, "repository": REPOSITORY}
    write_private_json(site.layout.webhook_json, where)
    write_private(_settings_file(site), _settings(site, code))
    hook = code / "hooks" / "post-receive"
    sender = [sys.executable, "-P", "-m", "mlops_sdk.webhooks.send", "--config", str(site.layout.webhook_json)]
    write_private(hook, f"#!/bin/sh\nexec {shlex.join(sender)}\n")
    hook.chmod(0o700)


def _settings(site: Site, code: Path) -> str:
    """As `mlops_sdk.webhooks.config` reads them."""
    route = {"clone_url": str(code), "dag_id": DAG, "ref": _REF}
    access = {"url": site.url("airflow"), "username": USER, "password": site.secrets.airflow_mlops}
    return to_toml(
        {
            "inbox_url": f"sqlite:///{site.layout.data('git')}/inbox.db",
            "secrets": [site.secrets.webhook],
            "airflow": access,
            "routes": {REPOSITORY: route},
        }
    )
