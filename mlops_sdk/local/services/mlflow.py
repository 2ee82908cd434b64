"""MLflow: tracking and registry on SQLite, artifacts in S3 through the server, users with passwords."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from typing import Final

from mlops_sdk.errors import StackError
from mlops_sdk.local.addresses import LOOPBACK
from mlops_sdk.local.layout import write_private
from mlops_sdk.local.probes import answers_http
from mlops_sdk.local.service import Command, Service
from mlops_sdk.local.services.ceph import s3_keys
from mlops_sdk.local.site import Site, s3_settings
from mlops_sdk.objects import connect_s3

ADMIN: Final = "admin"
USER: Final = "mlops"
_BUCKET: Final = "mlflow"
_TIMEOUT_S: Final = 10.0


def mlflow_services(site: Site) -> tuple[Service, ...]:
    """The tracking server, and the step that gives it a bucket: the server starts slowly, so it does not wait."""
    mlflow = _Mlflow(site)
    return (
        Service(
            name="mlflow",
            heavy=True,
            address=site.url("mlflow"),
            prepare=mlflow.prepare,
            command=mlflow.command,
            probe=lambda: answers_http(site.addresses.mlflow, "/health"),
            finish=mlflow.create_user,
            start_timeout_s=180.0,
        ),
        Service(
            name="mlflow-bucket", needs=("ceph-rgw",), address=f"s3://{_BUCKET}/artifacts", prepare=mlflow.create_bucket
        ),
    )


class _Mlflow:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._root = site.layout.data("mlflow")
        self._config = self._root / "basic_auth.ini"
        self._keys = self._root / "s3-credentials"

    def prepare(self) -> None:
        self._root.mkdir(mode=0o700, exist_ok=True)
        values = {"root": self._root, "password": self._site.secrets.mlflow_admin, "admin": ADMIN}
        self._site.render("mlflow_auth.ini", values, self._config)

    def create_bucket(self) -> None:
        """Make the bucket and tell the server its keys; it reads them when it first needs them."""
        keys = s3_keys(self._site, "mlflow")
        settings = s3_settings(self._site, keys.access_key_id, keys.secret_access_key)
        connect_s3(settings).create_bucket(Bucket=_BUCKET)  # one's own bucket may be created again
        lines = (f"aws_access_key_id = {keys.access_key_id}", f"aws_secret_access_key = {keys.secret_access_key}")
        write_private(self._keys, "\n".join(("[default]", *lines, "")))

    def command(self) -> Command:
        port = self._site.addresses.mlflow
        return Command(
            argv=(sys.executable, "-m", "mlops_sdk.local.mlflow_server", str(port), LOOPBACK),
            env={
                "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{self._root}/mlflow.db",
                "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{_BUCKET}/artifacts",
                "MLFLOW_AUTH_CONFIG_PATH": str(self._config),
                "MLFLOW_FLASK_SERVER_SECRET_KEY": self._site.secrets.mlflow_flask,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_SERVER_ALLOWED_HOSTS": f"{LOOPBACK}:{port},localhost:{port}",
                "MLFLOW_S3_ENDPOINT_URL": self._site.url("rgw"),
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "AWS_SHARED_CREDENTIALS_FILE": str(self._keys),
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
                "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            },
        )

    def create_user(self) -> None:
        """Make the user of pipelines, unless it is there."""
        body = json.dumps({"username": USER, "password": self._site.secrets.mlflow_mlops}).encode()
        request = urllib.request.Request(  # noqa: S310 - our own http:// address
            f"{self._site.url('mlflow')}/api/2.0/mlflow/users/create",
            data=body,
            headers={"Content-Type": "application/json", "Authorization": self._basic(ADMIN)},
        )
        try:
            urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()  # noqa: S310 - as above
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            if "RESOURCE_ALREADY_EXISTS" not in said:
                raise StackError(
                    f"MLflow refused to create user {USER!r}",
                    seen=f"status {error.code}: {said[:300]}",
                    next_step=f"see {self._site.layout.log('mlflow')}",
                ) from error
        except OSError as error:
            raise StackError(
                "MLflow stopped answering", seen=str(error), next_step=f"see {self._site.layout.log('mlflow')}"
            ) from error

    def _basic(self, user: str) -> str:
        return "Basic " + b64encode(f"{user}:{self._site.secrets.mlflow_admin}".encode()).decode()
