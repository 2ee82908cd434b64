"""What a run may do with which object, as it is sent to S3."""

from __future__ import annotations

import fnmatch
import json

import pytest

from mlops_sdk.errors import SettingsError
from mlops_sdk.identity.s3_policy import MAX_SESSION_POLICY, role_policy, session_policy, trust_policy

KEY = "runs/aaaaaaaaaaaa"
OTHER = "runs/bbbbbbbbbbbb"
BUNDLE = f"bundles/{'0' * 64}.tar"


def allows(policy: str, action: str, key: str, *, prefix: str = "") -> bool:
    """As S3 judges: something allows it and nothing denies it."""
    resource = f"arn:aws:s3:::ours/{key}" if key else "arn:aws:s3:::ours"
    effects = [
        statement["Effect"]
        for statement in json.loads(policy)["Statement"]
        if action in statement["Action"]
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in statement["Resource"])
        and all(
            fnmatch.fnmatchcase(prefix, pattern)
            for pattern in statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
        )
    ]
    return "Allow" in effects and "Deny" not in effects


@pytest.mark.parametrize(
    ("action", "key", "allowed"),
    [
        ("s3:PutObject", f"{KEY}/checkpoints/step-1/manifest.json", True),
        ("s3:GetObject", f"{KEY}/checkpoints/step-1/manifest.json", True),
        ("s3:DeleteObject", f"{KEY}/checkpoints/step-1/manifest.json", True),
        ("s3:GetObject", f"{KEY}/journal/00000001.json", True),
        ("s3:PutObject", f"{KEY}/journal/00000002.json", False),
        ("s3:DeleteObject", f"{KEY}/journal/00000001.json", False),
        ("s3:PutObject", f"{KEY}/heartbeat.json", False),
        ("s3:PutObject", f"{KEY}x/model/manifest.json", False),
        ("s3:GetObject", BUNDLE, True),
        ("s3:PutObject", BUNDLE, False),
        ("s3:GetObject", f"{OTHER}/model/weights", True),
        ("s3:PutObject", f"{OTHER}/model/weights", False),
        ("s3:GetObject", f"{OTHER}/journal/00000001.json", False),
        ("s3:GetObject", "audit/2026-01-01/x.json", False),
        ("s3:PutObject", "fence/some-machine", False),
        ("s3:DeleteBucket", "", False),
    ],
)
def test_a_run_gets_its_own_prefix_and_its_inputs(action, key, allowed):
    policy = session_policy("ours", KEY, [BUNDLE, f"{OTHER}/model/"])
    assert allows(policy, action, key) is allowed


def test_a_run_lists_its_own_prefix_only():
    policy = session_policy("ours", KEY, [])
    assert allows(policy, "s3:ListBucket", "", prefix=f"{KEY}/checkpoints/")
    assert not allows(policy, "s3:ListBucket", "", prefix="runs/")
    assert not allows(policy, "s3:ListBucket", "", prefix=f"{OTHER}/")


def test_many_inputs_become_their_folders_and_never_other_runs():
    names = [f"dvc/files/md5/{i:02x}/{'0' * 30}" for i in range(100)] + [f"{OTHER}/model/"]
    policy = session_policy("ours", KEY, names)
    assert len(policy) <= MAX_SESSION_POLICY
    assert allows(policy, "s3:GetObject", names[7])
    assert allows(policy, "s3:GetObject", f"{OTHER}/model/weights")
    assert not allows(policy, "s3:GetObject", f"{OTHER}/journal/00000001.json")
    assert not allows(policy, "s3:PutObject", names[7])


def test_what_does_not_fit_into_a_policy_is_an_error_and_never_more_rights():
    with pytest.raises(SettingsError, match="one S3 policy"):
        session_policy("ours", KEY, [f"runs/{i:012d}/model/" for i in range(100)])


@pytest.mark.parametrize("name", ["", "*", "runs/*", "data/?/x", "/etc/passwd", "${aws:username}/x"])
def test_a_name_cannot_widen_the_policy(name):
    with pytest.raises(SettingsError):
        session_policy("ours", KEY, [name])


def test_the_role_covers_what_sessions_ask_for_and_nothing_of_the_platforms_own():
    policy = role_policy("ours")
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"):
        assert allows(policy, action, f"{KEY}/x")
    assert allows(policy, "s3:GetObject", BUNDLE)
    assert not allows(policy, "s3:PutObject", BUNDLE)
    for key in ("audit/x", "fence/x", "alerts/x"):
        assert not allows(policy, "s3:GetObject", key)


def test_a_session_of_the_role_may_not_take_the_role_again():
    allowed, denied = json.loads(trust_policy("arn:aws:iam:::user/mlops"))["Statement"]
    assert (allowed["Effect"], allowed["Principal"]["AWS"]) == ("Allow", ["arn:aws:iam:::user/mlops"])
    assert (denied["Effect"], denied["Principal"]["AWS"]) == ("Deny", ["arn:aws:iam:::role/mlops-run"])


def test_policies_hold_no_space_because_rgw_refuses_them():
    texts = (
        trust_policy("arn:aws:iam:::user/mlops"),
        role_policy("ours"),
        session_policy("ours", KEY, ["data/my file"]),
    )
    assert all(" " not in text for text in texts)
    assert allows(texts[-1], "s3:GetObject", "data/my file")
