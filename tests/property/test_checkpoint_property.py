"""Whatever call of a save the process dies in, and whatever byte is damaged, resume gives the newest whole commit."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_sdk.checkpoint.communicator import Communicator
from mlops_sdk.checkpoint.manifest import manifest_key
from mlops_sdk.checkpoint.store import CheckpointStore
from mlops_sdk.testing.faults import Crash
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.testing.ranks import run_ranks

PREFIX = "runs/abc/checkpoints"


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {f"t{i}": torch.full((3,), float(step * 10 + i)) for i in range(4)}


def train(s3: MemoryS3, steps: list[int], *, attempt: int, world: int, keep: int = 2):
    """An attempt: resume, then save the given steps; returns by rank what was resumed from, or what killed it."""

    def program(comm: Communicator):
        checkpoints = CheckpointStore(memory_store(s3), PREFIX, run_id="r", attempt=attempt, comm=comm, keep=keep)
        found = checkpoints.load_latest()
        first = 0 if found is None else found.step
        for step in steps:
            if step > first:
                checkpoints.save(step, tensors(step), own={"rng": torch.tensor([comm.rank])}, state={"step": step})
        checkpoints.wait()
        return found

    return run_ranks(world, program)


def committed(s3: MemoryS3) -> int:
    steps = [step for step in range(1, 100) if manifest_key(PREFIX, step) in s3.objects]
    return max(steps, default=0)


def assert_whole(found: object, step: int) -> None:
    assert (0 if found is None else found.step) == step
    if found is not None:
        for name, tensor in tensors(step).items():
            assert torch.equal(found.tensors[name], tensor)


@settings(max_examples=60, deadline=None)
@given(
    world=st.sampled_from([1, 2, 3]),
    keep=st.integers(1, 3),
    crashes=st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["before", "after"])), min_size=1, max_size=3),
)
def test_a_crash_at_any_call_leaves_the_newest_commit_whole(
    world: int, keep: int, crashes: list[tuple[int, str]]
) -> None:
    s3 = MemoryS3()
    for attempt, (k, when) in enumerate(crashes, start=1):
        s3.faults.clear()
        s3.faults.fail_at("*", k, error=Crash(), when=when)
        train(s3, [1, 2, 3, 4, 5], attempt=attempt, world=world, keep=keep)
        s3.faults.clear()
        for found in train(s3, [], attempt=attempt, world=world):
            assert_whole(found, committed(s3))
    results = train(s3, [6], attempt=9, world=world, keep=keep)
    assert not any(isinstance(result, BaseException) for result in results)
    (found, *_) = train(s3, [], attempt=10, world=1)
    assert_whole(found, 6)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), writers=st.sampled_from([1, 2]), readers=st.sampled_from([1, 2]))
def test_any_flipped_bit_of_any_object_is_noticed(data: st.DataObject, writers: int, readers: int) -> None:
    s3 = MemoryS3()
    train(s3, [1, 2], attempt=1, world=writers)
    key = data.draw(st.sampled_from(sorted(key for key in s3.objects if "step-00000002" in key)))
    body = bytearray(s3.objects[key])
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= 1 << data.draw(st.integers(0, 7))
    s3.objects[key] = bytes(body)
    for found in train(s3, [], attempt=2, world=readers):
        assert_whole(found, 1)
