"""Makes environments as an operator would (docs/permissions.md): user, bucket and role in S3, a user in MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from mlops_sdk.config import MlflowSettings, PerRun, Settings
from mlops_sdk.identity.s3_policy import role_policy, trust_policy
from mlops_sdk.objects import ObjectStore
from mlops_sdk.registry.mlflow_api import MlflowApi


class Operator:
    """Who owns the services of a running stack."""

    def __init__(self, stack: Any) -> None:
        self._stack = stack
        self._ceph = {**os.environ, "CEPH_CONF": str(stack.layout.data("ceph") / "ceph.conf")}
        admin = stack.admin
        self.mlflow = MlflowApi(
            MlflowSettings(
                tracking_uri=stack.settings.mlflow.tracking_uri,
                username=admin["mlflow_admin_username"],
                password=SecretStr(admin["mlflow_admin_password"]),
            )
        )

    def environment(self, name: str, **keystone: str) -> Settings:
        """Settings of a new environment, with everything that they name; `keystone` is its user and project."""
        own = f"{name}-{uuid.uuid4().hex[:8]}"
        ours = self._stack.settings
        password = SecretStr(uuid.uuid4().hex)
        self.mlflow.post("users/create", username=own, password=password.get_secret_value())
        settings: Settings = ours.model_copy(
            update={
                "environment": name,
                "owner": own,
                "deployment_id": uuid.uuid4(),
                "broker_key": SecretStr(uuid.uuid4().hex * 2),
                "s3": ours.s3.model_copy(update=self._s3(own)),
                "mlflow": ours.mlflow.model_copy(
                    update={"username": own, "password": password, "alias": f"champion-{name}"}
                ),
                "keystone": ours.keystone.model_copy(
                    update={key: SecretStr(value) if key == "password" else value for key, value in keystone.items()}
                ),
            }
        )
        ObjectStore.open(settings.s3).ensure_bucket()
        return settings

    def _s3(self, own: str) -> dict[str, Any]:
        made = json.loads(self._radosgw("user", "create", f"--uid={own}", f"--display-name={own}"))["keys"][0]
        role = f"--role-name=run-{own}"
        trust = trust_policy(f"arn:aws:iam:::user/{own}", f"run-{own}")
        self._radosgw("role", "create", role, f"--assume-role-policy-doc={trust}")
        self._radosgw("role-policy", "put", role, "--policy-name=runs", f"--policy-doc={role_policy(own)}")
        return {
            "access_key_id": made["access_key"],
            "secret_access_key": SecretStr(made["secret_key"]),
            "bucket": own,
            "per_run": PerRun.STS,
            "run_role": f"arn:aws:iam:::role/run-{own}",
        }

    def _radosgw(self, *arguments: str) -> str:
        argv: list[str | Path] = ["radosgw-admin", *arguments]
        return subprocess.run(argv, env=self._ceph, check=True, capture_output=True, text=True, timeout=60).stdout
