"""Saving and resuming against a store in memory, with one or several ranks."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import pytest
import torch
from botocore.exceptions import EndpointConnectionError

from mlops_sdk.checkpoint.communicator import Communicator, SingleProcess
from mlops_sdk.checkpoint.manifest import manifest_key
from mlops_sdk.checkpoint.store import CheckpointStore, own_name
from mlops_sdk.errors import CheckpointConflict, CheckpointError, ServiceUnavailable
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.testing.ranks import run_ranks

PREFIX = "runs/abc/checkpoints"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def s3() -> MemoryS3:
    return MemoryS3()


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {f"t{i}": torch.full((4, i + 1), value) for i in range(6)} | {"count": torch.tensor(int(value))}


def open_store(s3: MemoryS3, *, attempt: int = 1, comm: Communicator | None = None, keep: int = 2) -> CheckpointStore:
    return CheckpointStore(
        memory_store(s3), PREFIX, run_id="r", attempt=attempt, comm=comm or SingleProcess(), keep=keep, now=lambda: NOW
    )


def save(s3: MemoryS3, *steps: int, world: int = 1, attempt: int = 1, keep: int = 2) -> list[object]:
    def program(comm: Communicator):
        checkpoints = open_store(s3, attempt=attempt, comm=comm, keep=keep)
        for step in steps:
            checkpoints.save(step, tensors(step), own={"rng": torch.tensor([comm.rank])}, state={"step": step})
        return checkpoints.wait()

    return run_ranks(world, program)


def load(s3: MemoryS3, *, world: int = 1, attempt: int = 2):
    def program(comm: Communicator):
        checkpoints = open_store(s3, attempt=attempt, comm=comm)
        return checkpoints.load_latest(), checkpoints.damages

    return run_ranks(world, program)


def damage(s3: MemoryS3, part: str) -> str:
    key = next(key for key in sorted(s3.objects) if part in key and key.endswith(".safetensors"))
    s3.objects[key] = s3.objects[key][:-1] + bytes([s3.objects[key][-1] ^ 0x40])
    return key


def test_nothing_stored_is_nothing_found(s3: MemoryS3):
    assert load(s3) == [(None, ())]


@pytest.mark.parametrize(("writers", "readers"), [(1, 1), (4, 2), (2, 1), (1, 3)])
def test_any_number_of_ranks_loads_what_any_number_wrote(s3: MemoryS3, writers: int, readers: int):
    save(s3, 10, 20, world=writers)
    for found, damages in load(s3, world=readers):
        assert (found.step, damages) == (20, ())
        assert found.manifest.state == {"step": 20}
        for name, tensor in tensors(20).items():
            assert torch.equal(found.tensors[name], tensor)
        for rank in range(writers):
            assert found.tensors[own_name(rank, "rng")].item() == rank


def test_every_tensor_is_stored_once(s3: MemoryS3):
    (manifest, *_) = save(s3, 10, world=3)
    names = [name for shard in manifest.shards for name in shard.tensors if not name.startswith("rank-")]
    assert sorted(names) == sorted(tensors(0))


def test_a_saved_tensor_may_change_at_once(s3: MemoryS3):
    checkpoints = open_store(s3)
    values = tensors(1)
    checkpoints.save(1, values)
    for tensor in values.values():
        tensor.zero_()
    checkpoints.wait()
    assert torch.equal(open_store(s3).load_latest().tensors["t0"], tensors(1)["t0"])


def test_buffers_are_used_again(s3: MemoryS3):
    checkpoints = open_store(s3)
    checkpoints.save(1, tensors(1))
    checkpoints.wait()
    first = {name: tensor.data_ptr() for name, tensor in checkpoints._buffers.items()}
    checkpoints.save(2, tensors(2))
    checkpoints.wait()
    assert {name: tensor.data_ptr() for name, tensor in checkpoints._buffers.items()} == first


def test_old_checkpoints_go(s3: MemoryS3):
    save(s3, 10, 20, 30, keep=2)
    assert {key.split("/")[3] for key in s3.objects} == {"step-00000020", "step-00000030"}


def test_without_manifest_nothing_is_visible_and_the_left_over_goes_later(s3: MemoryS3):
    save(s3, 10)
    save(s3, 20)
    del s3.objects[manifest_key(PREFIX, 20)]
    assert load(s3)[0][0].step == 10
    save(s3, 30, attempt=2)
    assert not any("step-00000020" in key for key in s3.objects)


@pytest.mark.parametrize("world", [1, 2])
def test_a_damaged_shard_is_passed_over_with_a_record(s3: MemoryS3, world: int, caplog: pytest.LogCaptureFixture):
    save(s3, 10, 20, world=2)
    key = damage(s3, "step-00000020")
    with caplog.at_level(logging.WARNING):
        results = load(s3, world=world)
    for found, damages in results:
        assert found.step == 10
        (record,) = damages
        assert record.key == key
        assert record.expected.startswith("SHA-256 ")
        assert record.seen.startswith("SHA-256 ")
        assert record.expected != record.seen
    assert key in caplog.text


def test_a_missing_or_truncated_shard_is_passed_over(s3: MemoryS3):
    save(s3, 10, 20, 30, world=2, keep=3)
    missing = next(key for key in s3.objects if "step-00000030" in key and "shard-00001" in key)
    short = next(key for key in s3.objects if "step-00000020" in key and "shard-00000" in key)
    del s3.objects[missing]
    s3.objects[short] = s3.objects[short][:-8]
    ((found, damages),) = load(s3)
    assert found.step == 10
    assert [(d.key, d.seen) for d in damages] == [
        (missing, "no such object"),
        (short, f"{len(s3.objects[short])} bytes"),
    ]


def test_a_damaged_manifest_is_passed_over(s3: MemoryS3):
    save(s3, 10, 20)
    s3.objects[manifest_key(PREFIX, 20)] = b"{}"
    ((found, damages),) = load(s3)
    assert found.step == 10
    assert damages[0].key == manifest_key(PREFIX, 20)


def test_training_on_from_the_older_one_replaces_the_damaged_commit(s3: MemoryS3):
    save(s3, 10, 20)
    damage(s3, "step-00000020")
    checkpoints = open_store(s3, attempt=2)
    assert checkpoints.load_latest().step == 10
    checkpoints.save(20, tensors(20))
    assert checkpoints.wait().attempt == 2
    ((found, damages),) = load(s3, attempt=3)
    assert (found.step, found.manifest.attempt, damages) == (20, 2, ())


def test_when_nothing_verifies_training_starts_again_and_says_so(s3: MemoryS3):
    save(s3, 10)
    damage(s3, "step-00000010")
    ((found, damages),) = load(s3)
    assert found is None
    assert len(damages) == 1


def test_a_left_over_rank_of_an_earlier_attempt_cannot_replace_a_commit(s3: MemoryS3):
    late = open_store(s3, attempt=1)
    save(s3, 10, attempt=2)
    before = dict(s3.objects)
    late.save(10, tensors(99))
    with pytest.raises(CheckpointConflict, match="step 10"):
        late.wait()
    assert all(s3.objects[key] == body for key, body in before.items())


def test_the_same_commit_again_is_no_conflict(s3: MemoryS3):
    save(s3, 10)
    save(s3, 10)
    assert load(s3)[0][0].step == 10


def test_s3_down_is_an_error_on_every_rank_and_earlier_commits_stay(s3: MemoryS3):
    save(s3, 10, world=2)
    s3.faults.clear()
    s3.faults.fail_at("put_object", 2, error=EndpointConnectionError(endpoint_url="http://s3"))
    results = save(s3, 20, world=2)
    assert [type(result) for result in results] == [ServiceUnavailable, ServiceUnavailable]
    assert load(s3)[0][0].step == 10


def test_an_error_shows_at_the_next_save_and_the_one_after_works(s3: MemoryS3):
    checkpoints = open_store(s3)
    s3.faults.fail_at("put_object", 1, error=EndpointConnectionError(endpoint_url="http://s3"))
    checkpoints.save(10, tensors(10))
    with pytest.raises(ServiceUnavailable):
        checkpoints.save(20, tensors(20))
    checkpoints.save(30, tensors(30))
    assert checkpoints.wait().step == 30


def test_a_lost_reply_of_the_commit_loses_nothing(s3: MemoryS3):
    s3.faults.fail_at("put_object", 2, error=EndpointConnectionError(endpoint_url="http://s3"), when="after")
    checkpoints = open_store(s3)
    checkpoints.save(10, tensors(10))
    with pytest.raises(ServiceUnavailable):
        checkpoints.wait()
    assert load(s3)[0][0].step == 10


def test_s3_down_while_resuming_is_not_taken_for_damage(s3: MemoryS3):
    save(s3, 10, 20)
    s3.faults.clear()
    s3.faults.fail_at("get_object", 2, error=EndpointConnectionError(endpoint_url="http://s3"))
    (result,) = load(s3)
    assert isinstance(result, ServiceUnavailable)


def test_a_failed_clean_up_does_not_fail_the_commit(s3: MemoryS3):
    save(s3, 10)
    s3.faults.clear()
    s3.faults.fail_at("delete_object", 1, error=EndpointConnectionError(endpoint_url="http://s3"))
    save(s3, 20, keep=1)
    assert load(s3)[0][0].step == 20
    save(s3, 30, keep=1)
    assert {key.split("/")[3] for key in s3.objects} == {"step-00000030"}


def test_a_lost_rank_leaves_no_torn_checkpoint(s3: MemoryS3):
    save(s3, 10, world=2)

    def program(comm: Communicator):
        if comm.rank == 1:
            raise KeyboardInterrupt
        checkpoints = open_store(s3, attempt=2, comm=comm)
        checkpoints.save(20, tensors(20))
        return checkpoints.wait()

    assert isinstance(run_ranks(2, program)[0], CheckpointError)
    assert load(s3)[0][0].step == 10


def test_a_rank_that_knows_why_says_so_though_the_others_are_gone(s3: MemoryS3):
    s3.faults.fail_at("put_object", 1, error=EndpointConnectionError(endpoint_url="http://s3"))

    def program(comm: Communicator):
        if comm.rank == 1:
            raise KeyboardInterrupt
        checkpoints = open_store(s3, comm=comm)
        checkpoints.save(10, tensors(10))
        return checkpoints.wait()

    error = run_ranks(2, program)[0]
    assert isinstance(error, ServiceUnavailable)
    assert error.what.startswith("rank 0: ")
    assert isinstance(error.__cause__, CheckpointError)
