"""An S3 server in memory: what `ObjectStore` needs of a boto3 client, with conditional writes and scripted failures."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import ClientError

from mlops_sdk.objects import ObjectStore
from mlops_sdk.testing.faults import FaultScript

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class MemoryS3:
    """The calls of a boto3 S3 client that `ObjectStore` makes, on a dictionary.

    Honours ``If-None-Match: *`` and ``If-Match`` under one lock, and fails as boto3 does.

    Args:
        faults: Which calls fail; each is named as boto3 names it (``put_object``).
    """

    def __init__(self, faults: FaultScript | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults = faults or FaultScript()
        self._lock = threading.Lock()

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, **conditions: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """Store; 412 when a condition does not hold."""
        del Bucket
        with self.faults.call("put_object"), self._lock:
            found = self.objects.get(Key)
            if conditions.get("IfNoneMatch") == "*" and found is not None:
                raise _error("PreconditionFailed", 412, "PutObject")
            wanted = conditions.get("IfMatch")
            if wanted is not None and (found is None or _etag(found) != wanted):
                raise _error("PreconditionFailed", 412, "PutObject")
            self.objects[Key] = Body
            return {"ETag": f'"{_etag(Body)}"'}

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """Fetch; 404 when it is not there."""
        del Bucket
        with self.faults.call("get_object"), self._lock:
            found = self.objects.get(Key)
            if found is None:
                raise _error("NoSuchKey", 404, "GetObject")
            return {"Body": io.BytesIO(found), "ETag": f'"{_etag(found)}"'}

    def delete_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """Remove; what is not there is fine."""
        del Bucket
        with self.faults.call("delete_object"), self._lock:
            self.objects.pop(Key, None)
            return {}

    def upload_file(self, filename: str, bucket: str, key: str) -> None:
        """Store a file."""
        with self.faults.call("upload_file"):
            self.put_object(Bucket=bucket, Key=key, Body=Path(filename).read_bytes())

    def download_file(self, bucket: str, key: str, filename: str) -> None:
        """Fetch into a file; 404 when it is not there."""
        with self.faults.call("download_file"):
            Path(filename).write_bytes(self.get_object(Bucket=bucket, Key=key)["Body"].read())

    def head_bucket(self, *, Bucket: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """Every bucket is there."""
        del Bucket
        return {}

    def get_paginator(self, operation: str) -> _Pages:
        """Of ``list_objects_v2``."""
        if operation != "list_objects_v2":
            raise NotImplementedError(operation)
        return _Pages(self)

    def snapshot(self) -> dict[str, bytes]:
        """All objects."""
        with self._lock:
            return dict(self.objects)


class _Pages:
    def __init__(self, server: MemoryS3) -> None:
        self._server = server

    def paginate(self, *, Bucket: str, Prefix: str, Delimiter: str = "") -> Iterator[dict[str, Any]]:  # noqa: N803 - boto3's names
        del Bucket
        with self._server.faults.call("list_objects_v2"):
            objects = {k: v for k, v in sorted(self._server.snapshot().items()) if k.startswith(Prefix)}
        folders = (
            {Prefix + k.removeprefix(Prefix).split(Delimiter)[0] + Delimiter for k in objects} if Delimiter else ()
        )
        contents = (
            [] if Delimiter else [{"Key": k, "Size": len(v), "ETag": f'"{_etag(v)}"'} for k, v in objects.items()]
        )
        yield {"Contents": contents, "CommonPrefixes": [{"Prefix": folder} for folder in sorted(folders)]}


def memory_store(server: MemoryS3 | None = None) -> ObjectStore:
    """An `ObjectStore` on a server in memory."""
    return ObjectStore(cast("S3Client", server or MemoryS3()), "mlops")


def _etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _error(code: str, status: int, operation: str) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, operation)  # type: ignore[arg-type]
