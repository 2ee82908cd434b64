"""The program on two real ranks: one is killed, the next attempt goes on from the last commit."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from mlops_pipelines.programs.code_lm import corpus
from mlops_pipelines.programs.code_lm.sources import standard_library
from mlops_sdk.checkpoint.manifest import committed_steps, parse_key
from mlops_sdk.names import run_key
from mlops_sdk.objects import ObjectStore
from mlops_sdk.training.jobfile import VARIABLE, FileRef, JobFile

pytestmark = pytest.mark.stack

ARGS = {
    "steps": 40,
    "batch": 4,
    "seq_len": 32,
    "checkpoint_every": 5,
    "evaluate_bytes": 3000,
    "hidden": 64,
    "layers": 2,
    "heads": 2,
    "intermediate": 96,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> corpus.PreparedData:
    small = [f for f in standard_library() if len(f.text) < 12_000]
    return corpus.prepare(tmp_path_factory.mktemp("data"), vocabulary=400, files=small[:80])


@pytest.fixture
def job(stack, data: corpus.PreparedData, tmp_path: Path) -> JobFile:
    run_id = uuid.uuid4()
    ref = FileRef(name=corpus.FILE_NAME, key=data.key, sha256=data.sha256, size=data.size)
    target = tmp_path / "data" / data.sha256 / corpus.FILE_NAME
    target.parent.mkdir(parents=True)
    target.symlink_to(data.path)
    return JobFile(
        run_id=run_id,
        run_key=run_key(run_id),
        attempt=1,
        module="mlops_pipelines.programs.code_lm.train",
        args=ARGS,
        prefix=f"runs/{run_key(run_id)}",
        address="127.0.0.1",
        scratch=str(tmp_path),
        s3=stack.settings.s3,
        bundle=FileRef(name="bundle.tar", key="none", sha256="0" * 64, size=0),
        data=(ref,),
    )


def start(job: JobFile, attempt: int, tmp_path: Path, port: int) -> list[subprocess.Popen[bytes]]:
    path = tmp_path / f"job-{attempt}.json"
    path.touch(mode=0o600)
    path.write_bytes(job.model_copy(update={"attempt": attempt}).to_bytes())
    ranks: list[subprocess.Popen[bytes]] = []
    for rank in range(2):
        env = os.environ | {
            VARIABLE: str(path),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        with (tmp_path / f"attempt-{attempt}-rank-{rank}.log").open("wb") as log:
            argv = [sys.executable, "-m", "mlops_sdk.training.worker"]
            ranks.append(subprocess.Popen(argv, env=env, stdout=log, stderr=subprocess.STDOUT))
    return ranks


def committed(objects: ObjectStore, job: JobFile) -> list[int]:
    prefix = f"{job.prefix}/checkpoints"
    return committed_steps([o for i in objects.list(f"{prefix}/") if (o := parse_key(prefix, i.key)) is not None])


def free_port() -> int:

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow  # tests/e2e does the same to a whole job
def test_a_killed_rank_costs_no_committed_step(stack, job: JobFile, tmp_path: Path):
    objects = ObjectStore.open(stack.settings.s3)
    ranks = start(job, 1, tmp_path, free_port())
    try:
        deadline = time.monotonic() + 120
        while not committed(objects, job):
            assert time.monotonic() < deadline
            assert all(rank.poll() is None for rank in ranks), (tmp_path / "attempt-1-rank-0.log").read_text()
            time.sleep(0.05)
        log = (tmp_path / "attempt-1-rank-1.log").read_text()
        os.kill(int(re.search(r'"pid":(\d+)', log)[1]), signal.SIGKILL)
        assert [rank.wait(60) != 0 for rank in ranks] == [True, True]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    last = committed(objects, job)[0]
    assert objects.get(f"{job.prefix}/results/attempt-1.json") is None

    again = start(job, 2, tmp_path, free_port())
    assert [rank.wait(120) for rank in again] == [0, 0], (tmp_path / "attempt-2-rank-0.log").read_text()
    result = json.loads(objects.get(f"{job.prefix}/results/attempt-2.json") or b"{}")
    assert result["resumed_from"] == last
    assert result["damaged_checkpoints"] == []
    assert 0 < result["bits_per_byte"] < 8
    assert committed(objects, job)[0] == ARGS["steps"]
