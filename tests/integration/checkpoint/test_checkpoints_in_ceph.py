"""Checkpoints in the real object store: commits, damage, an outage in the middle of a save."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mlops_sdk.checkpoint.communicator import Communicator
from mlops_sdk.checkpoint.manifest import manifest_key
from mlops_sdk.checkpoint.store import CheckpointStore
from mlops_sdk.errors import CheckpointConflict, ServiceUnavailable
from mlops_sdk.objects import ObjectStore
from mlops_sdk.testing.ranks import run_ranks

pytestmark = pytest.mark.stack


@pytest.fixture
def objects(stack) -> ObjectStore:
    return ObjectStore.open(stack.settings.s3)


@pytest.fixture
def prefix() -> str:
    return f"runs/test-{uuid.uuid4().hex[:8]}/checkpoints"


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {f"t{i}": torch.full((256, 256), value + i) for i in range(8)}


def save(objects: ObjectStore, prefix: str, *steps: int, world: int = 2, attempt: int = 1) -> list[object]:
    def program(comm: Communicator):
        checkpoints = CheckpointStore(objects, prefix, run_id="r", attempt=attempt, comm=comm, keep=2)
        for step in steps:
            checkpoints.save(step, tensors(step), state={"step": step})
        return checkpoints.wait()

    return run_ranks(world, program, timeout_s=120)


def load(objects: ObjectStore, prefix: str, *, world: int = 1):
    def program(comm: Communicator):
        checkpoints = CheckpointStore(objects, prefix, run_id="r", attempt=9, comm=comm)
        return checkpoints.load_latest(), checkpoints.damages

    return run_ranks(world, program, timeout_s=120)


def test_saved_by_four_loaded_by_two_and_old_ones_removed(objects: ObjectStore, prefix: str):
    save(objects, prefix, 10, 20, 30, world=4)
    for found, damages in load(objects, prefix, world=2):
        assert (found.step, damages) == (30, ())
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors(30).items())
    assert {info.key.split("/")[3] for info in objects.list(f"{prefix}/")} == {"step-00000020", "step-00000030"}


def test_a_damaged_shard_is_named_and_passed_over(objects: ObjectStore, prefix: str):
    save(objects, prefix, 10, 20)
    key = next(info.key for info in objects.list(f"{prefix}/step-00000020/attempt-1/"))
    body = objects.get(key)
    assert body is not None
    objects.put(key, body[:-100] + bytes([body[-100] ^ 1]) + body[-99:])
    ((found, (damage,)),) = load(objects, prefix)
    assert found.step == 10
    assert damage.key == key
    assert damage.expected != damage.seen


def test_of_attempts_that_commit_a_step_at_once_exactly_one_wins(objects: ObjectStore, prefix: str):
    def attempt(number: int) -> int:
        checkpoints = CheckpointStore(objects, prefix, run_id="r", attempt=number)
        checkpoints.save(10, tensors(number))
        try:
            checkpoints.wait()
        except CheckpointConflict:
            return 0
        return number

    with ThreadPoolExecutor(4) as pool:
        (winner,) = [number for number in pool.map(attempt, range(1, 5)) if number]
    ((found, damages),) = load(objects, prefix)
    assert (found.manifest.attempt, damages) == (winner, ())
    assert torch.equal(found.tensors["t0"], tensors(winner)["t0"])


def test_store_down_in_the_middle_of_a_save(stack, objects: ObjectStore, prefix: str, monkeypatch: pytest.MonkeyPatch):
    save(objects, prefix, 10)
    put = ObjectStore.put_if_absent
    started = 0.0

    def put_while_down(self: ObjectStore, key: str, body: bytes) -> bool:
        nonlocal started
        with stack.held("ceph-rgw"):  # shards are there; the commit meets a refused connection
            started = time.monotonic()
            try:
                return put(self, key, body)
            finally:
                started = time.monotonic() - started

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "put_if_absent", put_while_down)
        results = save(objects, prefix, 20)
    assert [type(result) for result in results] == [ServiceUnavailable, ServiceUnavailable]
    assert started < 30
    assert objects.get(manifest_key(prefix, 20)) is None
    assert load(objects, prefix)[0][0].step == 10
    save(objects, prefix, 20, attempt=2)
    assert load(objects, prefix)[0][0].step == 20
