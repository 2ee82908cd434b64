"""Who may do what with which object of the bucket, as S3 policies: the role of all runs, and one run's share of it.

A run's session gets what both allow: the role's policy, which an operator grants once, and the session's, which names
this run's prefix and inputs. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlops_sdk.errors import SettingsError

ROLE_NAME = "mlops-run"
READABLE = ("bundles/*", "data/*", "dvc/*")  # code and inputs, named by their content
MAX_SESSION_POLICY = 2048  # characters, by AWS's rule and RGW's
_READ = ("s3:GetObject",)
_WRITE = ("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
_CHANGE = ("s3:PutObject", "s3:DeleteObject")
# What tells of a run is written by its controller; a program cannot rewrite its own history.
_CONTROLLERS = ("journal/*", "attempts/*", "logs/*", "heartbeat.json")

_Statement = Mapping[str, Any]


def trust_policy(user_arn: str, role: str = ROLE_NAME) -> str:
    """Who may take the role: the deployment's S3 user (``arn:aws:iam:::user/<uid>``), and no session of the role.

    Each environment has a user, a bucket and a role of its own. RGW takes a session for its user too: without the
    denial a run could take the role again, without its narrow policy.
    """
    action = ["sts:AssumeRole"]
    return _policy(
        [
            {"Effect": "Allow", "Principal": {"AWS": [user_arn]}, "Action": action},
            {"Effect": "Deny", "Principal": {"AWS": [f"arn:aws:iam:::role/{role}"]}, "Action": action},
        ]
    )


def role_policy(bucket: str) -> str:
    """The most that any run of the deployment may get: its objects, and the inputs of jobs to read."""
    return _policy(
        [
            _allow(_READ + _WRITE, _objects(bucket, ["runs/*"])),
            _allow(_READ, _objects(bucket, READABLE)),
            _listing(bucket, "runs/*"),
        ]
    )


def session_policy(bucket: str, prefix: str, reads: Iterable[str]) -> str:
    """What one run may do: everything below its prefix but its own history, and read its inputs.

    Args:
        bucket: The deployment's.
        prefix: ``runs/<run key>``.
        reads: Keys of its inputs; one that ends in ``/`` stands for everything below it. Too many for a policy are
            widened to their folders, then to the first part of their names.

    Raises:
        SettingsError: an input's name holds a wildcard, or is not one that the role allows.
    """
    wanted = sorted({_pattern(name) for name in reads})
    for patterns in (wanted, _folders(wanted), _roots(wanted)):
        text = _policy(_session(bucket, prefix, patterns))
        if len(text) <= MAX_SESSION_POLICY:
            return text
    raise SettingsError(
        f"the inputs of {prefix!r} cannot be said in one S3 policy",
        seen=f"{len(wanted)} names; {len(text)} of {MAX_SESSION_POLICY} characters",
        next_step="put the inputs below fewer prefixes",
    )


def _session(bucket: str, prefix: str, patterns: Sequence[str]) -> list[_Statement]:
    own = [
        _allow(_READ + _WRITE, _objects(bucket, [f"{prefix}/*"])),
        {
            "Effect": "Deny",
            "Action": list(_CHANGE),
            "Resource": _objects(bucket, [f"{prefix}/{name}" for name in _CONTROLLERS]),
        },
        _listing(bucket, f"{prefix}/*"),
    ]
    return [*own, _allow(_READ, _objects(bucket, patterns))] if patterns else own


def _allow(actions: Iterable[str], resources: Sequence[str]) -> _Statement:
    return {"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def _listing(bucket: str, pattern: str) -> _Statement:
    return {
        "Effect": "Allow",
        "Action": ["s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{bucket}"],
        "Condition": {"StringLike": {"s3:prefix": [pattern]}},
    }


def _objects(bucket: str, patterns: Iterable[str]) -> list[str]:
    return [f"arn:aws:s3:::{bucket}/{pattern}" for pattern in patterns]


def _pattern(name: str) -> str:
    if not name or name.startswith("/") or set("*?$") & set(name):
        raise SettingsError(
            f"input {name!r} of a job cannot be named in an S3 policy",
            next_step="name objects or prefixes of the bucket, without wildcards",
        )
    return f"{name}*" if name.endswith("/") else name


def _folders(patterns: Iterable[str]) -> list[str]:
    return sorted({f"{name.rpartition('/')[0]}/*" if "/" in name else name for name in patterns})


def _roots(patterns: Iterable[str]) -> list[str]:
    """``runs`` is never widened: it is other runs' property."""
    return sorted({name if name.startswith("runs/") else f"{name.split('/')[0]}/*" for name in patterns})


def _policy(statements: Sequence[_Statement]) -> str:
    """Without spaces, also in names: RGW takes no others."""
    text = json.dumps({"Version": "2012-10-17", "Statement": list(statements)}, separators=(",", ":"))
    return text.replace(" ", "\\u0020")
