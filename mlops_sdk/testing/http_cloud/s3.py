"""An S3 server in memory with the answers of a real one: conditional PUT, list, get, delete. Strongly consistent."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from mlops_sdk.testing.http_cloud.messages import Answer, Call

_METHODS = {"PUT", "GET", "HEAD", "DELETE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One object in a listing."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All objects and folders below a prefix, on one page."""

    bucket: str
    prefix: str
    objects: tuple[Listed, ...] = ()
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Failure:
    """The body of an error: S3's code and words."""

    code: str
    words: str = ""


class FakeS3:
    """Objects of all buckets, by ``<bucket>/<key>``."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Keys of a bucket below a prefix, in order."""
        start = f"{bucket}/{prefix}"
        return sorted(name[len(bucket) + 1 :] for name in self.objects if name.startswith(start))

    def handle(self, call: Call) -> Answer:
        """Carry out one request."""
        bucket, _, key = call.path.removeprefix("/").partition("/")
        if call.method not in _METHODS:
            return failure(501, "NotImplemented")
        if not key:
            return self._list(bucket, call) if call.method == "GET" else Answer(status=200)
        name = f"{bucket}/{key}"
        if call.method == "PUT":
            return self._put(name, call)
        if call.method == "DELETE":
            self.objects.pop(name, None)
            return Answer(status=204)
        found = self.objects.get(name)
        if found is None:
            return failure(404, "NoSuchKey", "The specified key does not exist.")
        return Answer(status=200, body=found, headers={"ETag": f'"{etag(found)}"'})

    def _put(self, name: str, call: Call) -> Answer:
        found = self.objects.get(name)
        if call.headers.get("if-none-match") == "*" and found is not None:
            return failure(412, "PreconditionFailed", "At least one of the preconditions did not hold.")
        wanted = call.headers.get("if-match")
        if wanted is not None:
            if found is None:
                return failure(404, "NoSuchKey", "The specified key does not exist.")
            if etag(found) != wanted.strip('"'):
                return failure(412, "PreconditionFailed", "At least one of the preconditions did not hold.")
        body = bytes(call.body or b"")
        self.objects[name] = body
        return Answer(status=200, headers={"ETag": f'"{etag(body)}"'})

    def _list(self, bucket: str, call: Call) -> Answer:
        prefix, delimiter = call.query.get("prefix", ""), call.query.get("delimiter", "")
        keys = self.keys(bucket, prefix)
        if delimiter:
            folders = {prefix + key[len(prefix) :].split(delimiter)[0] + delimiter for key in keys}
            return Answer(status=200, body=Listing(bucket=bucket, prefix=prefix, folders=tuple(sorted(folders))))
        bodies = [(key, self.objects[f"{bucket}/{key}"]) for key in keys]
        found = tuple(Listed(key=key, size=len(body), etag=etag(body)) for key, body in bodies)
        return Answer(status=200, body=Listing(bucket=bucket, prefix=prefix, objects=found))


def failure(status: int, code: str, words: str = "") -> Answer:
    """An error as S3 says it."""
    return Answer(status=status, body=S3Failure(code=code, words=words))


@lru_cache(maxsize=1024)  # listing asks for those of all objects again and again
def etag(body: bytes) -> str:
    """The ETag of an object, without quotes."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
