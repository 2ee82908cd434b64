"""Keystone's application credential calls, as plain requests of the user we are logged in as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mlops_sdk.cloud import Cloud
from mlops_sdk.identity.credential import AccessRule, CredentialApi, NameTaken, StoredCredential, StoredRule

_NOT_FOUND = 404
_CONFLICT = 409


class KeystoneCredentials(CredentialApi):
    """`CredentialApi` over HTTP. Minting needs a user, or an unrestricted application credential."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def find(self, name: str) -> StoredCredential | None:
        """The credential of this name, which Keystone keeps unique per user."""
        return next(iter(self._list({"name": name})), None)

    def list(self) -> Iterator[StoredCredential]:
        """All application credentials of the user."""
        return self._list({})

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
        """Store a restricted credential with a secret of our choice."""
        body = {
            "name": name,
            "secret": secret,
            "description": description,
            "expires_at": expires_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "roles": [{"name": role} for role in roles],
            "access_rules": [{"service": r.service, "method": r.method, "path": r.path} for r in access_rules],
            "unrestricted": False,
        }
        reply = self._cloud.request(
            "identity", "POST", self._path(), body={"application_credential": body}, accept={_CONFLICT}
        )
        if reply.status == _CONFLICT:
            raise NameTaken(f"an application credential named {name!r} exists already")
        return _parse(reply.body["application_credential"])

    def delete(self, credential_id: str) -> bool:
        """Delete a credential; False when it was gone."""
        return self._delete(self._path(credential_id))

    def access_rules(self) -> Iterator[StoredRule]:
        """All access rules of the user."""
        reply = self._cloud.request("identity", "GET", f"/v3/users/{self._cloud.user_id()}/access_rules")
        for raw in reply.body.get("access_rules", []):
            yield StoredRule(id=str(raw["id"]), path=str(raw.get("path") or ""))

    def delete_access_rule(self, rule_id: str) -> bool:
        """Delete an access rule that no credential uses; False when it was gone or is in use."""
        return self._delete(f"/v3/users/{self._cloud.user_id()}/access_rules/{rule_id}")

    def _list(self, params: Mapping[str, str]) -> Iterator[StoredCredential]:
        reply = self._cloud.request("identity", "GET", self._path(), params=params)
        for raw in reply.body.get("application_credentials", []):
            yield _parse(raw)

    def _delete(self, path: str) -> bool:
        # 403 on an access rule: another credential uses it
        accept = {_NOT_FOUND, 403} if "/access_rules/" in path else {_NOT_FOUND}
        return self._cloud.request("identity", "DELETE", path, accept=accept).status not in accept

    def _path(self, credential_id: str = "") -> str:
        path = f"/v3/users/{self._cloud.user_id()}/application_credentials"
        return f"{path}/{credential_id}" if credential_id else path


def _parse(raw: Mapping[str, Any]) -> StoredCredential:
    return StoredCredential(
        id=str(raw["id"]),
        name=str(raw["name"]),
        description=str(raw.get("description") or ""),
    )
