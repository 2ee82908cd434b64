"""Keystone's application credentials on a cloud in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from mlops_sdk.identity import credential as identity
from mlops_sdk.identity.credential import AccessRule, CredentialApi, StoredCredential, StoredRule
from mlops_sdk.testing.cloud_call import CloudCall

if TYPE_CHECKING:
    from mlops_sdk.testing.cloud import FakeCloud


class FakeCredentials(CredentialApi):
    """`CredentialApi` of a `FakeCloud`."""

    def __init__(self, cloud: FakeCloud) -> None:
        self._cloud = cloud

    def find(self, name: str) -> StoredCredential | None:
        """By name."""
        with CloudCall(self._cloud, "find_credential", None):
            return self._cloud.credentials.get(name)

    def list(self) -> Iterator[StoredCredential]:
        """All."""
        with CloudCall(self._cloud, "list_credentials", None):
            return iter(list(self._cloud.credentials.values()))

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
        """Store."""
        del expires_at, roles
        with CloudCall(self._cloud, "create_credential", None):
            if name in self._cloud.credentials:
                raise identity.NameTaken(name)
            rules = {f"rule {rule.method} {rule.path}": rule for rule in access_rules}
            self._cloud.access_rules.update(rules)  # equal rules of one user are one
            self._cloud.rules_of[name] = set(rules)
            stored = StoredCredential(id=f"id-{name}", name=name, description=description)
            self._cloud.credentials[name] = stored
            self._cloud.secrets[stored.id] = secret
            return stored

    def delete(self, credential_id: str) -> bool:
        """Delete."""
        with CloudCall(self._cloud, "delete_credential", None):
            names = [n for n, c in self._cloud.credentials.items() if c.id == credential_id]
            for name in names:
                del self._cloud.credentials[name]
            return bool(names)

    def access_rules(self) -> Iterator[StoredRule]:
        """All."""
        with CloudCall(self._cloud, "list_access_rules", None):
            return iter([StoredRule(id=key, path=rule.path) for key, rule in self._cloud.access_rules.items()])

    def delete_access_rule(self, rule_id: str) -> bool:
        """Delete."""
        with CloudCall(self._cloud, "delete_access_rule", None):
            if any(rule_id in used for name, used in self._cloud.rules_of.items() if name in self._cloud.credentials):
                return False
            return self._cloud.access_rules.pop(rule_id, None) is not None
