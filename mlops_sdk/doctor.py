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
from mlops_sdk.config import MlflowSettings, PerRun, Settings
from mlops_sdk.errors import AccessDenied, MlopsError, RemoteError, ServiceUnavailable
from mlops_sdk.identity.credential import CredentialRequest
from mlops_sdk.identity.environment import check_environment
from mlops_sdk.identity.s3_token import login_file
from mlops_sdk.identity.sts import StsTokens
from mlops_sdk.objects import ObjectStore

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
    checks.append(_check("environment", lambda: _environment(client)))
    checks.append(_check("S3 conditional PUT", lambda: _s3(client)))
    checks.append(_check("S3 logins of runs", lambda: _s3_of_runs(client)))
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


def _environment(client: Client) -> str:
    settings = client.settings
    check_environment(settings, client.store)
    if not settings.environment:
        return "none is named: this deployment is the only one that uses its bucket and registry"
    return f"{settings.environment!r}: bucket {client.store.bucket!r} and alias {settings.mlflow.alias!r} are its own"


def _s3(client: Client) -> str:
    client.store.probe_conditional_put()
    return f"bucket {client.store.bucket!r}: one winner of eight"


def _s3_of_runs(client: Client) -> str:
    """Which S3 login machines get; a run's own is minted, used, and seen to be refused what is not the run's."""
    settings = client.settings.s3
    tokens = StsTokens(settings, f"doctor{uuid.uuid4().hex[:6]}", client.services.broker.audit)
    if settings.per_run is PerRun.NONE:
        known = "s3.per_run is none: machines get the deployment's own login"
        if not settings.run_role:
            return f"warning: {known}; where S3 has STS, make a role for runs (docs/permissions.md)"
        try:
            _prove(client, tokens)
        except RemoteError as error:
            return f"warning: {known}; S3 refuses one for each run: {error.seen or error.what}"
        return f"warning: {known}; S3 would give each run its own, so set s3.per_run to sts"
    _prove(client, tokens)
    return f"each run gets its own through {settings.run_role!r}, for {settings.token_s:g} s at a time"


def _prove(client: Client, tokens: StsTokens) -> None:
    own = f"runs/{tokens.run_key}/probe"
    other = f"runs/{uuid.uuid4().hex[:12]}/probe"
    try:
        with login_file(tokens.mint([])) as path:
            store = ObjectStore.open(client.settings.s3.model_copy(update={"credentials_file": str(path)}))
            store.put(own, b"")
            try:
                store.put(other, b"")
            except AccessDenied:
                return
        raise RemoteError(
            "S3 lets a run write another run's objects",
            seen=f"PUT of {other!r} by a session for {own!r}",
            next_step="use a server that honours session policies, such as Ceph RGW 16.2 or later",
        )
    finally:
        client.store.delete(own)
        client.store.delete(other)


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
