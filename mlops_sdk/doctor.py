"""Checks a deployment from where we stand: each service answers, and lets us do what a run needs."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from mlops_sdk.client import Client
from mlops_sdk.config import MlflowSettings, Settings
from mlops_sdk.errors import AccessDenied, MlopsError, RemoteError, ServiceUnavailable
from mlops_sdk.identity.credential import CredentialRequest

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the diagnosis."""

    name: str
    ok: bool
    detail: str
    next_step: str = ""


def examine(load: Callable[[], Settings] = Settings.load) -> list[Check]:
    """All checks, in the order in which they build on each other. Leaves nothing behind."""
    try:
        settings = load()
    except MlopsError as error:
        return [_failed("settings", error)]
    checks = [Check(name="settings", ok=True, detail=f"deployment {settings.deployment_id}")]
    client = Client(settings)
    checks.append(_check("S3 conditional PUT", lambda: _s3(client)))
    checks.append(_check("Keystone login and minting", lambda: _keystone(client)))
    checks.append(_check("Ironic machines", lambda: _ironic(client)))
    checks.append(_check("MLflow login", lambda: _mlflow(settings.mlflow)))
    return checks


def _check(name: str, examination: Callable[[], str]) -> Check:
    try:
        return Check(name=name, ok=True, detail=examination())
    except MlopsError as error:
        return _failed(name, error)


def _failed(name: str, error: MlopsError) -> Check:
    seen = f": {error.seen}" if error.seen else ""
    return Check(name=name, ok=False, detail=f"{error.what}{seen}", next_step=error.next_step)


def _s3(client: Client) -> str:
    client.store.probe_conditional_put()
    return f"bucket {client.store.bucket!r}: one winner of eight"


def _keystone(client: Client) -> str:
    """Mint a credential as a run would, log in with it, revoke it."""
    settings = client.settings
    services = client.services
    now = services.baremetal.now()
    request = CredentialRequest(
        run_id=uuid.uuid4(),
        deployment_id=settings.deployment_id,
        generation=1,
        deadline=now + timedelta(seconds=60),
        grace_s=0,
    )
    credential = services.broker.mint(request, now=now)
    try:
        list(services.connect(credential.login(settings.keystone)).list_machines())
    finally:
        services.broker.revoke(request.name)
    return "minted, used and revoked a run's application credential"


def _ironic(client: Client) -> str:
    machines = list(client.services.baremetal.list_machines())
    if not machines:
        raise RemoteError(
            "Ironic shows us no machine",
            seen="GET /v1/nodes is empty",
            next_step="ask the operator to make this project the owner or lessee of its machines",
        )
    return f"{len(machines)} visible to this project"


def _mlflow(settings: MlflowSettings) -> str:
    url = f"{settings.tracking_uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1"
    if not url.startswith(("http://", "https://")):
        raise RemoteError(f"mlflow.tracking_uri {settings.tracking_uri!r} is not an HTTP address")
    login = f"{settings.username}:{settings.password.get_secret_value()}".encode()
    headers = {"Authorization": "Basic " + base64.b64encode(login).decode()} if settings.username else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked above
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310 - as above
            return settings.tracking_uri
    except urllib.error.HTTPError as error:
        kind = AccessDenied if error.code in {401, 403} else RemoteError
        raise kind(
            f"MLflow at {settings.tracking_uri!r} refused us",
            seen=f"{error.code} {error.reason}",
            next_step="check mlflow.username and mlflow.password",
        ) from None
    except (urllib.error.URLError, TimeoutError) as error:
        raise ServiceUnavailable(
            f"MLflow at {settings.tracking_uri!r} does not answer",
            seen=str(error),
            next_step="check mlflow.tracking_uri, and that the server is up (`mlops local status`)",
        ) from None
