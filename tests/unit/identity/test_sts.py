"""Asking RGW's STS for a run's login."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.stub import ANY, Stubber
from pydantic import SecretStr

from mlops_sdk.config import PerRun, S3Settings
from mlops_sdk.errors import AccessDenied, ServiceUnavailable
from mlops_sdk.identity.audit import Audit, read_audit
from mlops_sdk.identity.sts import StsTokens
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store

ROLE = "arn:aws:iam:::role/mlops-run"
SETTINGS = S3Settings(
    endpoint="http://s3.invalid",
    access_key_id="id",
    secret_access_key=SecretStr("hush"),
    per_run=PerRun.STS,
    run_role=ROLE,
)


@pytest.fixture
def s3() -> MemoryS3:
    return MemoryS3()


@pytest.fixture
def sts(s3):
    tokens = StsTokens(SETTINGS, "aaaaaaaaaaaa", Audit(memory_store(s3), "anna"))
    client = boto3.client("sts", region_name="us-east-1", aws_access_key_id="id", aws_secret_access_key="hush")
    tokens._client = client
    with Stubber(client) as stubber:
        yield tokens, stubber


def told(s3) -> list[tuple[str, str, str]]:
    now = datetime.now(UTC)
    found = read_audit(memory_store(s3), since=now - timedelta(minutes=1), until=now)
    return [(entry.action, entry.resource, entry.result.value) for entry in found]


def test_the_session_is_narrowed_to_the_run_and_written_down(sts, s3):
    tokens, stubber = sts
    ends = datetime(2026, 1, 1, tzinfo=UTC)
    given = {
        "AccessKeyId": "temporary-access-key",
        "SecretAccessKey": "hush-1",
        "SessionToken": "hush-2-token",
        "Expiration": ends,
    }
    sent = {"RoleArn": ROLE, "RoleSessionName": "ml-aaaaaaaaaaaa", "DurationSeconds": 900, "Policy": ANY}
    stubber.add_response("assume_role", {"Credentials": given}, sent)
    policies = []
    tokens._client.meta.events.register(
        "before-parameter-build.sts.AssumeRole", lambda params, **_: policies.append(json.loads(params["Policy"]))
    )
    token = tokens.mint(["bundles/x.tar"])
    assert (token.access_key_id, token.expires_at) == ("temporary-access-key", ends)
    assert "arn:aws:s3:::mlops/bundles/x.tar" in str(policies[0])
    asked = ("s3.assume_role", "runs/aaaaaaaaaaaa", "asked")
    assert told(s3) == [asked, ("s3.assume_role", "runs/aaaaaaaaaaaa", "done")]
    assert not any(b"hush" in body for body in s3.objects.values())


@pytest.mark.parametrize(
    ("status", "kind", "result"),
    [(403, AccessDenied, "refused"), (400, AccessDenied, "refused"), (503, ServiceUnavailable, "failed")],
)
def test_what_goes_wrong_says_what_to_do_and_is_written_down(sts, s3, status, kind, result):
    tokens, stubber = sts
    stubber.add_client_error("assume_role", "SomeCode", http_status_code=status)
    with pytest.raises(kind, match=f"{status} SomeCode"):
        tokens.mint([])
    assert told(s3)[-1] == ("s3.assume_role", "runs/aaaaaaaaaaaa", result)
