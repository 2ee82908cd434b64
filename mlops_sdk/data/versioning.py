"""Pin a file as a revision of a data repository: Git and DVC say which data it was, the bucket keeps it by its hash.

The same content is one revision, however often and by however many it is pinned. The machines need neither Git nor DVC:
they fetch the object by its key and check its SHA-256.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import stamina
from pydantic import JsonValue

from mlops_sdk.config import S3Settings
from mlops_sdk.data.clone import REMOTE_PREFIX, DataClone
from mlops_sdk.errors import DataError
from mlops_sdk.objects import ObjectStore
from mlops_sdk.training.spec import DataRef

BRANCH = "main"
_RACES = 20
ATTEMPTS = 3
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DataVersion:
    """A file of data that never changes.

    Attributes:
        name: Of the file.
        sha256: Of its content: what every machine checks.
        md5: Of its content: DVC's name for it.
        size: In bytes.
        revision: The commit of the data repository.
    """

    name: str
    sha256: str
    md5: str
    size: int
    revision: str

    @property
    def key(self) -> str:
        """Of the object in the bucket, as DVC lays out its remote."""
        return object_key(self.md5)

    def ref(self) -> DataRef:
        """As an input of a job."""
        return DataRef(name=self.name, sha256=self.sha256, size=self.size, key=self.key)

    def to_json(self) -> dict[str, JsonValue]:
        """Plain values."""
        return asdict(self)


def object_key(md5: str) -> str:
    """Where DVC keeps content with this MD5."""
    return f"{REMOTE_PREFIX}/files/md5/{md5[:2]}/{md5[2:]}"


def pin(s3: S3Settings, repository: str, path: Path, *, cache: Path, branch: str = BRANCH) -> DataVersion:
    """Store a file in the bucket and say so in the data repository; look-up-or-create.

    Args:
        s3: The bucket.
        repository: Clone URL of the data repository; may be empty at first.
        path: The file. Its name is its name in the repository.
        cache: DVC's cache folder on this machine; any number of pins may share it at once.
        branch: Where revisions go.

    Raises:
        ServiceUnavailable: bucket or repository gives no answer.
        AccessDenied: wrong credentials of the bucket.
        DataError: Git or DVC refused; in their words.
    """
    sha256, md5 = _digests(path)
    store = ObjectStore.open(s3)
    with tempfile.TemporaryDirectory(prefix="mlops-data-") as folder:
        work = DataClone.make(repository, Path(folder), branch=branch, s3=s3, cache=cache)
        revision = _pinned(work, store, path, sha256=sha256, md5=md5)
    return DataVersion(name=path.name, sha256=sha256, md5=md5, size=path.stat().st_size, revision=revision)


def _pinned(work: DataClone, store: ObjectStore, path: Path, *, sha256: str, md5: str) -> str:
    """The revision that says this content, which the bucket has.

    What Git or DVC refuses may be what somebody else is doing at the same time, with the same content: looked up again.
    """
    for attempt in stamina.retry_context(on=DataError, attempts=ATTEMPTS, wait_initial=0.5):
        with attempt:
            if attempt.num > 1:
                work.refresh()
            revision, stored = work.find(path.name, md5), _stored(store, md5, path.stat().st_size)
            if revision and stored:
                return revision
            work.add(path, path.name, md5)
            if not stored:
                work.send(path.name)
                _require(store, md5, path)
            return revision or _publish(work, path, sha256=sha256, md5=md5)
    raise RuntimeError("stamina ended without a result or an error")


def _publish(work: DataClone, path: Path, *, sha256: str, md5: str) -> str:
    """The revision: ours, or that of somebody who pinned the same content at the same time."""
    message = f"{path.name}: {path.stat().st_size} bytes, SHA-256 {sha256}"
    for _ in range(_RACES):
        if revision := work.publish(path.name, message, {"sha256": sha256}):
            return revision
        work.refresh()
        if revision := work.find(path.name, md5):
            return revision
        work.add(path, path.name, md5)
    raise DataError(
        f"{path.name!r} could not be pinned: others pushed {_RACES} times meanwhile",
        next_step="pin it again; the content is stored already",
    )


def _require(store: ObjectStore, md5: str, path: Path) -> None:
    if not _stored(store, md5, path.stat().st_size):
        raise DataError(
            f"DVC says that it pushed {path.name!r}, but the bucket does not have it",
            seen=f"no object {object_key(md5)!r} of {path.stat().st_size} bytes",
            next_step=f"see the remote in the data repository: it has to be bucket {store.bucket!r}",
        )


def _stored(store: ObjectStore, md5: str, size: int) -> bool:
    key = object_key(md5)
    return any(found.key == key and found.size == size for found in store.list(key))


def _digests(path: Path) -> tuple[str, str]:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as source:
        while block := source.read(_BLOCK):
            sha256.update(block)
            md5.update(block)
    return sha256.hexdigest(), md5.hexdigest()
