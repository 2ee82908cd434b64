"""The files that a running stack leaves for its users: client.toml, reaper.toml, admin.json. All 0600."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from mlops_sdk.identity.s3_policy import ROLE_NAME
from mlops_sdk.local.flavors import EXPECTED, NETWORK
from mlops_sdk.local.inventory import IMAGE_NAME
from mlops_sdk.local.layout import write_private, write_private_json
from mlops_sdk.local.services.ceph import s3_keys
from mlops_sdk.local.services.keystone import CLEANER, OTHER_PROJECT, OUR_PROJECT, SERVICE_PROJECT, identity
from mlops_sdk.local.services.mlflow import ADMIN as MLFLOW_ADMIN
from mlops_sdk.local.site import BUCKET, REGION, Site

# A stack on one computer deploys a machine in seconds; the defaults are for machines that take minutes.
LEASE: Final = {
    "renew_for_s": 20.0,
    "notice_s": 15.0,
    "poll_s": 0.5,
    "reaper_period_s": 3.0,
    "clock_skew_s": 1.0,
    "ssh_timeout_s": 30.0,
    "deploy_timeout_s": 120.0,
    "clean_timeout_s": 120.0,
}
S3_OF_RUNS: Final = {"per_run": "sts", "run_role": f"arn:aws:iam:::role/{ROLE_NAME}"}
PRICES: Final = {"gpu.h200.8x": 0.0083}
COST: Final = {"storage_gib_month": 0.02, "serving_second": 0.0005}


def write_settings(site: Site, *, nova: bool = False) -> None:
    """Write all three, each atomically; with `nova`, servers of it can be leased too."""
    auth_url = f"{site.url('keystone')}/v3"
    found = identity(site)
    user = {"username": "mlops", "password": site.secrets.keystone_mlops, "project_name": OUR_PROJECT}
    reaper = {
        "application_credential_id": found["reaper_credential_id"],
        "application_credential_secret": site.secrets.reaper_credential,
    }
    common = {"auth_url": auth_url, "region": REGION}
    write_private(site.layout.client_toml, to_toml(_settings(site, {**common, **user}, nova=nova)))
    of_reaper = _settings(site, {**common, **reaper}, nova=nova)
    if nova:
        cleaner = {"username": CLEANER, "password": site.secrets.keystone_cleaner, "project_name": SERVICE_PROJECT}
        of_reaper["nova"] = {**of_reaper["nova"], "service_login": {**common, **cleaner}}
    of_reaper["lease"] = {**LEASE, "metrics_file": str(site.layout.reaper_figures)}
    write_private(site.layout.reaper_toml, to_toml(of_reaper))
    write_private_json(
        site.layout.admin_json,
        {
            "auth_url": auth_url,
            "region": REGION,
            "admin_username": "admin",
            "admin_password": site.secrets.keystone_admin,
            "mlflow_admin_username": MLFLOW_ADMIN,
            "mlflow_admin_password": site.secrets.mlflow_admin,
            "ironic_url": site.url("ironic"),
            "bmc_url": site.url("bmc"),
            "projects": found["projects"],
            "other_tenant": {
                "username": "other",
                "password": site.secrets.keystone_other,
                "project_name": OTHER_PROJECT,
            },
        },
    )


def to_toml(value: Mapping[str, Any], *, inside: str = "") -> str:
    """TOML of strings, numbers, booleans, lists of these, and nested tables. JSON strings are TOML strings."""
    plain = [f"{json.dumps(key)} = {json.dumps(item)}" for key, item in value.items() if not isinstance(item, Mapping)]
    tables = {f"{inside}{json.dumps(key)}": item for key, item in value.items() if isinstance(item, Mapping)}
    text = [f"\n[{name}]\n{to_toml(item, inside=f'{name}.')}" for name, item in tables.items()]
    return "\n".join((*plain, *text)) + "\n"


def ironic_images(site: Site) -> dict[str, dict[str, str]]:
    """What Ironic is told to deploy: the Python environment that the machines run."""
    return {"*": {"source": f"file://{site.tools.node_image}"}}


def _settings(site: Site, keystone: Mapping[str, str], *, nova: bool) -> dict[str, Any]:
    keys = s3_keys(site, "mlops")
    return {
        "deployment_id": site.secrets.deployment_id,
        "broker_key": site.secrets.broker_key,
        "owner": "local",
        "s3": {
            "endpoint": site.url("rgw"),
            "node_endpoint": site.node_url("rgw"),
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            "bucket": BUCKET,
            **S3_OF_RUNS,
        },
        "keystone": dict(keystone),
        "mlflow": {
            "tracking_uri": site.url("mlflow"),
            "username": "mlops",
            "password": site.secrets.mlflow_mlops,
        },
        "lease": LEASE,
        "ironic_images": ironic_images(site),
        "node_seconds_price": dict(PRICES),
        "cost": dict(COST),
        **({"nova": {"networks": [NETWORK], "image": IMAGE_NAME, "flavors": EXPECTED}} if nova else {}),
    }
