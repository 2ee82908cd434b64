"""The passwords and keys of a stack: random, chosen once per state directory, kept in one 0600 file."""

from __future__ import annotations

import base64
import json
import secrets
import uuid
from dataclasses import asdict, dataclass, field

from mlops_sdk.local.layout import Layout, write_private_json


def _token() -> str:
    return secrets.token_urlsafe(32)


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _sts_key() -> str:
    return secrets.token_urlsafe(12)  # 16 characters, RGW takes no other length


def _uuid() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Everything secret that the stack itself chooses. Ceph chooses the S3 keys; see `services.ceph`."""

    deployment_id: str = field(default_factory=_uuid)
    broker_key: str = field(default_factory=_token, repr=False)
    keystone_admin: str = field(default_factory=_token, repr=False)
    keystone_ironic: str = field(default_factory=_token, repr=False)
    keystone_mlops: str = field(default_factory=_token, repr=False)
    keystone_other: str = field(default_factory=_token, repr=False)
    keystone_cleaner: str = field(default_factory=_token, repr=False)
    keystone_compute: str = field(default_factory=_token, repr=False)
    rabbitmq: str = field(default_factory=_token, repr=False)
    reaper_credential: str = field(default_factory=_token, repr=False)
    mlflow_admin: str = field(default_factory=_token, repr=False)
    mlflow_mlops: str = field(default_factory=_token, repr=False)
    mlflow_flask: str = field(default_factory=_token, repr=False)
    bmc_password: str = field(default_factory=_token, repr=False)
    airflow_mlops: str = field(default_factory=_token, repr=False)
    airflow_jwt: str = field(default_factory=_token, repr=False)
    airflow_api: str = field(default_factory=_token, repr=False)
    airflow_fernet: str = field(default_factory=_fernet_key, repr=False)
    webhook: str = field(default_factory=_token, repr=False)
    rgw_sts: str = field(default_factory=_sts_key, repr=False)
    ceph_fsid: str = field(default_factory=_uuid)
    ceph_osd: str = field(default_factory=_uuid)


def choose_or_load(layout: Layout) -> Secrets:
    """The secrets of this state directory; the first call chooses and stores them, a later one what is new since."""
    known = json.loads(layout.secrets_json.read_text()) if layout.secrets_json.exists() else {}
    chosen = Secrets(**known)
    if asdict(chosen) != known:
        write_private_json(layout.secrets_json, asdict(chosen))
    return chosen
