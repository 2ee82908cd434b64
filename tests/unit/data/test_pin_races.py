"""What Git or DVC refuses while somebody else pins the same content is looked up again; what stays refused is told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import stamina

from mlops_sdk.config import S3Settings
from mlops_sdk.data import versioning
from mlops_sdk.data.clone import DataClone
from mlops_sdk.data.versioning import object_key, pin
from mlops_sdk.errors import DataError
from mlops_sdk.objects import ObjectStore
from mlops_sdk.testing.memory_s3 import MemoryS3

S3 = S3Settings(endpoint="http://s3.invalid", access_key_id="a", secret_access_key="b")
BODY = b"corpus"
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
THEIRS = "f" * 40


class Clone:
    """A clone whose DVC refuses, and what happens elsewhere meanwhile."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile
        self.revision = self.seen = ""
        self.refused = 0

    def find(self, _name: str, _md5: str) -> str:
        return self.seen

    def add(self, *_args: object) -> None:
        return

    def send(self, name: str) -> None:
        self.refused += 1
        self.meanwhile()
        raise DataError(f"dvc push failed for {name!r}")

    def refresh(self) -> None:
        self.seen = self.revision


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    store = ObjectStore(MemoryS3(), "mlops")
    monkeypatch.setattr(ObjectStore, "open", lambda _settings: store)
    with stamina.set_testing(True, attempts=versioning.ATTEMPTS):
        yield store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.bin"
    path.write_bytes(BODY)
    return path


def test_the_second_of_two_finds_what_the_first_has_pinned(store, file, monkeypatch):
    def they_pin() -> None:
        store.put(object_key(MD5), BODY)
        clone.revision = THEIRS

    clone = Clone(they_pin)
    monkeypatch.setattr(DataClone, "make", lambda *_args, **_named: clone)
    version = pin(S3, "data.git", file, cache=file.parent / "cache")
    assert (version.revision, version.md5, clone.refused) == (THEIRS, MD5, 1)


def test_what_is_refused_again_and_again_is_told_in_its_words(store, file, monkeypatch):
    clone = Clone(lambda: None)
    monkeypatch.setattr(DataClone, "make", lambda *_args, **_named: clone)
    with pytest.raises(DataError, match=r"dvc push failed for 'corpus\.bin'"):
        pin(S3, "data.git", file, cache=file.parent / "cache")
    assert clone.refused == versioning.ATTEMPTS
    assert store.get(object_key(MD5)) is None
