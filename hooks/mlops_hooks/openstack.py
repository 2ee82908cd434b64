"""`mlops_openstack`: the login to Keystone, and what a deployment is called and charges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from mlops_hooks.connection import ConnectionHook, Fields
from mlops_hooks.forms import OPENSTACK
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import KeystoneSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStackConfig:
    """The login, and the deployment's own settings as `mlops_sdk.config.Settings` takes them (not yet checked)."""

    keystone: KeystoneSettings
    broker_key: SecretStr
    deployment: Mapping[str, Any]


class OpenStackHook(ConnectionHook[OpenStackConfig]):
    """OpenStack through Keystone."""

    form = OPENSTACK

    @classmethod
    def parse(cls, fields: Fields) -> OpenStackConfig:
        """See `ConnectionHook.parse`."""
        login = fields.given(
            "region", "project_name", "user_domain_name", "project_domain_name", "application_credential_id"
        )
        keystone = KeystoneSettings(
            auth_url=fields.required("host"),
            username=fields.login,
            password=fields.password,
            application_credential_secret=fields.secret("application_credential_secret"),
            **login,
        )
        deployment = fields.given(
            "deployment_id",
            "owner",
            "environment",
            "currency",
            "node_seconds_price",
            "cost",
            "budget",
            "ironic",
            "ironic_images",
            "lease",
        )
        deployment |= fields.given("nova")
        for kind, named in fields.given("static_hosts", "static_gateways").items():
            deployment[kind] = [{"name": name, **one} for name, one in named.items()]
            deployment["static_key"] = fields.secret("static_private_key")
        return OpenStackConfig(keystone=keystone, broker_key=fields.secret("broker_secret"), deployment=deployment)

    def get_conn(self) -> Cloud:
        """A login to the cloud; logs in at its first call."""
        return Cloud(self.settings().keystone)

    def ask(self) -> str:
        """A token from Keystone."""
        keystone = self.settings().keystone
        user_id = Cloud(keystone, attempts=1).user_id()
        return f"Keystone at {keystone.auth_url} gave a token for {keystone.username or user_id!r}"
