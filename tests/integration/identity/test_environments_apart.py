"""Dev and prod beside each other on the real Keystone, Ironic, RGW and MLflow: what a run may do, and all it may not.

Each environment is made as docs/permissions.md tells an operator to make it. Prod's project has the machines.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.client import Client
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import S3Settings, Settings
from mlops_sdk.errors import AccessDenied, RemoteError, SettingsError
from mlops_sdk.identity.audit import Audit, read_audit
from mlops_sdk.identity.credential import CredentialRequest
from mlops_sdk.identity.s3_token import login_file
from mlops_sdk.identity.sts import StsTokens
from mlops_sdk.objects import ObjectStore, connect_s3
from mlops_sdk.registry.champion import set_champion
from mlops_sdk.registry.lineage import CheckpointRecord, CostRecord, GitState, LeaseRecord, Lineage
from mlops_sdk.registry.mlflow_api import MlflowApi, MlflowFailure
from mlops_sdk.registry.models import RegisteredModel, ensure_run, register
from mlops_sdk.run import Run
from mlops_sdk.training.bundle import put_bundle, put_data
from mlops_sdk.training.job import run_job
from mlops_sdk.training.site import Site
from mlops_sdk.training.spec import Launcher, LaunchSpec
from support_environments import Operator

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAMS = Path(__file__).parents[1] / "training" / "programs"
VERSION = {"X-OpenStack-Ironic-API-Version": "1.80"}
DENIED = (401, 403)
HIDDEN = (401, 403, 404)  # Ironic says of what another project may not see that it is not there


@dataclass(frozen=True, slots=True, kw_only=True)
class Environments:
    prod: Settings
    dev: Settings


@pytest.fixture(scope="module")
def both(stack: Any) -> Environments:
    operator, other = Operator(stack), stack.admin["other_tenant"]
    return Environments(prod=operator.environment("prod"), dev=operator.environment("dev", **other))


@contextmanager
def leased(settings: Settings) -> Iterator[tuple[Run, Any]]:
    with Client(settings).start_run(name="a prod run") as run:
        deadline = datetime.now(UTC) + timedelta(minutes=10)
        wanted = LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=deadline, wait_s=60.0)
        yield run, run.lease(wanted)


def test_a_run_does_its_work_and_is_refused_everything_else_as_is_a_run_of_another_project(
    both: Environments, tmp_path: Path
) -> None:
    with leased(both.prod) as (run, lease):
        corpus = tmp_path / "corpus.txt"
        corpus.write_text("words")
        data = put_data(run.store, corpus)
        tracking = ensure_run(both.prod.mlflow, run.id, run.generation, experiment=model_name(both.prod))
        spec = LaunchSpec(
            module="toy",
            bundle=put_bundle(run.store, program=PROGRAMS),
            launcher=Launcher.MPIRUN,
            args={"steps": 3, "alone": True, "data": data.name},
            data=(data,),
            max_attempts=1,
        )
        done = run_job(Site.of(run, tracking_run_id=tracking.id), spec, lease.nodes)
        assert done.result["data_sha256"] == data.sha256  # read from the bucket by its own login
        api = MlflowApi(both.prod.mlflow)
        steps = api.get("metrics/get-history", run_id=tracking.id, metric_key="total")["metrics"]
        assert [point["step"] for point in steps] == [0, 1, 2]
        model = some_version(both.prod, run, tmp_path)
        set_champion(both.prod.mlflow, model.name, model.version)

        assert allowed_to_a_login_of(run, data.key) == []
        assert allowed_in_keystone_to_the_credential_of(run) == []
        assert allowed_to_dev(both, run, lease.nodes[0].id, data.key) == []
        assert allowed_in_the_registry_to(both.dev, model, tracking.artifacts) == []
        grant_reading(both, model)
        seen = MlflowApi(both.dev.mlflow).get("model-versions/get", name=model.name, version="1")
        assert seen["model_version"]["name"] == model.name
        with pytest.raises(AccessDenied):
            set_champion(both.dev.mlflow, model.name, 1)
    assert run.prove().complete
    assert dev_works_in_its_own(both.dev, tmp_path)


def test_settings_that_mix_two_environments_begin_no_run(both: Environments) -> None:
    for settings in (both.prod, both.dev):
        with Client(settings).start_run(name="marks the bucket"):
            pass
    mixed = both.dev.model_copy(update={"s3": both.prod.s3})
    with pytest.raises(SettingsError, match="belongs to environment 'prod'"), Client(mixed).start_run(name="mixed"):
        pass
    intruder = both.dev.model_copy(update={"s3": both.dev.s3.model_copy(update={"bucket": both.prod.s3.bucket})})
    with pytest.raises(AccessDenied), Client(intruder).start_run(name="another's bucket"):
        pass


def test_who_did_what_is_in_the_environments_own_audit_log(both: Environments) -> None:
    now = datetime.now(UTC)
    tokens(both.dev.s3, "auditedauded").mint([])
    found = read_audit(
        ObjectStore.open(both.dev.s3), since=now - timedelta(minutes=5), until=now + timedelta(minutes=1)
    )
    assert {entry.resource for entry in found} >= {"runs/auditedauded"}
    prods = read_audit(
        ObjectStore.open(both.prod.s3), since=now - timedelta(minutes=5), until=now + timedelta(minutes=1)
    )
    assert "runs/auditedauded" not in {entry.resource for entry in prods}


def model_name(settings: Settings) -> str:
    """On one MLflow server a model's name belongs to whose user made it."""
    return f"model-{settings.owner}"


def some_version(settings: Settings, run: Run, folder: Path) -> RegisteredModel:
    files = folder / "model"
    files.mkdir(exist_ok=True)
    (files / "config.json").write_text("{}")
    lineage = Lineage(
        run_id=run.id,
        owner=settings.owner,
        git=GitState(commit="0" * 40, dirty=False),
        data_sha256="1" * 64,
        model_sha256="2" * 64,
        lease=LeaseRecord(names=(), generation=max(run.generation, 1)),
        nodes=(),
        checkpoint=CheckpointRecord(key=f"runs/{run.key}/checkpoints/x", sha256="3" * 64, step=1),
        packages={},
        cost=CostRecord(node_seconds=1.0, amount=0.0, currency="EUR"),
        attempts=1,
        metrics={},
        args={},
    )
    return register(settings.mlflow, model_name(settings), files, lineage)


def tokens(s3: S3Settings, key: str) -> StsTokens:
    return StsTokens(s3, key, Audit(ObjectStore.open(s3), "the tests"))


def allowed_to_a_login_of(run: Run, data_key: str) -> list[str]:
    """What an S3 login of this run may do of all that it may not."""
    s3 = run.settings.s3
    with login_file(tokens(s3, run.key).mint([data_key])) as path:
        client = connect_s3(s3.model_copy(update={"credentials_file": str(path)}))
        assert client.get_object(Bucket=s3.bucket, Key=data_key)["Body"].read() == b"words"
        calls: dict[str, Callable[[], object]] = {
            "delete what it reads": lambda: client.delete_object(Bucket=s3.bucket, Key=data_key),
            "replace what it reads": lambda: client.put_object(Bucket=s3.bucket, Key=data_key, Body=b""),
            "delete the bucket": lambda: client.delete_bucket(Bucket=s3.bucket),
            "read the environment's marker": lambda: client.get_object(Bucket=s3.bucket, Key="environment.json"),
            "claim the bucket": lambda: client.put_object(Bucket=s3.bucket, Key="environment.json", Body=b"{}"),
            "read the audit log": lambda: client.list_objects_v2(Bucket=s3.bucket, Prefix="audit/"),
        }
        return [what for what, call in calls.items() if s3_status(call) not in DENIED]


def allowed_in_keystone_to_the_credential_of(run: Run) -> list[str]:
    """What a credential of a run may do in its own project of all that it may not; another run's machine is there."""
    settings = run.settings
    services = Client(settings).services
    now = datetime.now(UTC)
    wanted = CredentialRequest(
        run_id=uuid.uuid4(),
        deployment_id=settings.deployment_id,
        generation=1,
        deadline=now + timedelta(minutes=2),
        grace_s=0,
    )
    own, others = wanted.name.removesuffix("cred") + "0", f"ml-{run.key}-g{run.generation}-0"
    credential = services.broker.mint(wanted, now=now)
    try:
        cloud = Cloud(credential.login(settings.keystone))
        user = Cloud(settings.keystone).user_id()
        assert cloud_status(cloud, ("baremetal", "GET", f"/v1/allocations/{own}")) == 404  # it may look
        calls = {
            "read another run's allocation": ("baremetal", "GET", f"/v1/allocations/{others}"),
            "renew another run's allocation": ("baremetal", "PATCH", f"/v1/allocations/{others}"),
            "delete another run's allocation": ("baremetal", "DELETE", f"/v1/allocations/{others}"),
            "list allocations": ("baremetal", "GET", "/v1/allocations"),
            "make a machine": ("baremetal", "POST", "/v1/nodes"),
            "see ports": ("baremetal", "GET", "/v1/ports"),
            "make a credential": ("identity", "POST", f"/v3/users/{user}/application_credentials"),
            "see credentials": ("identity", "GET", f"/v3/users/{user}/application_credentials"),
            "make S3 keys": ("identity", "POST", f"/v3/users/{user}/credentials/OS-EC2"),
            "make a trust": ("identity", "POST", "/v3/OS-TRUST/trusts"),
            "see projects": ("identity", "GET", "/v3/projects"),
        }
        return [what for what, call in calls.items() if cloud_status(cloud, call) not in DENIED]
    finally:
        services.broker.revoke(wanted.name)


def allowed_to_dev(both: Environments, run: Run, node_id: str, data_key: str) -> list[str]:
    """What dev's own logins, which can do more than any of its runs, may do to a run of prod and its machine."""
    cloud = Cloud(both.dev.keystone)
    allocation = f"/v1/allocations/ml-{run.key}-g{run.generation}-0"
    prods = Cloud(both.prod.keystone)
    for path in (f"/v1/nodes/{node_id}", allocation):
        assert cloud_status(prods, ("baremetal", "GET", path)) == 200
    calls = {
        "see prod's machine": ("baremetal", "GET", f"/v1/nodes/{node_id}"),
        "tear prod's machine down": ("baremetal", "PUT", f"/v1/nodes/{node_id}/states/provision"),
        "turn prod's machine off": ("baremetal", "PUT", f"/v1/nodes/{node_id}/states/power"),
        "see prod's allocation": ("baremetal", "GET", allocation),
        "renew prod's allocation": ("baremetal", "PATCH", allocation),
        "delete prod's allocation": ("baremetal", "DELETE", allocation),
    }
    theirs = [what for what, call in calls.items() if cloud_status(cloud, call) not in HIDDEN]
    bucket = both.prod.s3.bucket
    client = connect_s3(both.dev.s3)
    own = f"runs/{run.key}/x"
    objects: dict[str, Callable[[], object]] = {
        "read prod's data": lambda: client.get_object(Bucket=bucket, Key=data_key),
        "write prod's run": lambda: client.put_object(Bucket=bucket, Key=own, Body=b""),
        "delete prod's data": lambda: client.delete_object(Bucket=bucket, Key=data_key),
        "list prod's bucket": lambda: client.list_objects_v2(Bucket=bucket),
        "delete prod's bucket": lambda: client.delete_bucket(Bucket=bucket),
    }
    theirs += [what for what, call in objects.items() if s3_status(call) not in DENIED]
    prods_role = both.dev.s3.model_copy(update={"run_role": both.prod.s3.run_role, "bucket": bucket})
    try:
        StsTokens(prods_role, run.key, Audit(ObjectStore.open(both.dev.s3), "the tests")).mint([])
    except RemoteError:
        return theirs
    return [*theirs, "take prod's role"]


def allowed_in_the_registry_to(settings: Settings, model: RegisteredModel, artifacts: str) -> list[str]:
    """What an environment's MLflow user may do to another one's experiment, run and model."""
    api = MlflowApi(settings.mlflow)
    name, run_id = model.name, model.mlflow_run_id
    calls: dict[str, Callable[[], object]] = {
        "read the model": lambda: api.get("registered-models/get", name=name),
        "read the version": lambda: api.get("model-versions/get", name=name, version="1"),
        "move the alias": lambda: api.post("registered-models/alias", name=name, alias="champion-prod", version="1"),
        "remove the alias": lambda: api.delete("registered-models/alias", name=name, alias="champion-prod"),
        "add a version": lambda: api.post("model-versions/create", name=name, source=model.source, run_id=run_id),
        "tag a version": lambda: api.post("model-versions/set-tag", name=name, version="1", key="a", value="b"),
        "delete a version": lambda: api.delete("model-versions/delete", name=name, version="1"),
        "delete the model": lambda: api.delete("registered-models/delete", name=name),
        "write metrics": lambda: api.post("runs/log-batch", run_id=run_id, tags=[{"key": "a", "value": "b"}]),
        "delete the run": lambda: api.post("runs/delete", run_id=run_id),
        "list the files": lambda: api.artifacts(artifacts),
        "replace a file": lambda: api.put_artifact(artifacts, "model/config.json", b"forged"),
        "make itself an administrator": lambda: api.post(
            "users/update-admin", username=settings.mlflow.username, is_admin=True
        ),
        "make a user": lambda: api.post("users/create", username=uuid.uuid4().hex, password=uuid.uuid4().hex),
    }
    found = [what for what, call in calls.items() if not refused(call)]
    listed = api.get("registered-models/search").get("registered_models", [])
    return [*found, *("see the model listed" for other in listed if other["name"] == name)]


def grant_reading(both: Environments, model: RegisteredModel) -> None:
    """As prod's own user: what docs/permissions.md says of looking at another environment's model."""
    mlflow = both.prod.mlflow
    reply = requests.post(
        f"{mlflow.tracking_uri}/api/3.0/mlflow/users/permissions/grant",
        auth=(mlflow.username, mlflow.password.get_secret_value()),
        json={
            "username": both.dev.mlflow.username,
            "resource_type": "registered_model",
            "resource_id": model.name,
            "permission": "READ",
        },
        timeout=30,
    )
    reply.raise_for_status()


def dev_works_in_its_own(settings: Settings, folder: Path) -> bool:
    """It is not that dev can do nothing."""
    with Client(settings).start_run(name="a dev run") as run:
        with login_file(tokens(settings.s3, run.key).mint([])) as path:
            store = ObjectStore.open(settings.s3.model_copy(update={"credentials_file": str(path)}))
            store.put(f"runs/{run.key}/x", b"dev's")
        model = some_version(settings, run, folder)
        set_champion(settings.mlflow, model.name, model.version)
        return run.store.get(f"runs/{run.key}/x") == b"dev's"


def s3_status(call: Callable[[], object]) -> int:
    try:
        call()
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]
    return 200


def cloud_status(cloud: Cloud, call: tuple[str, str, str]) -> int:
    service, method, path = call
    bodies: Mapping[str, Any] = {"PUT": {"target": "deleted"}, "PATCH": [], "POST": {}}
    reply = cloud.request(service, method, path, body=bodies.get(method), headers=VERSION, accept=set(range(400, 500)))
    return reply.status


def refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except AccessDenied:
        return True
    except MlflowFailure:
        return False
    return False
