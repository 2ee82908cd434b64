"""Keystone in memory: tokens, application credentials and their access rules, with the answers of the real one."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlops_sdk.testing.http_cloud.messages import Answer, Call

PROJECT = "project-ours"
_FAR = "2099-01-01T00:00:00.000000Z"  # keystoneauth asks the real clock whether a token ends soon
Rule = tuple[str, str, str]
"""Service, method and path."""


@dataclass(slots=True, kw_only=True)
class Credential:
    """An application credential as Keystone keeps it."""

    id: str
    user: str
    name: str
    secret: str
    description: str
    expires_at: str
    rules: tuple[str, ...]
    """Ids of its access rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Whom a token stands for."""

    user: str
    credential: str = ""
    """Id of the application credential, or empty for a password."""
    credential_name: str = ""


@dataclass(slots=True, kw_only=True)
class FakeKeystone:
    """One Keystone.

    Attributes:
        passwords: Users and their passwords; a user's id is ``id-<name>``.
        catalogue: Service types and their addresses.
        credentials: By id.
        rules: Access rules by id. Equal ones of a user are one, and they outlive the credentials.
        revoked: Tokens that are refused from now on, though nobody deleted what they stand for.
    """

    passwords: Mapping[str, str]
    catalogue: Mapping[str, str]
    credentials: dict[str, Credential] = field(default_factory=dict[str, Credential])
    rules: dict[str, Rule] = field(default_factory=dict[str, Rule])
    tokens: dict[str, Login] = field(default_factory=dict[str, Login])
    revoked: set[str] = field(default_factory=set[str])
    _numbers: int = 0

    def handle(self, call: Call) -> Answer:
        """Carry out one request."""
        if call.path == "/v3/auth/tokens" and call.method == "POST":
            return self._log_in(call.body["auth"])
        if call.path in {"/", "/v3", "/v3/"}:
            return Answer(status=200, body=_VERSIONS)
        login = self.login_of(call)
        if login is None:
            return refused()
        if login.credential:
            return _fault(403, "You are not authorized to perform the requested action with this credential.")
        return self._of_user(call, login.user)

    def _of_user(self, call: Call, user: str) -> Answer:
        parts = [*call.path.removeprefix("/v3/users/").split("/"), ""]
        if parts[0] == f"id-{user}" and parts[1] == "application_credentials":
            return self._credentials(call, user, parts[2])
        if parts[0] == f"id-{user}" and parts[1] == "access_rules":
            return self._access_rules(call, parts[2])
        return _fault(404, f"({call.path}): The resource could not be found.")

    def login_of(self, call: Call) -> Login | None:
        """Whom a call's token stands for; None for a token that is not good (any more)."""
        token = call.headers.get("x-auth-token", "")
        login = self.tokens.get(token)
        if login is None or token in self.revoked:
            return None
        return login if not login.credential or login.credential in self.credentials else None

    def allows(self, login: Login, call: Call) -> bool:
        """Whether the access rules of a login, if it has any, let a call pass."""
        if not login.credential:
            return True
        wanted = (self.rules[rule] for rule in self.credentials[login.credential].rules)
        return any(
            service == call.service and method == call.method and _matches(path, call.path)
            for service, method, path in wanted
        )

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _log_in(self, auth: Mapping[str, Any]) -> Answer:
        identity = auth["identity"]
        if identity["methods"] == ["password"]:
            user = identity["password"]["user"]
            if self.passwords.get(user["name"]) != user["password"]:
                return refused()
            return self._issue(Login(user=user["name"]), identity["methods"])
        asked = identity["application_credential"]
        found = self.credentials.get(asked["id"])
        if found is None:
            return _fault(404, f"Could not find Application Credential: {asked['id']}.")
        if found.secret != asked["secret"]:
            return refused()
        return self._issue(Login(user=found.user, credential=found.id, credential_name=found.name), identity["methods"])

    def _issue(self, login: Login, methods: list[str]) -> Answer:
        token = f"token-{self._number()}"
        self.tokens[token] = login
        domain = {"id": "default", "name": "Default"}
        body = {
            "methods": methods,
            "user": {"id": f"id-{login.user}", "name": login.user, "domain": domain},
            "project": {"id": PROJECT, "name": "ours", "domain": domain},
            "roles": [{"id": "role-member", "name": "member"}],
            "audit_ids": [token],
            "issued_at": "2026-01-01T00:00:00.000000Z",
            "expires_at": _FAR,
            "catalog": [
                {"id": kind, "type": kind, "name": kind, "endpoints": [_endpoint(kind, url)]}
                for kind, url in self.catalogue.items()
            ],
        }
        return Answer(status=201, body={"token": body}, headers={"X-Subject-Token": token})

    def _credentials(self, call: Call, user: str, ident: str) -> Answer:
        own = [found for found in self.credentials.values() if found.user == user]
        if call.method == "POST":
            return self._create(user, call.body["application_credential"])
        if call.method == "DELETE":
            if self.credentials.pop(ident, None) is None:
                return _fault(404, f"Could not find Application Credential: {ident}.")
            return Answer(status=204)
        if not ident:
            name = call.query.get("name")
            shown = [_shown(found) for found in own if name in {None, found.name}]
            return Answer(status=200, body={"application_credentials": shown, "links": {}})
        found = self.credentials.get(ident)
        if found is None:
            return _fault(404, f"Could not find Application Credential: {ident}.")
        return Answer(status=200, body={"application_credential": _shown(found)})

    def _create(self, user: str, wanted: Mapping[str, Any]) -> Answer:
        if any(found.name == wanted["name"] and found.user == user for found in self.credentials.values()):
            return _fault(409, "Conflict occurred attempting to store application_credential - Duplicate entry.")
        made = Credential(
            id=f"credential-{self._number()}",
            user=user,
            name=str(wanted["name"]),
            secret=str(wanted["secret"]),
            description=str(wanted.get("description") or ""),
            expires_at=str(wanted.get("expires_at") or ""),
            rules=tuple(self._rule(raw) for raw in wanted.get("access_rules") or ()),
        )
        self.credentials[made.id] = made
        return Answer(status=201, body={"application_credential": {**_shown(made), "secret": made.secret}})

    def _rule(self, raw: Mapping[str, str]) -> str:
        rule = (raw["service"], raw["method"], raw["path"])
        known = next((ident for ident, found in self.rules.items() if found == rule), "")
        ident = known or f"rule-{self._number()}"
        self.rules[ident] = rule
        return ident

    def _access_rules(self, call: Call, ident: str) -> Answer:
        if call.method == "GET":
            shown = [{"id": i, "service": r[0], "method": r[1], "path": r[2]} for i, r in self.rules.items()]
            return Answer(status=200, body={"access_rules": shown, "links": {}})
        if ident not in self.rules:
            return _fault(404, f"Could not find Access Rule: {ident}.")
        if any(ident in found.rules for found in self.credentials.values()):
            return _fault(403, f"Access rule {ident} is in use by an application credential.")
        del self.rules[ident]
        return Answer(status=204)


def refused() -> Answer:
    """401, in Keystone's words."""
    return _fault(401, "The request you have made requires authentication.")


def _fault(status: int, words: str) -> Answer:
    return Answer(status=status, body={"error": {"code": status, "message": words, "title": ""}})


def _shown(found: Credential) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "description": found.description,
        "expires_at": found.expires_at,
        "project_id": PROJECT,
        "unrestricted": False,
        "roles": [],
    }


def _endpoint(kind: str, url: str) -> dict[str, str]:
    return {"id": f"{kind}-public", "interface": "public", "region": "RegionOne", "region_id": "RegionOne", "url": url}


def _matches(pattern: str, path: str) -> bool:
    """As Keystone's middleware does it: ``*`` is one part of a path."""
    return _compiled(pattern).fullmatch(path) is not None


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern).replace(".*", "[^/]*"))


_VERSIONS = {
    "version": {
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": "http://keystone.invalid/v3/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }
}
