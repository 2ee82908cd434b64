"""Runs on a machine before the ranks: brings bundle and data into scratch and proves they are what was sent.

    python -m mlops_sdk.training.fetch        (`MLOPS_JOB_FILE` names the job file)

Writes one `Prepared` or `Refused` message. What is already there under the right hash is not fetched again.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import io
import os
import re
import shutil
import socket
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement

from mlops_sdk.errors import BundleError, MlopsError, NodeFailed
from mlops_sdk.objects import ObjectStore
from mlops_sdk.training.bundle import hash_file
from mlops_sdk.training.jobfile import FileRef, JobFile
from mlops_sdk.training.messages import Prepared, Refused, encode
from mlops_sdk.training.network import interface_of

_PINNED = re.compile(r"^[A-Za-z0-9][^\\#]*==[^\\#]*")


def main() -> int:
    """Prepare this machine and say how it went."""
    started = time.monotonic()
    try:
        job = JobFile.load()
        store = ObjectStore.open(job.s3, node=True)
        scratch = Path(job.scratch)
        path = fetch_bundle(store, job.bundle, scratch)
        for ref in job.data:
            fetch_data(store, ref, scratch)
        interface, network = interface_of(job.address)
    except MlopsError as error:
        refused = Refused(error=type(error).__name__, what=error.what, seen=error.seen, next_step=error.next_step)
        sys.stdout.write(encode(refused) + "\n")
        return 1
    prepared = Prepared(
        python_path=[str(p) for p in path],
        interface=interface,
        network=network,
        seconds=round(time.monotonic() - started, 3),
    )
    sys.stdout.write(encode(prepared) + "\n")
    return 0


def fetch_bundle(store: ObjectStore, ref: FileRef, scratch: Path) -> list[Path]:
    """Unpack the bundle below `scratch`; the directories that go first on the ranks' path.

    Raises:
        BundleError: missing, another hash, unsafe names in it, or the image does not satisfy its requirements.
        NodeFailed: scratch is full or broken.
    """
    target = scratch / "bundle" / ref.sha256
    if not target.is_dir():
        body = store.get(ref.key)
        if body is None:
            raise _missing(ref)
        _check_hash(ref, hashlib.sha256(body).hexdigest())
        with _Disk(scratch, len(body) * 3):
            _unpack(body, target)
    check_requirements((target / "requirements.txt").read_text())
    return [directory for directory in (target / "program", target / "site") if directory.is_dir()]


def fetch_data(store: ObjectStore, ref: FileRef, scratch: Path) -> Path:
    """Bring one input file to ``<scratch>/data/<sha256>/<name>`` and verify its size and SHA-256.

    Raises:
        BundleError: the object is not what was sent.
        NodeFailed: scratch is full or broken.
    """
    target = data_path(scratch, ref)
    if target.is_file() and target.stat().st_size == ref.size and hash_file(target) == ref.sha256:
        return target
    partial = target.with_name(f"{target.name}.part")
    with _Disk(scratch, ref.size):
        target.parent.mkdir(parents=True, exist_ok=True)
        store.download(ref.key, partial)
        _check_size(ref, partial.stat().st_size)
        _check_hash(ref, hash_file(partial))
        partial.rename(target)
    return target


def data_path(scratch: Path, ref: FileRef) -> Path:
    """Where an input file lies on the machine."""
    return scratch / "data" / ref.sha256 / ref.name


def check_requirements(text: str) -> None:
    """Compare a lock with what is installed here.

    Raises:
        BundleError: naming the first package that is missing or has another version, and how many there are.
    """
    wrong = list(_unsatisfied(text))
    if wrong:
        name, wanted, found = wrong[0]
        raise BundleError(
            f"the machine's image does not have what the job was locked to: {name!r}",
            seen=f"wanted {wanted}, found {found}" + (f"; {len(wrong) - 1} more differ" if len(wrong) > 1 else ""),
            next_step="deploy the image that was built from the same lock, or lock again",
        )


class _Disk:
    """Turns a full or broken scratch disk into an error that says so."""

    def __init__(self, scratch: Path, need: int) -> None:
        self._scratch = scratch
        self._need = need

    def __enter__(self) -> None:
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failure(error) from error
        free = shutil.disk_usage(self._scratch).free
        if free < self._need:
            raise self._failure(OSError(errno.ENOSPC, f"needs {self._need} bytes"))

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        cause = error.__cause__ if isinstance(error, MlopsError) else error
        if isinstance(cause, OSError) and cause.errno is not None:
            raise self._failure(cause) from error

    def _failure(self, error: OSError) -> NodeFailed:
        usage = shutil.disk_usage(self._scratch if self._scratch.exists() else self._scratch.parent)
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        return NodeFailed(
            f"scratch {str(self._scratch)!r} of machine {socket.gethostname()!r} is {'full' if full else 'not usable'}",
            seen=f"{error}; {usage.free} of {usage.total} bytes free",
            next_step="ask for machines with more scratch or send less data; cleaning erases what earlier jobs left",
        )


def _unpack(body: bytes, target: Path) -> None:
    partial = target.with_name(f"{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        for member in archive:
            source = archive.extractfile(member) if member.isreg() else None
            if source is None:
                raise _unsafe(member.name, "not a regular file")
            content = source.read()
            if member.name.startswith("wheel/"):
                _unzip(content, partial / "site")
            _write(partial, member.name, content)
    partial.rename(target)


def _unzip(wheel: bytes, target: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for name in archive.namelist():
            if not name.endswith("/"):
                _write(target, name, archive.read(name))


def _write(root: Path, name: str, content: bytes) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise _unsafe(name, "its name leads outside")
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _unsatisfied(text: str) -> Iterator[tuple[str, str, str]]:
    for line in text.splitlines():
        match = _PINNED.match(line.strip())
        if match is None:
            continue
        pin = Requirement(match[0])
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        try:
            found = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            found = "nothing"
        if found == "nothing" or not pin.specifier.contains(found, prereleases=True):
            yield pin.name, str(pin.specifier), found


def _check_hash(ref: FileRef, seen: str) -> None:
    if seen != ref.sha256:
        raise BundleError(
            f"object {ref.key!r} is not what was sent",
            seen=f"expected SHA-256 {ref.sha256}, got {seen}",
            next_step="find out who replaced it; delete it and send it again",
        )


def _check_size(ref: FileRef, seen: int) -> None:
    if seen != ref.size:
        raise BundleError(
            f"object {ref.key!r} is not what was sent",
            seen=f"expected {ref.size} bytes, got {seen}",
            next_step="find out who replaced it; delete it and send it again",
        )


def _missing(ref: FileRef) -> BundleError:
    return BundleError(f"object {ref.key!r} is not in the bucket", next_step="send the bundle before the launch")


def _unsafe(name: str, why: str) -> BundleError:
    return BundleError(f"bundle member {name!r} is refused", seen=why, next_step="make the bundle with put_bundle")


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
