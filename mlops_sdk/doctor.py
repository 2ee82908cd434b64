"""Checks a deployment from where we stand: each service answers, and lets us do what a run needs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from mlops_sdk.capacity.owned import Held, PoolMachine
from mlops_sdk.capacity.providers import ironic
from mlops_sdk.capacity.providers.nova import NAME as NOVA
from mlops_sdk.capacity.providers.nova import NovaLeases
from mlops_sdk.capacity.providers.static import NAME as STATIC
from mlops_sdk.client import Client
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import KeystoneSettings, MlflowSettings, PerRun, Settings, StaticHost
from mlops_sdk.errors import AccessDenied, MlopsError, RemoteError
from mlops_sdk.identity.credential import CredentialRequest
from mlops_sdk.identity.environment import check_environment
from mlops_sdk.identity.s3_token import login_file
from mlops_sdk.identity.sts import StsTokens
from mlops_sdk.names import resource_name
from mlops_sdk.objects import ObjectStore
from mlops_sdk.registry.mlflow_api import MlflowApi, MlflowFailure
from mlops_sdk.remote.pool import pool_host
from mlops_sdk.remote.ssh import run_once

_TIMEOUT_S = 10.0
_AT_ONCE = 8
_NO_MACHINE = {  # of providers whose machines are there before anybody leases them
    ironic.NAME: "ask the operator to make this project the owner or lessee of its machines",
    STATIC: "name hosts in static_hosts",
}


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
    client = Client(settings)
    examinations: dict[str, Callable[[], str]] = {
        "environment": lambda: _environment(client),
        "S3 conditional PUT": lambda: _s3(client),
        "S3 logins of runs": lambda: _s3_of_runs(client),
        "Keystone login and minting": lambda: _keystone(client),
        **{f"machines of {name}": partial(machines_seen, client, name) for name in client.services.providers},
        "MLflow login": lambda: _mlflow(settings.mlflow),
    }
    first = Check(name="settings", ok=True, detail=f"deployment {settings.deployment_id}")
    return [first, *(_check(name, examination) for name, examination in examinations.items())]


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
    with _login_of_a_run(client, ironic.NAME) as login:
        if client.settings.ironic:
            list(client.services.connect(login).list_machines())
        else:
            Cloud(login).user_id()
    return "minted, used and revoked a run's application credential"


@contextmanager
def _login_of_a_run(client: Client, provider: str) -> Generator[KeystoneSettings]:
    services, settings = client.services, client.settings
    now = services.now()
    request = CredentialRequest(
        run_id=uuid.uuid4(),
        deployment_id=settings.deployment_id,
        generation=1,
        deadline=now + timedelta(seconds=60),
        grace_s=0,
        provider=provider,
    )
    try:
        yield services.broker.mint(request, now=now).login(settings.keystone)
    finally:
        services.broker.revoke(request.name)


def _servers(client: Client, leases: NovaLeases) -> str:
    """What leasing servers needs; and that a run's own login may look for them at Nova and Neutron."""
    words = leases.examine()
    with _login_of_a_run(client, NOVA) as login:
        client.services.provider(NOVA, login=login).inspect(Held(name=resource_name(uuid.uuid4(), 1, 0)))
    return words


def machines_seen(client: Client, provider: str) -> str:
    """That it shows us machines, and that those of the fixed pool let us in."""
    leases = client.services.provider(provider)
    if isinstance(leases, NovaLeases):
        return _servers(client, leases)
    found = list(leases.pool())
    if not found and provider in _NO_MACHINE:
        raise RemoteError(f"{provider} shows us no machine", seen="its list is empty", next_step=_NO_MACHINE[provider])
    if provider == STATIC:
        log_in_to_pool(client.settings)
    free = sum(machine.free for machine in found)
    out = sum(not machine.in_service for machine in found)
    words = f"{len(found)} visible to this project, {free} free, {out} out of service"
    return _with_images(client.settings, found, words) if provider == ironic.NAME else words


def _with_images(settings: Settings, found: Sequence[PoolMachine], words: str) -> str:
    """Which classes of bare metal nothing is configured to be written to."""
    bare = sorted({m.resource_class for m in found if not settings.instance_info_for(m.resource_class)})
    if not bare:
        return words
    return (
        f"warning: {words}; ironic_images names no image for {', '.join(bare)}: leases on these fail, unless "
        "their deploy interface needs none"
    )


def log_in_to_pool(settings: Settings) -> None:
    """Log in to each host of the fixed pool, and out again.

    Raises:
        RemoteError: naming every host that does not let us in.
    """

    def trouble_with(host: StaticHost) -> str:
        try:
            login_s = min(_TIMEOUT_S, settings.lease.ssh_timeout_s)
            run_once(pool_host(settings, host), ["true"], login_s=login_s, timeout_s=_TIMEOUT_S)
        except MlopsError as error:
            return f"{host.name}: {error.seen or error.what}"
        return ""

    with ThreadPoolExecutor(_AT_ONCE) as logins:
        failed = [trouble for trouble in logins.map(trouble_with, settings.static_hosts) if trouble]
    if failed:
        raise RemoteError(
            f"{len(failed)} of {len(settings.static_hosts)} hosts of the fixed pool do not let us in",
            seen="; ".join(failed),
            next_step="see that they are on, and that the account has the pool's public key in its authorized_keys",
        )


def _mlflow(settings: MlflowSettings) -> str:
    api = MlflowApi(settings, timeout_s=_TIMEOUT_S)
    try:
        api.get("experiments/search", max_results="1")
        user = api.get("users/get", username=settings.username).get("user", {}) if settings.username else {}
    except MlflowFailure as failure:
        raise RemoteError(
            f"MLflow at {settings.tracking_uri!r} does not answer as MLflow with authentication does",
            seen=f"{failure.status} {failure.code} {failure.message}",
            next_step="check mlflow.tracking_uri, and that the server was started with --app-name basic-auth",
        ) from None
    if not settings.username:
        return f"warning: {settings.tracking_uri} lets everybody in: whoever reaches it can change the registry"
    if user.get("is_admin"):
        return (
            f"warning: {settings.username!r} is an administrator: it can change what other environments registered; "
            "give this one a user of its own (docs/permissions.md)"
        )
    return f"{settings.tracking_uri} knows {settings.username!r}, who is no administrator"
