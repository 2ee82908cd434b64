"""The output of an attempt on its way to S3."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.objects import ObjectStore
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.training.logs import AttemptLogs

PREFIX = "runs/aaaaaaaaaaaa/logs/attempt-1"


@pytest.fixture
def s3() -> MemoryS3:
    return MemoryS3()


@pytest.fixture
def store(s3: MemoryS3) -> ObjectStore:
    return memory_store(s3)


@pytest.fixture
def logs(store: ObjectStore) -> Iterator[AttemptLogs]:
    logs = AttemptLogs(store, PREFIX)
    yield logs
    logs.close()


def store_all(logs: AttemptLogs) -> str:
    logs.flush()
    return logs.upload()


def node_of(rank: int) -> str:
    return f"gpu-0{rank + 1}"


def test_each_rank_and_each_launcher_has_its_own_object(s3: MemoryS3, logs: AttemptLogs) -> None:
    assert logs.add("gpu-01", "[rank 1] step 1", node_of) == "[rank 1 gpu-02] step 1"
    assert logs.add("gpu-01", "mpirun says", node_of) == "[gpu-01] mpirun says"
    assert store_all(logs) == ""
    assert s3.objects[f"{PREFIX}/rank-1.log"] == b"step 1\n"
    assert s3.objects[f"{PREFIX}/node-gpu-01.log"] == b"mpirun says\n"


def test_later_lines_follow_in_a_later_upload(s3: MemoryS3, logs: AttemptLogs) -> None:
    logs.add("gpu-01", "[rank 0] a", node_of)
    store_all(logs)
    logs.add("gpu-01", "[rank 0] b", node_of)
    store_all(logs)
    assert s3.objects[f"{PREFIX}/rank-0.log"] == b"a\nb\n"


def test_a_large_log_waits_for_the_last_upload(s3: MemoryS3, logs: AttemptLogs) -> None:
    logs.add("gpu-01", "[rank 0] " + "x" * 100, node_of)
    logs.add("gpu-01", "[rank 1] y", node_of)
    logs.flush()
    assert logs.upload(up_to=50) == ""
    assert set(s3.objects) == {f"{PREFIX}/rank-1.log"}
    assert logs.upload() == ""
    assert len(s3.objects[f"{PREFIX}/rank-0.log"]) == 101


def test_a_failing_upload_is_told_and_made_up_for(
    s3: MemoryS3, store: ObjectStore, logs: AttemptLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, **__: object) -> None:
        raise ServiceUnavailable("S3 upload failed", seen="connection refused")

    logs.add("gpu-01", "[rank 0] a", node_of)
    with monkeypatch.context() as patch:
        patch.setattr(store, "upload", down)
        assert "connection refused" in store_all(logs)
    assert store_all(logs) == ""
    assert s3.objects[f"{PREFIX}/rank-0.log"] == b"a\n"


def test_the_last_words_are_the_ranks_own_or_else_the_launchers(logs: AttemptLogs) -> None:
    logs.add("gpu-02", "torchrun: cannot bind", node_of)
    assert logs.tail(1, "gpu-02") == "torchrun: cannot bind"
    logs.add("gpu-02", "[rank 1]     raise ValueError()", node_of)
    logs.add("gpu-02", "[rank 1]     ^^^^^", node_of)
    logs.add("gpu-02", "[rank 1] ValueError: x", node_of)
    assert logs.tail(1, "gpu-02") == "raise ValueError() | ValueError: x"
    assert logs.uri(1, "gpu-02").endswith("/rank-1.log")
    assert logs.uri(-1, "gpu-02").endswith("/node-gpu-02.log")
