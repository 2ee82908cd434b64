"""A training that was interrupted ends with the same numbers as one that was not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlops_sdk.checkpoint.snapshot import rank_tensors, restore, training_tensors
from mlops_sdk.checkpoint.store import CheckpointStore
from mlops_sdk.errors import CheckpointCorrupt
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store


class Net(nn.Module):
    """Has a tied parameter, a buffer and dropout: everything that resuming can get wrong."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.3))
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(ids)))


def start(seed: int, *, fused: bool) -> tuple[Net, torch.optim.AdamW]:
    torch.manual_seed(seed)
    net = Net()
    return net, torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused)


def steps(net: Net, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        data = torch.Generator().manual_seed(step)
        ids = torch.randint(11, (16,), generator=data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(ids), ids.roll(1)).backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
def test_six_steps_equal_three_and_resume_and_three(fused: bool):
    whole, optimizer = start(1, fused=fused)
    steps(whole, optimizer, 0, 6)
    expected_rng = torch.get_rng_state()

    store = memory_store(MemoryS3())
    half, optimizer = start(1, fused=fused)
    steps(half, optimizer, 0, 3)
    checkpoints = CheckpointStore(store, "runs/a/checkpoints", run_id="r", attempt=1)
    checkpoints.save(3, training_tensors(half, optimizer), own=rank_tensors(), state={"step": 3})
    checkpoints.wait()

    again, optimizer = start(2, fused=fused)
    found = CheckpointStore(store, "runs/a/checkpoints", run_id="r", attempt=2).load_latest()
    restore(found.tensors, again, optimizer, rank=0)
    steps(again, optimizer, found.manifest.state["step"], 6)

    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert torch.equal(torch.get_rng_state(), expected_rng)


def test_a_checkpoint_of_another_model_is_refused_by_tensor():
    small, optimizer = start(1, fused=False)
    tensors = training_tensors(small, optimizer)
    big = Net(width=16)
    with pytest.raises(CheckpointCorrupt, match=r"model/embed\.weight"):
        restore(tensors, big, torch.optim.AdamW(big.parameters()), rank=0)


def test_a_tied_parameter_is_stored_once():
    net, optimizer = start(1, fused=False)
    assert "model/head.weight" not in training_tensors(net, optimizer)
