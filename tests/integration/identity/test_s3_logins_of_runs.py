"""Each run's own S3 login against the real RGW: what it may, what it is refused, and when it ends."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from mlops_sdk.checkpoint.manifest import manifest_key
from mlops_sdk.config import PerRun, S3Settings
from mlops_sdk.doctor import examine
from mlops_sdk.errors import AccessDenied, RemoteError
from mlops_sdk.identity.audit import Audit, read_audit
from mlops_sdk.identity.s3_token import S3Token, login_file
from mlops_sdk.identity.sts import StsTokens
from mlops_sdk.objects import ObjectStore, connect_s3
from support import eventually

pytestmark = pytest.mark.stack
_LIFE_S = 6.0


@pytest.fixture
def s3(stack: Any) -> S3Settings:
    return stack.settings.s3.model_copy(update={"per_run": PerRun.STS})


@pytest.fixture
def ours(s3: S3Settings) -> ObjectStore:
    """The bucket through the deployment's own login."""
    return ObjectStore.open(s3)


def new_key() -> str:
    return uuid.uuid4().hex[:12]


def tokens(s3: S3Settings, key: str) -> StsTokens:
    return StsTokens(s3, key, Audit(ObjectStore.open(s3), "the tests"))


@contextmanager
def as_run(s3: S3Settings, key: str, *reads: str) -> Iterator[ObjectStore]:
    """The bucket through a run's login, as a machine opens it."""
    with login_file(tokens(s3, key).mint(reads)) as path:
        yield opened(s3, path)


def opened(s3: S3Settings, path: Path) -> ObjectStore:
    nothing = {"access_key_id": "", "secret_access_key": "", "credentials_file": str(path)}
    return ObjectStore.open(S3Settings.model_validate(s3.model_dump() | nothing))


def test_a_run_does_with_its_own_prefix_and_its_inputs_what_training_needs(s3, ours, tmp_path):
    key, other = new_key(), new_key()
    ours.put("bundles/code.tar", b"code")
    ours.put(f"runs/{other}/model/weights", b"weights")
    large = tmp_path / "large"
    large.write_bytes(b"x" * (9 << 20))
    with as_run(s3, key, "bundles/code.tar", f"runs/{other}/model/") as store:
        assert store.get("bundles/code.tar") == b"code"
        assert store.get(f"runs/{other}/model/weights") == b"weights"
        commit = manifest_key(f"runs/{key}/checkpoints", 7)
        assert store.get(commit) is None
        assert store.put_if_absent(commit, b"one")
        assert not store.put_if_absent(commit, b"two")
        found = store.get_with_etag(commit)
        assert found is not None
        assert store.put_if_match(commit, b"three", found[1])
        store.upload(f"runs/{key}/model/large", large)  # multipart
        store.download(f"runs/{key}/model/large", tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == large.read_bytes()
        assert [info.key for info in store.list(f"runs/{key}/checkpoints/")] == [commit]
        store.delete(commit)
        assert store.get(commit) is None


REFUSED: dict[str, Callable[[ObjectStore, str, str], object]] = {
    "read another run's object": lambda store, _, other: store.get(f"runs/{other}/model/weights"),
    "write another run's object": lambda store, _, other: store.put(f"runs/{other}/model/weights", b""),
    "delete another run's object": lambda store, _, other: store.delete(f"runs/{other}/model/weights"),
    "list another run": lambda store, _, other: list(store.list(f"runs/{other}/")),
    "list all runs": lambda store, _, __: list(store.list("runs/")),
    "list the bucket": lambda store, _, __: list(store.list("")),
    "replace its inputs": lambda store, _, __: store.put("bundles/code.tar", b""),
    "read inputs of others": lambda store, _, __: store.get("bundles/other.tar"),
    "rewrite its own history": lambda store, own, __: store.put(f"runs/{own}/journal/00000001.json", b"{}"),
    "delete its own history": lambda store, own, __: store.delete(f"runs/{own}/journal/00000001.json"),
    "renew itself": lambda store, own, __: store.put(f"runs/{own}/heartbeat.json", b"{}"),
    "read the audit log": lambda store, _, __: list(store.list("audit/")),
    "write the audit log": lambda store, _, __: store.put("audit/2026-01-01/forged.json", b"{}"),
    "take a fence": lambda store, _, __: store.put_if_absent("fence/some-machine", b"{}"),
}


def test_everything_else_in_the_bucket_is_refused(s3, ours, request):
    key, other = new_key(), new_key()
    for name in (f"runs/{other}/model/weights", "bundles/code.tar", "bundles/other.tar"):
        ours.put(name, b"there")
    ours.put(f"runs/{key}/journal/00000001.json", b"there")
    request.addfinalizer(lambda: ours.delete(f"runs/{key}/journal/00000001.json"))  # no journal others could read
    with as_run(s3, key, "bundles/code.tar") as store:
        allowed = [what for what, attempt in REFUSED.items() if not refused(lambda a=attempt: a(store, key, other))]
    assert allowed == []
    assert ours.get(f"runs/{other}/model/weights") == b"there"


def refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except AccessDenied:
        return True
    return False


def test_buckets_the_registrys_files_and_more_rights_are_out_of_its_reach(s3):
    token = tokens(s3, new_key()).mint([])
    with login_file(token) as path:
        client = connect_s3(s3.model_copy(update={"credentials_file": str(path)}))
    sts, sns, iam = (service(s3, token, name) for name in ("sts", "sns", "iam"))
    event = {"Id": "n", "TopicArn": "arn:aws:sns:default::x", "Events": ["s3:ObjectCreated:*"]}
    calls = {
        "delete the bucket": lambda: client.delete_bucket(Bucket=s3.bucket),
        "make a bucket": lambda: client.create_bucket(Bucket=f"run-{new_key()}"),
        "list buckets": client.list_buckets,
        "open the bucket to all": lambda: client.put_bucket_acl(Bucket=s3.bucket, ACL="public-read"),
        "change the bucket's policy": lambda: client.put_bucket_policy(Bucket=s3.bucket, Policy="{}"),
        "list the registry's files": lambda: client.list_objects_v2(Bucket="mlflow"),
        "read the registry's files": lambda: client.get_object(Bucket="mlflow", Key="1/x/artifacts/model"),
        "assume the role again": lambda: sts.assume_role(RoleArn=s3.run_role, RoleSessionName="more"),
        "become its user": sts.get_session_token,
        "change the role": lambda: iam.put_role_policy(RoleName="mlops-run", PolicyName="runs", PolicyDocument="{}"),
        "make a topic": lambda: sns.create_topic(Name="x"),
        "have events sent to it": lambda: client.put_bucket_notification_configuration(
            Bucket=s3.bucket, NotificationConfiguration={"TopicConfigurations": [event]}
        ),
    }
    seen = {what: status_of(call) for what, call in calls.items()}
    assert [what for what, status in seen.items() if status not in {403, 405}] == []


def status_of(call: Callable[[], object]) -> int:
    try:
        call()
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]
    return 200


def service(s3: S3Settings, token: S3Token, name: str) -> Any:
    given = token.metadata()
    return boto3.client(
        name,
        endpoint_url=s3.endpoint,
        region_name=s3.region,
        aws_access_key_id=given["access_key"],
        aws_secret_access_key=given["secret_key"],
        aws_session_token=given["token"],
    )


@pytest.mark.slow
def test_a_token_ends_by_itself_and_a_client_that_was_given_the_next_one_goes_on(s3):
    short = s3.model_copy(update={"token_s": _LIFE_S})
    key = new_key()
    first = tokens(short, key).mint([])
    began = time.monotonic()
    with login_file(first) as path, login_file(forged_end(first)) as kept:
        follower, leftover = opened(s3, path), opened(s3, kept)
        leftover.put(f"runs/{key}/x", b"1")
        path.write_bytes(tokens(s3, key).mint([]).to_bytes())
        eventually(lambda: refused(lambda: leftover.put(f"runs/{key}/x", b"2")), within_s=_LIFE_S + 5)
        lived_s = time.monotonic() - began
        follower.put(f"runs/{key}/x", b"3")
    assert lived_s <= _LIFE_S + 2
    assert first.expires_at <= datetime.now(UTC) + timedelta(seconds=1)


def forged_end(token: S3Token) -> S3Token:
    """So that it is S3 that refuses it and not the client."""
    return token.model_copy(update={"expires_at": datetime.now(UTC) + timedelta(hours=1)})


def test_a_role_that_is_not_there_is_a_refusal_and_audited(s3):
    wrong = s3.model_copy(update={"run_role": "arn:aws:iam:::role/nobody"})
    key = new_key()
    with pytest.raises(RemoteError, match="nobody"):
        tokens(wrong, key).mint([])
    now = datetime.now(UTC)
    found = read_audit(ObjectStore.open(s3), since=now - timedelta(minutes=1), until=now)
    assert [entry.result.value for entry in found if entry.resource == f"runs/{key}"] in (
        ["asked", "refused"],
        ["asked", "failed"],
    )


@pytest.mark.slow
def test_doctor_says_which_login_runs_get(stack, s3):
    chosen = stack.settings.model_copy(update={"s3": s3})
    without = stack.settings.model_copy(update={"s3": s3.model_copy(update={"per_run": PerRun.NONE})})
    wrong = s3.model_copy(update={"run_role": "arn:aws:iam:::role/nobody"})
    details = {
        name: next(check for check in examine(lambda s=settings: s) if check.name == "S3 logins of runs")
        for name, settings in {
            "chosen": chosen,
            "without": without,
            "wrong": stack.settings.model_copy(update={"s3": wrong}),
        }.items()
    }
    assert details["chosen"].ok
    assert "each run gets its own" in details["chosen"].detail
    assert "set s3.per_run to sts" in details["without"].detail
    assert not details["wrong"].ok
