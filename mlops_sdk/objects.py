"""S3 as the platform uses it: plain objects, listing, and the conditional PUT that commits and fences rest on."""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from boto3.exceptions import Boto3Error, S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError

from mlops_sdk.canonical import to_json
from mlops_sdk.config import S3Settings
from mlops_sdk.errors import AccessDenied, DamagedObject, RemoteError, ServiceUnavailable
from mlops_sdk.identity.s3_token import session_from

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_PRECONDITION = {"PreconditionFailed", "ConditionalRequestConflict", "412"}
_MISSING = {"NoSuchKey", "404", "NotFound", "NoSuchBucket"}
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403"}
_NOT_RENEWED = "the controller renews this login while the run lives: see what it warned of"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One listed object: key, size in bytes, ETag without quotes."""

    key: str
    size: int
    etag: str


def connect_s3(settings: S3Settings, *, node: bool = False, timeout_s: float = 30.0, attempts: int = 4) -> S3Client:
    """A boto3 client with the settings that Ceph RGW needs.

    Checksums ``when_required``: boto3's default trailer fails every PUT to RGW over HTTPS (411).

    Raises:
        AccessDenied: the settings name a file with the login, and it cannot be used.
    """
    config = Config(
        s3={"addressing_style": "path", "payload_signing_enabled": False},
        retries={"total_max_attempts": attempts, "mode": "standard"},
        connect_timeout=5,
        read_timeout=timeout_s,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    common: dict[str, Any] = {
        "endpoint_url": (settings.node_endpoint or settings.endpoint) if node else settings.endpoint,
        "region_name": settings.region,
        "verify": settings.ca_bundle or None,
        "config": config,
    }
    if settings.credentials_file:
        return _following(Path(settings.credentials_file), common)
    return boto3.client(
        "s3",
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key.get_secret_value(),
        **common,
    )


def _following(path: Path, common: Mapping[str, Any]) -> S3Client:
    """A client that looks at the file for its login, again and again."""
    try:
        return boto3.Session(botocore_session=session_from(path)).client("s3", **common)
    except CredentialRetrievalError as error:
        raise AccessDenied("there is no S3 login for this machine", seen=str(error), next_step=_NOT_RENEWED) from None


class ObjectStore:
    """One bucket. Missing objects are None or False; everything else that fails is a `RemoteError`.

    Thread-safe: boto3 clients are.
    """

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._s3 = client
        self.bucket = bucket

    @classmethod
    def open(cls, settings: S3Settings, *, node: bool = False) -> ObjectStore:
        """The store of a deployment; with `node`, at the address that machines use."""
        return cls(connect_s3(settings, node=node), settings.bucket)

    def ensure_bucket(self) -> None:
        """Create the bucket if it is not there."""
        with self._translated("create bucket", self.bucket):
            try:
                self._s3.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if _code(error) not in _MISSING:
                    raise
                self._s3.create_bucket(Bucket=self.bucket)

    def moment(self) -> datetime:
        """What the server's clock says now, to the second.

        Raises:
            RemoteError: its reply has no ``Date``.
        """
        with self._translated("look", self.bucket):
            reply = self._s3.head_bucket(Bucket=self.bucket)
        date = reply["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        try:
            return parsedate_to_datetime(date).astimezone(UTC)
        except ValueError:
            raise RemoteError(
                f"the S3 server behind bucket {self.bucket!r} does not say what time it is",
                seen=f"Date: {date!r}",
                next_step="check what stands between us and S3: leases are judged by its clock",
            ) from None

    def put(self, key: str, body: bytes) -> str:
        """Store an object, replacing what was there. Returns the ETag."""
        with self._translated("PUT", key):
            return self._s3.put_object(Bucket=self.bucket, Key=key, Body=body)["ETag"].strip('"')

    def put_if_absent(self, key: str, body: bytes) -> bool:
        """Store an object only if none is there: of any number of callers exactly one gets True.

        A retry inside boto3 after a lost reply meets its own object; so a refusal while the stored body equals ours is
        a success. Where exclusivity matters, callers put something unique to them into the body.
        """
        with self._translated("conditional PUT", key):
            try:
                self._s3.put_object(Bucket=self.bucket, Key=key, Body=body, IfNoneMatch="*")
            except ClientError as error:
                if _code(error) not in _PRECONDITION:
                    raise
                return self.get(key) == body
            return True

    def put_if_match(self, key: str, body: bytes, etag: str) -> str | None:
        """Replace an object only if it still has this ETag. The new ETag, or None when somebody was faster.

        RGW wants the ETag unquoted.
        """
        with self._translated("conditional PUT", key):
            try:
                reply = self._s3.put_object(Bucket=self.bucket, Key=key, Body=body, IfMatch=etag.strip('"'))
            except ClientError as error:
                if _code(error) in _PRECONDITION | _MISSING:
                    return None
                raise
            return reply["ETag"].strip('"')

    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None."""
        found = self.get_with_etag(key)
        return None if found is None else found[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str] | None:
        """The object's bytes and ETag, or None."""
        with self._translated("GET", key):
            try:
                reply = self._s3.get_object(Bucket=self.bucket, Key=key)
                return reply["Body"].read(), reply["ETag"].strip('"')
            except ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise

    def get_json(self, key: str) -> Any | None:
        """The object parsed as JSON, or None when it is not there.

        Raises:
            DamagedObject: It is no JSON.
        """
        body = self.get(key)
        if body is None:
            return None
        try:
            return json.loads(body)
        except ValueError as error:
            raise DamagedObject(
                f"object {key!r} in bucket {self.bucket!r} is no JSON",
                seen=f"{error}; {len(body)} bytes",
                next_step="restore it from its earlier version, or remove it if it was put there by mistake",
            ) from error

    def put_json(self, key: str, value: Any) -> str:
        """Store a value as canonical JSON (sorted keys, UTF-8)."""
        return self.put(key, to_json(value))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects under a prefix, in key order."""
        with self._translated("LIST", prefix):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            for page in pages:
                for item in page.get("Contents", []):
                    yield ObjectInfo(
                        key=item.get("Key", ""), size=item.get("Size", 0), etag=item.get("ETag", "").strip('"')
                    )

    def list_folders(self, prefix: str) -> Iterator[str]:
        """The names directly under a prefix that hold objects, without listing those: ``runs/`` gives the run keys."""
        with self._translated("LIST", prefix):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")
            for page in pages:
                for item in page.get("CommonPrefixes", []):
                    yield item.get("Prefix", "").removeprefix(prefix).rstrip("/")

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""
        with self._translated("DELETE", key):
            self._s3.delete_object(Bucket=self.bucket, Key=key)

    def upload(self, key: str, path: Path) -> None:
        """Store a file (multipart when large)."""
        with self._translated("upload", key):
            try:
                self._s3.upload_file(str(path), self.bucket, key)
            except S3UploadFailedError as error:
                if isinstance(error.__context__, ClientError):
                    raise error.__context__ from None
                raise

    def download(self, key: str, path: Path) -> None:
        """Fetch an object into a file."""
        with self._translated("download", key):
            self._s3.download_file(self.bucket, key, str(path))

    def presigned(self, key: str, *, seconds: int) -> str:
        """An address from which anybody may GET this object for a while, without a key. Makes no request."""
        return self._s3.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=seconds
        )

    def probe_conditional_put(self) -> None:
        """Refuse a server that accepts ``If-None-Match`` and ignores it: eight writers race for one key.

        Raises:
            RemoteError: when not exactly one of them won.
        """
        key = f"probe/{uuid.uuid4().hex}"
        with ThreadPoolExecutor(8) as pool:
            wins = list(pool.map(self.put_if_absent, [key] * 8, [f"{i}".encode() for i in range(8)]))
        again = self.put_if_absent(key, b"late")
        self.delete(key)
        if sum(wins) != 1 or again:
            raise RemoteError(
                f"the S3 server behind bucket {self.bucket!r} does not honour If-None-Match",
                seen=f"{sum(wins)} of 8 concurrent conditional PUTs won, a later one {'won' if again else 'lost'}",
                next_step="use Ceph RGW 16.2 or later, or another server with conditional writes; "
                "commits and fences depend on them",
            )

    @contextmanager
    def _translated(self, action: str, key: str) -> Generator[None]:
        where = f"S3 {action} of {key!r} in bucket {self.bucket!r}"
        try:
            yield
        except ClientError as error:
            seen = f"{_status(error)} {_code(error)}"
            if _code(error) in _DENIED:
                raise AccessDenied(
                    f"{where} was refused", seen=seen, next_step="check s3.access_key_id and its secret"
                ) from error
            if _status(error) >= 500:  # noqa: PLR2004 - HTTP: server errors
                raise ServiceUnavailable(f"{where} failed", seen=seen, next_step="see the S3 server's log") from error
            raise RemoteError(f"{where} failed", seen=seen, next_step="see the S3 server's log") from error
        except CredentialRetrievalError as error:
            raise ServiceUnavailable(f"{where} has no login", seen=str(error), next_step=_NOT_RENEWED) from None
        except (BotoCoreError, Boto3Error) as error:
            raise ServiceUnavailable(
                f"{where} got no answer", seen=str(error), next_step="check that the S3 endpoint is up and reachable"
            ) from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
