"""The connection types: which extras each has, and how Airflow's form shows them. Pure data.

Hooks take their allow-list from here and the provider description its forms: a field that a person sees is a field that
a hook reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """One field in a connection's extra."""

    label: str
    description: str = ""
    kind: Literal["string", "object"] = "string"
    secret: bool = False

    def to_json(self) -> dict[str, Any]:
        """As `conn-fields` of the provider description has it."""
        schema: dict[str, Any] = {"type": [self.kind, "null"]}
        if self.secret:
            schema["format"] = "password"
        field: dict[str, Any] = {"label": self.label, "schema": schema}
        return field | ({"description": self.description} if self.description else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One connection type."""

    conn_type: str
    name: str
    hook_class: str
    extras: Mapping[str, Extra]
    relabeling: Mapping[str, str]
    hidden: tuple[str, ...]
    placeholders: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """As `connection-types` of the provider description has it."""
        return {
            "connection-type": self.conn_type,
            "hook-name": self.name,
            "hook-class-name": self.hook_class,
            "conn-fields": {name: extra.to_json() for name, extra in self.extras.items()},
            "ui-field-behaviour": {
                "hidden-fields": list(self.hidden),
                "relabeling": dict(self.relabeling),
                "placeholders": dict(self.placeholders),
            },
        }


OPENSTACK = Form(
    conn_type="mlops_openstack",
    name="OpenStack for MLOps (Keystone, Ironic)",
    hook_class="mlops_hooks.openstack.OpenStackHook",
    extras={
        "region": Extra(label="Region"),
        "project_name": Extra(label="Project"),
        "user_domain_name": Extra(label="Domain of the user"),
        "project_domain_name": Extra(label="Domain of the project"),
        "application_credential_id": Extra(
            label="Application credential", description="Its id; instead of user name and password"
        ),
        "application_credential_secret": Extra(label="Secret of the application credential", secret=True),
        "deployment_id": Extra(
            label="Deployment", description="A UUID chosen once; the ids of all runs follow from it"
        ),
        "broker_secret": Extra(
            label="Broker's key",
            description="At least 32 characters; credentials and keys of all runs follow from it",
            secret=True,
        ),
        "owner": Extra(label="Owner", description="Noted on what is leased"),
        "environment": Extra(label="Environment", description="Such as dev or prod; each has a bucket of its own"),
        "currency": Extra(label="Currency"),
        "node_seconds_price": Extra(
            label="Prices", description='Price of one second by resource class: {"gpu.h200.8x": 0.01}', kind="object"
        ),
        "cost": Extra(
            label="Other prices",
            description='Of storage and serving: {"storage_gib_month": 0.02, "serving_second": 0.0005}',
            kind="object",
        ),
        "budget": Extra(
            label="Budget",
            description='For each owner and month: {"per_month": 500, "owners": {"ada": 900}, "raised_by": "ops"}',
            kind="object",
        ),
        "ironic": Extra(label="Has Ironic", description="false where the cloud has none; true unless given"),
        "ironic_images": Extra(
            label="Images for Ironic",
            description='By resource class, "*" for every other: {"*": {"source": "http://images/node.qcow2", '
            '"checksum": "SHA-256"}}',
            kind="object",
        ),
        "static_hosts": Extra(
            label="Pool of hosts",
            description='By name: {"lab-1": {"address": "192.0.2.11", "user": "mlops", '
            '"host_public_key": "ssh-ed25519 AAAA...", "resource_class": "lab.a100.4x"}}',
            kind="object",
        ),
        "static_gateways": Extra(
            label="Gateways of that pool",
            description='By name, with address and host_public_key; a host names its own as "gateway"',
            kind="object",
        ),
        "static_private_key": Extra(label="Key of that pool", description="Private key, OpenSSH form", secret=True),
        "nova": Extra(
            label="Servers of Nova",
            description='{"networks": ["gpu-net"], "image": "ubuntu-24.04-cuda", '
            '"flavors": {"gpu.h200.8x": {"delivery": "passthrough", "accelerators": 8}}}',
            kind="object",
        ),
        "lease": Extra(
            label="Lease settings",
            description='Times in seconds, for example {"renew_for_s": 120, "deploy_timeout_s": 1800}',
            kind="object",
        ),
    },
    hidden=("port", "schema"),
    relabeling={"host": "Auth URL", "login": "User name"},
    placeholders={"host": "https://keystone.example.org/v3"},
)

S3 = Form(
    conn_type="mlops_s3",
    name="S3 for MLOps (Ceph RGW)",
    hook_class="mlops_hooks.s3.S3Hook",
    extras={
        "node_endpoint": Extra(label="Endpoint for machines", description="If leased machines reach it elsewhere"),
        "region": Extra(label="Region"),
        "bucket": Extra(label="Bucket"),
        "ca_bundle": Extra(label="CA bundle", description="Path of a file with certificates"),
        "per_run": Extra(label="Login of machines", description="sts: each run's own; none: this connection's"),
        "run_role": Extra(label="Role of runs", description="ARN, for sts: arn:aws:iam:::role/mlops-run"),
        "token_s": Extra(label="Life of a token", description="In seconds, for sts; 900 unless given"),
    },
    hidden=("port", "schema"),
    relabeling={"host": "Endpoint URL", "login": "Access key id", "password": "Secret key"},
    placeholders={"host": "https://s3.example.org"},
)

MLFLOW = Form(
    conn_type="mlops_mlflow",
    name="MLflow tracking and registry",
    hook_class="mlops_hooks.mlflow.MlflowHook",
    extras={
        "alias": Extra(label="Alias of what serves", description="champion, or champion-<environment>"),
    },
    hidden=("port", "schema"),
    relabeling={"host": "Tracking URL", "login": "User name"},
    placeholders={"host": "https://mlflow.example.org"},
)

SSH = Form(
    conn_type="mlops_ssh",
    name="SSH host with a pinned key",
    hook_class="mlops_hooks.ssh.SshHook",
    extras={
        "private_key": Extra(label="Private key", description="OpenSSH PEM", secret=True),
        "host_public_key": Extra(
            label="The host's public key", description="One line: ssh-ed25519 AAAA...; no other key is accepted"
        ),
        "gateway_conn_id": Extra(
            label="Gateway", description="Id of the SSH connection to the gateway, where only that reaches the host"
        ),
    },
    hidden=("password", "schema"),
    relabeling={"host": "Address", "login": "Account"},
    placeholders={"port": "22"},
)

VLLM = Form(
    conn_type="mlops_vllm",
    name="vLLM behind a proxy",
    hook_class="mlops_hooks.vllm.VllmHook",
    extras={
        "ssh_conn_id": Extra(label="SSH connection", description="Id of the connection to the serving host"),
        "root": Extra(label="Folder on the host"),
        "python": Extra(label="Python on the host", description="Interpreter of the environment that has vLLM"),
        "haproxy_socket": Extra(label="Socket of haproxy", description="Path on the host"),
        "ports": Extra(label="Ports", description='Of the two slots: {"blue": 8001, "green": 8002}', kind="object"),
        "engine": Extra(label="Engine", description="How vLLM runs there, if not as on a GPU host", kind="object"),
    },
    hidden=("login", "password", "port", "schema"),
    relabeling={"host": "Public base URL"},
    placeholders={"host": "http://10.0.0.5:8000"},
)

FORMS = (OPENSTACK, S3, MLFLOW, SSH, VLLM)
