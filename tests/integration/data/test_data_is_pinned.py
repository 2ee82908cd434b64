"""Git, DVC and the real RGW: one content is one revision."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlops_sdk.config import S3Settings
from mlops_sdk.data.versioning import DataVersion, pin
from mlops_sdk.errors import DataError, ServiceUnavailable
from mlops_sdk.objects import ObjectStore

pytestmark = pytest.mark.stack


@pytest.fixture
def s3(stack: Any) -> S3Settings:
    ObjectStore.open(stack.settings.s3).ensure_bucket()
    return stack.settings.s3


@pytest.fixture
def repository(tmp_path: Path) -> str:
    path = tmp_path / "data.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", path], check=True)
    return str(path)


def a_file(folder: Path, body: bytes, name: str = "corpus.bin") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(body)
    return path


def commits(repository: str) -> list[str]:
    log = ["git", "-C", repository, "log", "--reverse", "--format=%H", "main"]
    return subprocess.run(log, check=True, capture_output=True, text=True).stdout.split()


def test_the_same_content_is_one_revision_and_other_content_another(s3: S3Settings, repository: str, tmp_path: Path):
    one, other = os.urandom(100_000), os.urandom(100_000)
    first = pin(s3, repository, a_file(tmp_path, one), cache=tmp_path / "cache")
    second = pin(s3, repository, a_file(tmp_path, other), cache=tmp_path / "cache")
    again = pin(s3, repository, a_file(tmp_path, one), cache=tmp_path / "empty")  # another machine
    assert again == first
    assert commits(repository) == [first.revision, second.revision]
    stored = ObjectStore.open(s3).get(first.ref().key)
    assert stored == one
    assert (first.sha256, first.size) == (hashlib.sha256(one).hexdigest(), len(one))
    assert_no_secret(s3, repository)


@pytest.mark.slow
def test_pins_at_the_same_time_do_not_break_each_other(s3: S3Settings, repository: str, tmp_path: Path):
    same = os.urandom(50_000)
    bodies = [same, same, os.urandom(50_000), os.urandom(50_000)]
    files = [a_file(tmp_path / str(i), body) for i, body in enumerate(bodies)]

    def one(file: Path) -> DataVersion:
        return pin(s3, repository, file, cache=tmp_path / "cache")

    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(one, files))
    assert versions[0] == versions[1]
    assert sorted({version.revision for version in versions}) == sorted(commits(repository))
    assert len(commits(repository)) == 3
    for version, body in zip(versions, bodies, strict=True):
        assert ObjectStore.open(s3).get(version.key) == body


@pytest.mark.slow
def test_one_large_file_pinned_by_several_at_once_is_one_revision(s3: S3Settings, repository: str, tmp_path: Path):
    """Large: what DVC sends in parts. They share the built file and the cache, as two runs on one worker do."""
    for size in (12_000_000, 40_000_000):
        file = a_file(tmp_path, os.urandom(size), name=f"corpus-{size}.bin")
        with ThreadPoolExecutor(3) as pool:
            pins = [pool.submit(pin, s3, repository, file, cache=tmp_path / "cache") for _ in range(3)]
        first, *others = [one.result() for one in pins]
        assert others == [first, first]
        assert commits(repository)[-1] == first.revision
        stored = ObjectStore.open(s3).get(first.key)
        assert stored is not None
        assert hashlib.sha256(stored).hexdigest() == first.sha256
    assert len(commits(repository)) == 2


@pytest.mark.slow
def test_dvc_itself_finds_the_data_at_its_revision(s3: S3Settings, repository: str, tmp_path: Path):
    body = os.urandom(10_000)
    version = pin(s3, repository, a_file(tmp_path, body), cache=tmp_path / "cache")
    pin(s3, repository, a_file(tmp_path, b"later"), cache=tmp_path / "cache")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", repository, clone], check=True)
    subprocess.run(["git", "-C", clone, "checkout", "--quiet", version.revision], check=True)
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret_access_key.get_secret_value(),
        "DVC_NO_ANALYTICS": "1",
    }
    (clone / ".dvc" / "config.local").write_text(f"['remote \"bucket\"']\n    endpointurl = {s3.endpoint}\n")
    subprocess.run([sys.executable, "-m", "dvc", "pull", "--quiet"], cwd=clone, env=environment, check=True)
    assert (clone / "data" / "corpus.bin").read_bytes() == body


@pytest.mark.slow
def test_an_object_that_was_lost_is_stored_again_under_the_old_revision(
    s3: S3Settings, repository: str, tmp_path: Path
):
    file = a_file(tmp_path, os.urandom(10_000))
    first = pin(s3, repository, file, cache=tmp_path / "cache")
    ObjectStore.open(s3).delete(first.key)
    assert pin(s3, repository, file, cache=tmp_path / "cache") == first
    assert ObjectStore.open(s3).get(first.key) == file.read_bytes()
    assert commits(repository) == [first.revision]


def test_what_is_not_there_is_named(s3: S3Settings, tmp_path: Path):
    file = a_file(tmp_path, b"x")
    with pytest.raises(ServiceUnavailable, match=r"no-such\.git") as caught:
        pin(s3, str(tmp_path / "no-such.git"), file, cache=tmp_path / "cache")
    assert s3.secret_access_key.get_secret_value() not in str(caught.value)
    broken = tmp_path / "broken.git"
    broken.mkdir()
    with pytest.raises((ServiceUnavailable, DataError), match=r"broken\.git"):
        pin(s3, f"file://user:hidden@localhost{broken}", file, cache=tmp_path / "cache")


def assert_no_secret(s3: S3Settings, repository: str) -> None:
    everything = subprocess.run(
        ["git", "-C", repository, "log", "--patch", "--all"], check=True, capture_output=True, text=True
    ).stdout
    assert s3.secret_access_key.get_secret_value() not in everything
    assert s3.access_key_id not in everything
