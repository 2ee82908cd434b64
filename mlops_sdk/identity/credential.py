"""One Keystone application credential per run and generation: minted look-up-or-create, narrow, short-lived, revoked.

The secret is derived from the broker key before the call, so a lost reply loses nothing: whoever holds the broker key
derives it again. The credential can do on Ironic what a run does and no more; its rules on allocations hold the run's
own names, so that one run cannot delete another's allocation.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from pydantic import SecretStr

from mlops_sdk.capacity.lease import from_iso, to_iso
from mlops_sdk.config import KeystoneSettings
from mlops_sdk.errors import LeaseLost
from mlops_sdk.names import derive_secret, resource_name

ROLES = ("member", "reader")


class NameTaken(Exception):
    """A typed signal to the flow: the name exists already, look again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRule:
    """One call that a credential may make."""

    service: str
    method: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCredential:
    """An application credential as Keystone shows it (never its secret).

    `access_rule_ids` are the rules that name this run: Keystone keeps rules when their credential goes, and shares
    equal ones between credentials; only those that nobody else can be using are ours to delete.
    """

    id: str
    name: str
    description: str = ""
    access_rule_ids: tuple[str, ...] = ()

    @property
    def marker(self) -> CredentialMarker | None:
        """Our marker in the description, or None."""
        return CredentialMarker.parse(self.description)


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialMarker:
    """Whose credential it is: kept in its description, because Keystone has no other room."""

    run_id: str
    deployment_id: str
    generation: int
    created_at: datetime
    deadline: datetime

    def __str__(self) -> str:
        raw = {
            "run_id": self.run_id,
            "deployment_id": self.deployment_id,
            "generation": self.generation,
            "created_at": to_iso(self.created_at),
            "deadline": to_iso(self.deadline),
        }
        return json.dumps({"mlops": raw}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def parse(cls, description: str) -> CredentialMarker | None:
        """The marker, or None for a description that is not ours."""
        try:
            raw = json.loads(description)["mlops"]
            return cls(
                run_id=str(raw["run_id"]),
                deployment_id=str(raw["deployment_id"]),
                generation=int(raw["generation"]),
                created_at=from_iso(raw["created_at"]),
                deadline=from_iso(raw["deadline"]),
            )
        except (ValueError, KeyError, TypeError):
            return None


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

    def delete_access_rule(self, rule_id: str) -> bool:
        """Delete; False when it was gone or is in use."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialRequest:
    """For which generation of which run a credential is wanted, and how long it lives."""

    run_id: uuid.UUID
    deployment_id: uuid.UUID
    generation: int
    deadline: datetime
    grace_s: float

    @property
    def name(self) -> str:
        """The credential's name, unique per user."""
        return resource_name(self.run_id, self.generation, "cred")


class CredentialBroker:
    """Mints and revokes the credentials of runs."""

    def __init__(self, api: CredentialApi, broker_key: SecretStr) -> None:
        self._api = api
        self._broker_key = broker_key

    def mint(self, request: CredentialRequest, *, now: datetime) -> RunCredential:
        """The credential of this generation, created if it is not there. Idempotent.

        Raises:
            LeaseLost: the name belongs to somebody else.
        """
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

    def revoke(self, name: str) -> bool:
        """Delete the credential of this name and the access rules that only it used. False when it was gone already.

        Ironic validates every token with Keystone (no token cache), so from here on a living token is refused too.
        """
        found = self._api.find(name)
        if found is None:
            return False
        return self.revoke_found(found)

    def revoke_found(self, found: StoredCredential) -> bool:
        """As `revoke`, for a credential that was just looked up."""
        deleted = self._api.delete(found.id)
        for rule_id in found.access_rule_ids:
            self._api.delete_access_rule(rule_id)
        return deleted

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
            access_rules=run_access_rules(request.run_id, request.generation),
        )

    def _secret(self, request: CredentialRequest) -> str:
        key = self._broker_key.get_secret_value()
        raw = derive_secret(key, request.run_id, request.generation, "keystone-secret")
        return base64.urlsafe_b64encode(raw).decode()


def run_access_rules(run_id: uuid.UUID, generation: int) -> tuple[AccessRule, ...]:
    """Exactly what a run does on Ironic, nothing else.

    It makes, reads, renews and deletes allocations of its own names; sees machines; deploys and tears down. (A rule holds
    a method and a path; "its own machines" cannot be said in one.)
    """
    own = f"/v1/allocations/{resource_name(run_id, generation, 0).removesuffix('0')}*"
    calls = (
        ("POST", "/v1/allocations"),
        ("GET", own),
        ("PATCH", own),
        ("DELETE", own),
        ("GET", "/v1/nodes"),
        ("GET", "/v1/nodes/*"),
        ("PUT", "/v1/nodes/*/states/provision"),
    )
    return tuple(AccessRule(service="baremetal", method=method, path=path) for method, path in calls)


def heartbeat_until(heartbeat: Any | None) -> datetime | None:
    """Until when a run's heartbeat object says it lives; None for a missing or unreadable one."""
    try:
        return None if heartbeat is None else from_iso(str(heartbeat["renewed_until"]))
    except (KeyError, ValueError, TypeError):
        return None
