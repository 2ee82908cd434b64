"""Dev, test and prod apart: a bucket says to which environment it belongs, and only that one's runs begin in it.

A guard against a mistake in the settings. What keeps intent out is that each environment has a project, an S3 user and
an MLflow user of its own (docs/permissions.md).
"""

from __future__ import annotations

from mlops_sdk.canonical import to_json
from mlops_sdk.config import Settings
from mlops_sdk.errors import SettingsError
from mlops_sdk.objects import ObjectStore

MARKER = "environment.json"


def check_environment(settings: Settings, store: ObjectStore) -> None:
    """Refuse a bucket of another environment; one that belongs to nobody becomes ours, if our settings name one.

    Raises:
        SettingsError: the bucket is another environment's.
    """
    found = store.get_json(MARKER)
    if found is None and settings.environment:
        mine = {"environment": settings.environment, "deployment_id": str(settings.deployment_id)}
        if store.put_if_absent(MARKER, to_json(mine)):
            return
        found = store.get_json(MARKER)
    theirs = found.get("environment", "") if isinstance(found, dict) else ""
    if theirs != settings.environment:
        named = f"environment {settings.environment!r}" if settings.environment else "no environment"
        raise SettingsError(
            f"bucket {store.bucket!r} belongs to environment {theirs!r}, and these settings name {named}",
            seen=f"object {MARKER!r} in the bucket",
            next_step="set environment and s3.bucket to the same one's; each environment has a bucket of its own",
        )
