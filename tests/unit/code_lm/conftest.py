"""A small corpus and a tiny configuration, so that the whole program runs in a second or two."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_pipelines.programs.code_lm import corpus
from mlops_pipelines.programs.code_lm import sources as source_files
from mlops_pipelines.programs.code_lm.sources import SourceFile
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.training.context import WorkerContext
from mlops_sdk.training.jobfile import FileRef

TINY = {
    "steps": 8,
    "batch": 4,
    "seq_len": 16,
    "checkpoint_every": 3,
    "log_every": 2,
    "evaluate_bytes": 3000,
    "hidden": 16,
    "layers": 2,
    "heads": 2,
    "intermediate": 24,
    "warm_up": 2,
}


@pytest.fixture(scope="session")
def sources() -> list[SourceFile]:
    """Some thirty files of the standard library, among them held-out ones."""
    return some_of(source_files.standard_library())


@pytest.fixture(scope="session")
def wider_sources(sources: list[SourceFile]) -> list[SourceFile]:
    """The same and as many C++ headers."""
    return [*sources, *some_of(source_files.cpp_headers())]


def some_of(files: list[SourceFile]) -> list[SourceFile]:
    small = [f for f in files if len(f.text) < 12_000]
    held_out = [f for f in small if source_files.is_held_out(f.path)]
    return [f for f in small if not source_files.is_held_out(f.path)][:25] + held_out[:8]


@pytest.fixture(scope="session")
def prepared(sources: list[SourceFile], tmp_path_factory: pytest.TempPathFactory) -> corpus.PreparedData:
    return corpus.prepare(tmp_path_factory.mktemp("prepared"), vocabulary=400, files=sources)


@pytest.fixture(scope="session")
def wider(wider_sources: list[SourceFile], tmp_path_factory: pytest.TempPathFactory) -> corpus.PreparedData:
    return corpus.prepare(tmp_path_factory.mktemp("wider"), vocabulary=400, files=wider_sources)


@pytest.fixture
def s3() -> MemoryS3:
    return MemoryS3()


@pytest.fixture
def job(prepared: corpus.PreparedData, s3: MemoryS3, tmp_path: Path) -> Callable[..., WorkerContext]:
    """Makes the context of an attempt, as the worker would."""

    def make(
        attempt: int = 1, *, data: corpus.PreparedData = prepared, prefix: str = "runs/abc", **args: object
    ) -> WorkerContext:
        ref = FileRef(name=corpus.FILE_NAME, key=data.key, sha256=data.sha256, size=data.size)
        target = tmp_path / "data" / data.sha256 / corpus.FILE_NAME
        if not target.is_symlink():
            target.parent.mkdir(parents=True)
            target.symlink_to(data.path)
        return WorkerContext(
            run_id=uuid.UUID(int=1),
            run_key="abc",
            attempt=attempt,
            rank=0,
            world_size=1,
            local_rank=0,
            store=memory_store(s3),
            prefix=prefix,
            args=TINY | args,
            scratch=tmp_path,
            secrets={},
            files=(ref,),
            notice_file=tmp_path / "notice.json",
        )

    return make
