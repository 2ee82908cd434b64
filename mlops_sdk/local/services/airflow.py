"""Airflow: its database with the stack's connections, and api-server, scheduler, dag-processor and triggerer.

Four processes, each of which the supervisor starts again when it dies. Task processes are the scheduler's children; the
supervisor ends them with it, and the next scheduler starts them again. The metadata is in SQLite, or where
MLOPS_AIRFLOW_DATABASE_URL says.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from mlops_sdk.airflow_rest import AirflowRest
from mlops_sdk.errors import MlopsError
from mlops_sdk.local.layout import write_private_json
from mlops_sdk.local.probes import answers_http
from mlops_sdk.local.service import Command, NotReady, Service
from mlops_sdk.local.services.ceph import s3_keys
from mlops_sdk.local.services.keystone import OUR_PROJECT
from mlops_sdk.local.settings_files import COST, LEASE, PRICES, S3_OF_RUNS, ironic_images
from mlops_sdk.local.site import BUCKET, REGION, Site

DATABASE_VARIABLE: Final = "MLOPS_AIRFLOW_DATABASE_URL"
EXTRA_DAGS_VARIABLE: Final = "MLOPS_AIRFLOW_EXTRA_DAGS"
USER: Final = "mlops"
DATABASE, API = "airflow-db", "airflow-api"
# Two tasks of a run that hold one lease may be far apart: a scheduler or triggerer that was killed lies between them.
_RENEW_FOR_S: Final = 45.0
# What tasks would import at their start, each anew, and what the first trigger would; see mlops_operators.preload.
_PRELOAD_SETTING: Final = "AIRFLOW__MLOPS__PRELOAD_MODULES"
_PRELOAD: Final = "mlops_pipelines.groups,keystoneauth1.session,keystoneauth1.identity.v3"
_PRELOAD_IN_SCHEDULER: Final = f"{_PRELOAD},great_expectations,tokenizers"
_PRELOAD_IN_TRIGGERER: Final = f"{_PRELOAD},airflow.api_fastapi.execution_api.app"
_BUNDLE: Final = "airflow.dag_processing.bundles.local.LocalDagBundle"
_HEALTH_TIMEOUT_S: Final = 3.0
_BUSY_S: Final = 60  # how long a writer waits for another; with SQLite's own 5 s, a slow moment becomes an error
# The api-server writes down who did what in its event loop: while that waits, no other request ends, not even the one
# that holds the database. So it waits for less than anybody's heartbeat; that one request fails then.
_API_BUSY_S: Final = 10

Connections = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AirflowOptions:
    """What the caller's environment chooses.

    Attributes:
        database_url: SQLAlchemy URL of the metadata; empty: SQLite in the state directory. A variable and no flag,
            because it holds a password and arguments are for everybody to see.
        extra_dags: One more folder with DAGs, beside ``dags/`` of the repository.
    """

    database_url: str = field(default="", repr=False)
    extra_dags: Path | None = None

    @classmethod
    def from_environment(cls) -> AirflowOptions:
        """Read both variables."""
        extra = os.environ.get(EXTRA_DAGS_VARIABLE, "")
        return cls(
            database_url=os.environ.get(DATABASE_VARIABLE, ""), extra_dags=Path(extra).absolute() if extra else None
        )


def airflow_services(
    site: Site,
    options: AirflowOptions,
    *,
    api_environment: Mapping[str, str],
    connections: Callable[[], Connections] = dict,
) -> tuple[Service, ...]:
    """Database, api-server, scheduler, dag-processor and triggerer.

    Args:
        site: The stack's place.
        options: What the caller chose.
        api_environment: Beside Airflow's own, for plugins in the api-server.
        connections: More connections than those to the stack's own services, asked for when all else is ready.
    """
    airflow = _Airflow(site, options, connections)
    return (
        Service(name=DATABASE, needs=("settings",), heavy=True, address=airflow.shown_url, prepare=airflow.prepare),
        Service(
            name=API,
            needs=(DATABASE,),
            heavy=True,
            address=site.url("airflow"),
            command=lambda: airflow.command("api-server", env={**airflow.less_patient(), **api_environment}),
            probe=lambda: answers_http(site.addresses.airflow, "/api/v2/monitor/health"),
            finish=airflow.finish_api,
            start_timeout_s=180.0,
        ),
        airflow.component("scheduler", "--skip-serve-logs", env={_PRELOAD_SETTING: _PRELOAD_IN_SCHEDULER}),
        airflow.component("dag-processor"),
        airflow.component("triggerer", "--skip-serve-logs", env={_PRELOAD_SETTING: _PRELOAD_IN_TRIGGERER}),
    )


class _Airflow:
    def __init__(self, site: Site, options: AirflowOptions, more: Callable[[], Connections]) -> None:
        self._site = site
        self._options = options
        self._more = more
        self._root = site.layout.data("airflow")
        self._sqlite = self._root / "airflow.db"

    @property
    def shown_url(self) -> str:
        """Where the metadata is, without its password."""
        return self._options.database_url.rpartition("@")[2] or f"sqlite:///{self._sqlite}"

    def component(self, name: str, *flags: str, env: Mapping[str, str] | None = None) -> Service:
        """A process that serves nothing and whose health the api-server tells."""
        health = _Health(self._site.url("airflow"), name.replace("-", "_"))

        def command() -> Command:
            health.since = datetime.now(UTC)
            return self.command(name, *flags, env=env)

        return Service(
            name=f"airflow-{name}",
            needs=(DATABASE,),
            command=command,
            probe=health.check,
            start_timeout_s=180.0,
            stop_timeout_s=4.0,
        )

    def command(self, *arguments: str, env: Mapping[str, str] | None = None) -> Command:
        return Command(argv=(sys.executable, "-m", "airflow", *arguments), env={**self._env(), **(env or {})})

    def less_patient(self) -> dict[str, str]:
        """The environment of a component that waits for the database only shortly; one on PostgreSQL waits for rows."""
        ours = not self._options.database_url
        return {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._sqlite_url(_API_BUSY_S)} if ours else {}

    def prepare(self) -> None:
        """Configuration, database and connections; quick when they are as they were left."""
        self._root.mkdir(mode=0o700, exist_ok=True)
        self._write_config()
        write_private_json(self._root / "passwords.json", {USER: self._site.secrets.airflow_mlops})
        wanted = {**_connections(self._site), **self._more()}
        done = self._root / "prepared.json"
        mark = self._mark(wanted)
        ours = not self._options.database_url
        if ours and self._sqlite.exists() and done.exists() and json.loads(done.read_text()) == mark:
            return
        script = self._site.tools.infra("airflow", "prepare_airflow.py")
        log = self._site.layout.log("airflow-setup")
        self._site.run([sys.executable, script], log=log, env=self._env(), stdin=json.dumps(wanted))
        if ours:
            write_private_json(done, mark)

    def _mark(self, wanted: Connections) -> str:
        """What the database was made from. A private key follows from the secrets, and its text differs each time."""
        plain = {name: {**fields, "extra": _without_key(fields.get("extra", {}))} for name, fields in wanted.items()}
        parts = (version("apache-airflow"), asdict(self._site.secrets), plain)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def finish_api(self) -> None:
        """Tell users where it is, and let it build its second application now rather than in the first task."""
        access = {"url": self._site.url("airflow"), "username": USER, "password": self._site.secrets.airflow_mlops}
        write_private_json(self._site.layout.airflow_json, access)
        try:
            answers_http(self._site.addresses.airflow, "/execution/health", timeout_s=60.0)
        except NotReady:
            return  # it is only slower then

    def _env(self) -> dict[str, str]:
        return {"AIRFLOW_HOME": str(self._root), "GX_ANALYTICS_ENABLED": "false", "DVC_NO_ANALYTICS": "1"}

    def _sqlite_url(self, busy_s: int) -> str:
        return f"sqlite:///{self._sqlite}?timeout={busy_s}"

    def _write_config(self) -> None:
        secrets = self._site.secrets
        folders = {"mlops": self._site.tools.home / "dags"}
        if self._options.extra_dags is not None:
            folders["extra"] = self._options.extra_dags
        bundles = [{"name": n, "classpath": _BUNDLE, "kwargs": {"path": str(p)}} for n, p in folders.items()]
        values: dict[str, str | int | Path] = {
            "root": self._root,
            "logs": self._site.layout.state_dir / "logs" / "airflow",
            "url": self._site.url("airflow"),
            "port": self._site.addresses.airflow,
            "database_url": self._options.database_url or self._sqlite_url(_BUSY_S),
            "fernet_key": secrets.airflow_fernet,
            "api_secret": secrets.airflow_api,
            "jwt_secret": secrets.airflow_jwt,
            "bundles": json.dumps(bundles),
        }
        escaped = {key: str(value).replace("%", "%%") for key, value in values.items()}
        self._site.render("airflow.cfg", escaped, self._root / "airflow.cfg")


class _Health:
    """What the api-server says of one component; what its predecessor last said does not count."""

    def __init__(self, url: str, part: str) -> None:
        self._airflow = AirflowRest(url, USER, SecretStr(""), timeout_s=_HEALTH_TIMEOUT_S)
        self._part = part
        self.since = datetime.now(UTC)

    def check(self) -> None:
        try:
            said = self._airflow.health().get(self._part) or {}
        except MlopsError as error:
            raise NotReady(str(error)) from error
        beat = said.get(f"latest_{self._part}_heartbeat")
        if said.get("status") != "healthy" or beat is None:
            raise NotReady(f"Airflow's health says {said.get('status') or 'nothing'} of {self._part}")
        if datetime.fromisoformat(str(beat)) < self.since:
            raise NotReady(f"the last heartbeat of {self._part} is of {beat}")


def _without_key(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if name != "private_key"}


def _connections(site: Site) -> dict[str, dict[str, Any]]:
    """How tasks reach the stack's services; their ids are their types."""
    secrets, keys = site.secrets, s3_keys(site, "mlops")
    openstack = {
        "host": f"{site.url('keystone')}/v3",
        "login": "mlops",
        "password": secrets.keystone_mlops,
        "extra": {
            "region": REGION,
            "project_name": OUR_PROJECT,
            "deployment_id": secrets.deployment_id,
            "broker_secret": secrets.broker_key,
            "owner": "local",
            "node_seconds_price": PRICES,
            "cost": COST,
            "ironic_images": ironic_images(site),
            "lease": {**LEASE, "renew_for_s": _RENEW_FOR_S},
        },
    }
    s3 = {
        "host": site.url("rgw"),
        "login": keys.access_key_id,
        "password": keys.secret_access_key,
        "extra": {"node_endpoint": site.node_url("rgw"), "bucket": BUCKET, **S3_OF_RUNS},
    }
    mlflow = {
        "host": site.url("mlflow"),
        "login": "mlops",
        "password": secrets.mlflow_mlops,
    }
    found = {"mlops_openstack": openstack, "mlops_s3": s3, "mlops_mlflow": mlflow}
    return {conn_id: {"conn_type": conn_id, **fields} for conn_id, fields in found.items()}
