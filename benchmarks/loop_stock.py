"""The work of the stock chain of `benchmarks.loop`, step by step: openstacksdk, boto3, the mlflow package, `ssh`.

What a turn *makes* (the corpus, the expectations, the DVC pin, the code bundle, the program on the machine, vLLM's
command line) is what the other chain makes too, by the same functions. Starting, asking and waiting are this module's
and the sensors' of `loop_dags/loop_stock.py`.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.loop_workload import MODEL, LoopSpec
from mlops_sdk.config import MlflowSettings, S3Settings
from mlops_sdk.errors import MlopsError
from mlops_sdk.training.messages import MARK, Progress, decode

if TYPE_CHECKING:
    from airflow.sdk import PokeReturnValue

_CACHE: Final = Path("~/.cache/openinfra-mlops")
_BUILD: Final = "mlops_pipelines.programs.code_lm.corpus:build"
_JOB: Final = "/run/stock"
_POINTS: Final = 1000  # that MLflow takes at once
_PYTHON: Final = "/opt/image/bin/python"
# Each line of the log with its time, as the metrics in it have none.
_STAMP: Final = "import sys,time\nfor line in sys.stdin: print(time.time(), line, end='', flush=True)"
_SSH_OPTIONS: Final = ("BatchMode=yes", "LogLevel=ERROR", "ConnectTimeout=5")


class Access:
    """What a task knows of the deployment: Airflow's connections, each read when it is first needed."""

    @cached_property
    def s3(self) -> S3Settings:
        """The bucket."""
        found = _connection("mlops_s3")
        login = {"access_key_id": found.login, "secret_access_key": found.password}
        return S3Settings.model_validate({"endpoint": found.host, **login, **found.extra_dejson})

    @cached_property
    def mlflow(self) -> MlflowSettings:
        """The tracking server."""
        found = _connection("mlops_mlflow")
        login = {"username": found.login, "password": found.password}
        return MlflowSettings.model_validate({"tracking_uri": found.host, **login, **found.extra_dejson})

    @cached_property
    def data_repository(self) -> str:
        """DVC's repository."""
        return str(_connection("mlops_data").host)

    @cached_property
    def serving(self) -> dict[str, Any]:
        """Where vLLM runs."""
        found = _connection("mlops_vllm")
        return {**found.extra_dejson, "base_url": found.host}

    @cached_property
    def key(self) -> dict[str, str]:
        """The deployment's SSH login: address of the serving host, private and host key."""
        found = _connection("mlops_serve_1")
        return {"address": str(found.host), **found.extra_dejson}

    def bucket(self) -> Any:
        """boto3's client."""
        from mlops_sdk.objects import connect_s3  # noqa: PLC0415 - boto3 takes a moment

        return connect_s3(self.s3)

    def tracking(self) -> Any:
        """The mlflow package's client."""
        os.environ["MLFLOW_TRACKING_USERNAME"] = self.mlflow.username
        os.environ["MLFLOW_TRACKING_PASSWORD"] = self.mlflow.password.get_secret_value()
        from mlflow import MlflowClient  # noqa: PLC0415 - takes seconds

        return MlflowClient(self.mlflow.tracking_uri)

    def baremetal(self) -> Any:
        """The bare metal client of openstacksdk."""
        import openstack  # noqa: PLC0415 - takes a moment

        found = _connection("mlops_openstack")
        return openstack.connect(
            auth={
                "auth_url": found.host,
                "username": found.login,
                "password": found.password,
                "project_name": found.extra_dejson["project_name"],
                "user_domain_name": "Default",
                "project_domain_name": "Default",
            },
            region_name=found.extra_dejson["region"],
            load_yaml_config=False,
            load_envvars=False,
        ).baremetal


# -- plan, data ------------------------------------------------------------------------------------


def plan(params: Mapping[str, Any]) -> dict[str, Any]:
    """What to train: the commit that was posted, else the champion's; and the champion to begin with."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - takes seconds

    try:
        tags = dict(Access().tracking().get_model_version_by_alias(MODEL, "champion").tags)
    except MlflowException:
        tags = {}
    return {
        "repository": params.get("repository") or tags["mlops.git_repository"],
        "commit": params.get("commit") or tags["mlops.git_commit"],
        "champion": {"prefix": tags["mlops.model_prefix"], "sha256": tags["mlops.model_sha256"]} if tags else {},
    }


def validate_data() -> str:
    """Great Expectations on the corpus table; where the result is."""
    from mlops_pipelines.programs.code_lm.table import SUITE, rows  # noqa: PLC0415 - tasks only
    from mlops_sdk.data.gx import check  # noqa: PLC0415 - as above

    access = Access()
    result = check(rows(LoopSpec().data.corpora), SUITE)
    key = f"stock/validations/{uuid.uuid4().hex}.json"
    access.bucket().put_object(Bucket=access.s3.bucket, Key=key, Body=json.dumps(result).encode())
    if not result["success"]:
        raise MlopsError("an expectation does not hold", seen=key)
    return key


def pin_data() -> dict[str, Any]:
    """DVC: the built corpus in the bucket, its revision in the data repository."""
    from mlops_pipelines.programs.code_lm.corpus import build  # noqa: PLC0415 - tasks only
    from mlops_sdk.data.prepared import build_folder  # noqa: PLC0415 - as above
    from mlops_sdk.data.versioning import pin  # noqa: PLC0415 - as above

    access, data, cache = Access(), LoopSpec().data, _CACHE.expanduser()
    arguments: dict[str, Any] = {"kinds": list(data.corpora), "vocabulary": data.vocabulary}
    built = build(build_folder(cache, _BUILD, arguments), **arguments)
    pinned = pin(access.s3, access.data_repository, built, cache=cache / "dvc")
    return {**pinned.to_json(), "key": pinned.key}


# -- machine ---------------------------------------------------------------------------------------


def allocate(name: str) -> str:
    """Ask Ironic for a machine; the allocation's id."""
    wanted = LoopSpec().capacity.resource_class
    return str(Access().baremetal().create_allocation(name=f"stock-{name}", resource_class=wanted).id)


def allocated(allocation: str) -> bool:
    """Whether the machine is chosen."""
    found = Access().baremetal().get_allocation(allocation)
    if found.state == "error":
        raise MlopsError("no machine", seen=str(found.last_error))
    return found.state == "active"


def deploy_machine(allocation: str) -> dict[str, str]:
    """Deploy the machine with the deployment's SSH key; its id and address."""
    access = Access()
    api = access.baremetal()
    node = api.get_node(api.get_allocation(allocation).node_id)
    with _key(access) as key:
        login = subprocess.run(["ssh-keygen", "-y", "-f", key], check=True, capture_output=True, text=True).stdout
        host = Path(key).with_name("host")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host)], check=True)
        private, public = host.read_text(), host.with_suffix(".pub").read_text()
    user_data = {
        "hostname": node.name,
        "ssh_keys": {"ed25519_private": private, "ed25519_public": public},
        "ssh_authorized_keys": [login.strip()],
    }
    drive = {"meta_data": {"uuid": node.id}, "user_data": "#cloud-config\n" + json.dumps(user_data)}
    api.set_node_provision_state(node, "active", config_drive=drive)
    return {"id": str(node.id), "address": str(node.extra["address"])}


def deployed(node: Mapping[str, str]) -> bool:
    """Whether the machine is active and lets us in."""
    access = Access()
    found = access.baremetal().get_node(node["id"])
    if found.provision_state not in {"deploying", "wait call-back", "active", "available"}:
        raise MlopsError("the machine failed", seen=f"{found.provision_state}: {found.last_error}")
    return found.provision_state == "active" and ssh(access, node["address"], "true", check=False) is not None


def release(node: Mapping[str, str]) -> None:
    """Tear the machine down."""
    Access().baremetal().set_node_provision_state(node["id"], "deleted")


def released(node: Mapping[str, str]) -> bool:
    """Whether it is clean and free."""
    return Access().baremetal().get_node(node["id"]).provision_state == "available"


# -- training --------------------------------------------------------------------------------------


def start_training(
    turn: Mapping[str, Any], data: Mapping[str, Any], node: Mapping[str, str], name: str
) -> dict[str, str]:
    """Send the code and start torchrun in the background; the run's key and its MLflow run."""
    from mlops_sdk.names import run_key  # noqa: PLC0415 - tasks only
    from mlops_sdk.objects import ObjectStore  # noqa: PLC0415 - as above
    from mlops_sdk.source import SourceRef, checkout, default_cache  # noqa: PLC0415 - as above
    from mlops_sdk.training.bundle import put_bundle  # noqa: PLC0415 - as above
    from mlops_sdk.training.jobfile import FileRef, JobFile  # noqa: PLC0415 - as above

    access, spec = Access(), LoopSpec()
    source = checkout(SourceRef(repository=turn["repository"], commit=turn["commit"]), default_cache())
    bundle = put_bundle(ObjectStore(access.bucket(), access.s3.bucket), source=source)
    client = access.tracking()
    experiment = client.get_experiment_by_name(MODEL)
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment(MODEL))
    run_id = uuid.uuid5(uuid.NAMESPACE_URL, name)
    key = run_key(run_id)
    arguments: dict[str, Any] = {"warm_start": True, **spec.program.arguments}
    job = JobFile(
        run_id=run_id,
        run_key=key,
        attempt=1,
        module=spec.program.module,
        args={**arguments, "champion": turn["champion"]} if turn["champion"] else arguments,
        prefix=f"runs/{key}",
        address=node["address"],
        scratch=f"/scratch/{key}",
        s3=access.s3,
        bundle=FileRef(name="bundle.tar", key=bundle.key, sha256=bundle.sha256, size=bundle.size),
        data=(FileRef(name=data["name"], key=data["key"], sha256=data["sha256"], size=data["size"]),),
    )
    ssh(access, node["address"], f"umask 077; mkdir -p {_JOB}; cat > {_JOB}/job.json", stdin=job.to_bytes())
    site = f"/scratch/{key}/bundle/{bundle.sha256}/site"
    ssh(access, node["address"], _training_script(site))
    return {"run": key, "mlflow_run_id": str(run.info.run_id)}


def _training_script(site: str) -> str:
    """Fetch, then torchrun; the exit status is left in a file."""
    torchrun = (
        f"{_PYTHON} -m torch.distributed.run --nnodes 1 --nproc-per-node 1 --node-rank 0 --rdzv-backend static "
        "--master-addr 127.0.0.1 --master-port 29500 --max-restarts 0 -m mlops_sdk.training.worker"
    )
    inner = (
        f"(export MLOPS_JOB_FILE={_JOB}/job.json OMP_NUM_THREADS=1; "
        f"{_PYTHON} -m mlops_sdk.training.fetch && PYTHONPATH={site} {torchrun}; echo $? > {_JOB}/status) 2>&1 "
        f"| {_PYTHON} -S -c {shlex.quote(_STAMP)} > {_JOB}/log"
    )
    return f"setsid nohup sh -c {shlex.quote(inner)} > /dev/null 2>&1 < /dev/null &"


def trained(node: Mapping[str, str]) -> PokeReturnValue:
    """Whether torchrun has ended well; with what it measured, as `(time, step, metrics)`."""
    from airflow.sdk import PokeReturnValue  # noqa: PLC0415 - tasks only

    access = Access()
    said = (ssh(access, node["address"], f"cat {_JOB}/status 2>/dev/null || true") or "").strip()
    if said not in {"", "0"}:
        log = ssh(access, node["address"], f"tail -c 2000 {_JOB}/log", check=False)
        raise MlopsError("the training failed", seen=f"exit status {said}: {log}")
    if not said:
        return PokeReturnValue(is_done=False)
    told = ssh(access, node["address"], f"grep -F '{MARK}' {_JOB}/log || true") or ""
    return PokeReturnValue(is_done=True, xcom_value=[found for line in told.splitlines() if (found := _progress(line))])


def _progress(line: str) -> tuple[int, int, dict[str, float]] | None:
    stamp, _, text = line.partition(" ")
    message = decode(text)
    return (int(float(stamp) * 1000), message.step, dict(message.metrics)) if isinstance(message, Progress) else None


# -- registry --------------------------------------------------------------------------------------


def register(
    turn: Mapping[str, Any], training: Mapping[str, str], measured: Sequence[tuple[int, int, Mapping[str, float]]]
) -> dict[str, Any]:
    """The model, its metrics and what is needed of its lineage into MLflow, with the mlflow package."""
    from mlflow.entities import Metric  # noqa: PLC0415 - takes seconds
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - takes seconds

    access = Access()
    client, result = access.tracking(), _result(access, training["run"])
    with model_folder(access, result["model"]) as folder:
        client.log_artifacts(training["mlflow_run_id"], str(folder), "model")
    try:
        client.create_registered_model(MODEL)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    points = [Metric(name, value, at, step) for at, step, metrics in measured for name, value in metrics.items()]
    for first in range(0, len(points), _POINTS):
        client.log_batch(training["mlflow_run_id"], metrics=points[first : first + _POINTS])
    source = f"{client.get_run(training['mlflow_run_id']).info.artifact_uri}/model"
    tags = {
        "mlops.git_repository": str(turn["repository"]),
        "mlops.git_commit": str(turn["commit"]),
        "mlops.held_out": json.dumps(result["held_out"]),
        "mlops.model_prefix": str(result["model"]["prefix"]),
        "mlops.model_sha256": str(result["model"]["manifest_sha256"]),
    }
    version = client.create_model_version(MODEL, source, training["mlflow_run_id"], tags=tags)
    client.set_terminated(training["mlflow_run_id"])
    return {**training, "version": str(version.version), "model": result["model"]}


def gate(registered: Mapping[str, Any]) -> None:
    """The same rule as the other chain's: not worse than the bound against the champion."""
    from mlops_sdk.registry.gate import GateBounds, decide  # noqa: PLC0415 - tasks only

    result = _result(Access(), registered["run"])
    champion = result.get("champion_held_out", {})
    against = champion or result["baseline_held_out"]
    bounds = GateBounds(worse_by=LoopSpec().gate.worse_by)
    verdict = decide(result["held_out"], against, bounds, knows=tuple(champion))
    if not verdict.passed:
        raise MlopsError("the gate refuses it", seen=verdict.table())


def _result(access: Access, run: str) -> dict[str, Any]:
    found = access.bucket().get_object(Bucket=access.s3.bucket, Key=f"runs/{run}/results/attempt-1.json")
    return json.loads(found["Body"].read())


@contextmanager
def model_folder(access: Access, model: Mapping[str, str]) -> Generator[Path]:
    """The files of a trained model."""
    from mlops_sdk.objects import ObjectStore  # noqa: PLC0415 - tasks only
    from mlops_sdk.registry.model_files import fetch_model  # noqa: PLC0415 - as above

    with tempfile.TemporaryDirectory(prefix="stock-model-") as folder:
        store = ObjectStore(access.bucket(), access.s3.bucket)
        yield fetch_model(store, model["prefix"], Path(folder), sha256=model["manifest_sha256"]).folder


def _connection(name: str) -> Any:
    from airflow.sdk import Connection  # noqa: PLC0415 - only tasks have it

    return Connection.get(name)


# -- shared ----------------------------------------------------------------------------------------


@contextmanager
def _key(access: Access) -> Generator[str]:
    with tempfile.TemporaryDirectory(prefix="stock-ssh-") as folder:
        path = Path(folder) / "key"
        path.touch(mode=0o600)
        path.write_text(access.key["private_key"])
        yield str(path)


def ssh(access: Access, address: str, script: str, *, stdin: bytes = b"", check: bool = True) -> str | None:
    """Run a script on a host with `ssh`; its output, None when it failed and that is not an error."""
    with _key(access) as key:
        options = [
            f"-o{option}" for option in (*_SSH_OPTIONS, "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
        ]
        argv = ["ssh", "-i", key, *options, f"root@{address}", script]
        done = subprocess.run(argv, input=stdin, capture_output=True, check=False)
    if done.returncode != 0:
        if not check:
            return None
        raise MlopsError(
            f"{script.split(maxsplit=1)[0]!r} on {address} failed", seen=done.stderr.decode(errors="replace")[-1000:]
        )
    return done.stdout.decode()
