"""One Keystone application credential per run and generation: minted look-up-or-create, narrow, short-lived, revoked.

The secret is derived from the broker key before the call, so a lost reply loses nothing: whoever holds the broker key
derives it again. The credential can do on Ironic what a run does and no more; its rules on allocations hold the run's
own names, so that one run cannot delete another's allocation.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from pydantic import SecretStr

from mlops_sdk.capacity.lease import DEFAULT_PROVIDER, to_iso
from mlops_sdk.config import KeystoneSettings
from mlops_sdk.errors import LeaseLost
from mlops_sdk.identity.audit import Audit
from mlops_sdk.identity.credential_marker import CredentialMarker
from mlops_sdk.identity.nova_rules import NOVA_CALLS
from mlops_sdk.names import ResourceName, derive_secret, parse_resource_name, resource_name

ROLES = ("member", "reader")
_ALLOCATIONS = "/v1/allocations/"


class NameTaken(Exception):
    """A typed signal to the flow: the name exists already, look again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRule:
    """One call that a credential may make."""

    service: str
    method: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRule:
    """An access rule as Keystone keeps it: shared by a user's credentials, and still there when they are gone."""

    id: str
    path: str

    @property
    def run_piece(self) -> ResourceName | None:
        """Whose it is, when it names a run's allocations; such a rule is of use to no other run."""
        return parse_resource_name(self.path.removeprefix(_ALLOCATIONS).replace("*", "0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCredential:
    """An application credential as Keystone shows it (never its secret)."""

    id: str
    name: str
    description: str = ""

    @property
    def marker(self) -> CredentialMarker | None:
        """Our marker in the description, or None."""
        return CredentialMarker.parse(self.description)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCredential:
    """What a run logs in with."""

    id: str
    name: str
    secret: SecretStr = field(repr=False)
    expires_at: datetime

    def login(self, broker: KeystoneSettings) -> KeystoneSettings:
        """Settings that log in as this credential at the broker's cloud."""
        return KeystoneSettings(
            auth_url=broker.auth_url,
            region=broker.region,
            application_credential_id=self.id,
            application_credential_secret=self.secret,
        )


class CredentialApi(Protocol):
    """The calls that leave the process."""

    def find(self, name: str) -> StoredCredential | None:
        """The credential of this name."""
        ...

    def list(self) -> Iterator[StoredCredential]:
        """All credentials of the user."""
        ...

    def create(
        self,
        *,
        name: str,
        secret: str,
        description: str,
        expires_at: datetime,
        roles: Sequence[str],
        access_rules: Sequence[AccessRule],
    ) -> StoredCredential:
        """Store a credential. Raises `NameTaken`."""
        ...

    def delete(self, credential_id: str) -> bool:
        """Delete; False when it was gone."""
        ...

    def access_rules(self) -> Iterator[StoredRule]:
        """All access rules of the user."""
        ...

    def delete_access_rule(self, rule_id: str) -> bool:
        """Delete; False when it was gone or is in use."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialRequest:
    """For which generation of which run a credential is wanted, and how long it lives.

    Keystone fixes the expiry of a credential for ever: a lease that is extended gets another one, by the next `number`.
    """

    run_id: uuid.UUID
    deployment_id: uuid.UUID
    generation: int
    deadline: datetime
    grace_s: float
    number: int = 0
    provider: str = DEFAULT_PROVIDER

    @property
    def name(self) -> str:
        """The credential's name, unique per user: ``...-cred``, and ``...-cred1`` after the lease was extended once."""
        return resource_name(self.run_id, self.generation, f"cred{self.number or ''}")


class CredentialBroker:
    """Mints and revokes the credentials of runs.

    Args:
        api: Keystone, through the broker's login.
        broker_key: What the secrets are derived from.
        audit: Where each of both is written down; None: nowhere, for fakes.
    """

    def __init__(self, api: CredentialApi, broker_key: SecretStr, audit: Audit | None = None) -> None:
        self.audit = audit or Audit(None, "nobody")
        self._api = api
        self._broker_key = broker_key

    def mint(self, request: CredentialRequest, *, now: datetime) -> RunCredential:
        """The credential of this generation, created if it is not there. Idempotent.

        Raises:
            LeaseLost: the name belongs to somebody else.
            ServiceUnavailable: Keystone is away, or S3, so that it could not be written down.
        """
        about = {"run_id": str(request.run_id), "generation": request.generation, "deadline": to_iso(request.deadline)}
        with self.audit.around("credential.mint", request.name, must=True, **about) as outcome:
            credential = self._mint(request, now)
            outcome.update(credential_id=credential.id, expires_at=to_iso(credential.expires_at))
        return credential

    def _mint(self, request: CredentialRequest, now: datetime) -> RunCredential:
        found = self._api.find(request.name)
        if found is None:
            try:
                found = self._create(request, now)
            except NameTaken:
                found = self._api.find(request.name)
        marker = None if found is None else found.marker
        if found is None or marker is None or marker.run_id != str(request.run_id):
            raise LeaseLost(
                f"the application credential name {request.name!r} is taken",
                seen="it exists and does not carry this run's marker" if found else "it exists but cannot be seen",
                next_step="delete it in Keystone if nobody uses it, or open the next generation",
            )
        return RunCredential(
            id=found.id,
            name=found.name,
            secret=SecretStr(self._secret(request)),
            expires_at=marker.deadline + timedelta(seconds=request.grace_s),
        )

    def revoke(self, name: str, *, still: Callable[[], bool] = lambda: True) -> bool:
        """Delete the credential of this name and the access rules that only it used. False when it was gone already.

        Ironic validates every token with Keystone (no token cache), so from here on a living token is refused too.

        Args:
            name: Of the credential.
            still: Asked last, right before the deletion: whether it is to be deleted. If not, it is kept.
        """
        with self.audit.around("credential.revoke", name, must=False) as outcome:
            found = self._api.find(name)
            if not still():
                outcome["kept"] = True
                return False
            deleted = outcome["was_there"] = found is not None and self._api.delete(found.id)
            self.forget_rules(name)
        return deleted

    def forget_rules(self, name: str) -> None:
        """Delete the access rules that name the run of this credential; Keystone refuses those still in use."""
        for rule in list(self._api.access_rules()):
            piece = rule.run_piece
            if piece is not None and str(replace(piece, index="cred")) == first_name(name):
                self._api.delete_access_rule(rule.id)

    def names_of_rules(self) -> set[str]:
        """Names of the (first) credentials of the generations whose access rules are (still) there."""
        pieces = [rule.run_piece for rule in self._api.access_rules()]
        return {str(replace(piece, index="cred")) for piece in pieces if piece is not None}

    def names_of(self, name: str) -> tuple[str, ...]:
        """The first credential of a generation, by its name, and all others that this generation has now."""
        others = {c.name for c in self._api.list() if c.name != name and first_name(c.name) == name}
        return (name, *sorted(others))

    def stored(self) -> Iterator[StoredCredential]:
        """All credentials of the user, ours or not."""
        return self._api.list()

    def absent(self, name: str) -> bool:
        """Whether Keystone has no credential of this name: the proof of absence."""
        return self._api.find(name) is None

    def _create(self, request: CredentialRequest, now: datetime) -> StoredCredential:
        marker = CredentialMarker(
            run_id=str(request.run_id),
            deployment_id=str(request.deployment_id),
            generation=request.generation,
            created_at=now,
            deadline=request.deadline,
        )
        return self._api.create(
            name=request.name,
            secret=self._secret(request),
            description=str(marker),
            expires_at=request.deadline + timedelta(seconds=request.grace_s),
            roles=ROLES,
            access_rules=run_access_rules(request.run_id, request.generation, request.provider),
        )

    def _secret(self, request: CredentialRequest) -> str:
        key = self._broker_key.get_secret_value()
        raw = derive_secret(key, request.run_id, request.generation, f"keystone-secret{request.number or ''}")
        return base64.urlsafe_b64encode(raw).decode()


def first_name(name: str) -> str:
    """The name of the first credential of the same generation; another name as it is.

    Example:
        >>> first_name("ml-aaaaaaaaaaaa-g1-cred2")
        'ml-aaaaaaaaaaaa-g1-cred'
    """
    parsed = parse_resource_name(name)
    if parsed is None or not parsed.index.startswith("cred"):
        return name
    return str(replace(parsed, index="cred"))


def run_access_rules(run_id: uuid.UUID, generation: int, provider: str = DEFAULT_PROVIDER) -> tuple[AccessRule, ...]:
    """Exactly what a run does at its provider, nothing else.

    On Ironic it makes, reads, renews and deletes allocations of its own names; sees machines; deploys and tears down.
    (A rule holds a method and a path; "its own machines" cannot be said in one.)
    """
    if provider == "nova":
        return tuple(
            AccessRule(service=service, method=method, path=path)
            for service, calls in NOVA_CALLS.items()
            for method, path in calls
        )
    own = f"{_ALLOCATIONS}{resource_name(run_id, generation, 0).removesuffix('0')}*"
    calls = (
        ("POST", "/v1/allocations"),
        ("GET", own),
        ("PATCH", own),
        ("DELETE", own),
        ("GET", "/v1/nodes"),
        ("GET", "/v1/nodes/*"),
        ("GET", "/v1/nodes/*/history"),
        ("PUT", "/v1/nodes/*/states/provision"),
    )
    return tuple(AccessRule(service="baremetal", method=method, path=path) for method, path in calls)
