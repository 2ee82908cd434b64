"""How the ranks of a job tell each other small JSON values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from pydantic import JsonValue

from mlops_sdk.errors import CheckpointError
from mlops_sdk.objects import to_json

if TYPE_CHECKING:
    import torch


class Communicator(Protocol):
    """The ranks that write a checkpoint together. Every rank makes the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This rank, 0-based."""
        ...

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        ...

    def all_gather(self, value: JsonValue) -> Sequence[JsonValue]:
        """What every rank gave, in rank order."""
        ...


class SingleProcess:
    """A job of one process."""

    rank = 0
    world_size = 1

    def all_gather(self, value: JsonValue) -> Sequence[JsonValue]:
        """What was given."""
        return [value]


class TorchCommunicator:
    """Ranks of a `torch.distributed` job, over a gloo group of their own.

    The group is separate from the one that training uses, so that a background thread may talk while training does.
    Values travel as JSON: torch's own object collectives would pickle them. Making one is itself a collective call.

    Args:
        timeout_s: How long a rank waits for the others before it gives up on them.
    """

    def __init__(self, *, timeout_s: float = 120.0) -> None:
        import torch.distributed as dist  # noqa: PLC0415 - extra [train]

        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def all_gather(self, value: JsonValue) -> Sequence[JsonValue]:
        """What every rank gave, in rank order.

        Raises:
            CheckpointError: another rank is gone or did not answer in time.
        """
        import torch  # noqa: PLC0415 - extra [train]

        body = to_json(value)
        try:
            sizes = self._exchange(torch.tensor([len(body)]))
            padded = torch.zeros(max(int(size.item()) for size in sizes), dtype=torch.uint8)
            padded[: len(body)] = torch.frombuffer(bytearray(body), dtype=torch.uint8)
            parts = self._exchange(padded)
        except RuntimeError as error:
            raise CheckpointError(
                f"rank {self.rank} lost its peers while they agreed on a checkpoint (gloo)",
                seen=str(error).splitlines()[0],
                next_step="see why a rank ended; the last committed checkpoint is intact",
            ) from error
        return [json.loads(bytes(p[: int(s.item())].tolist())) for p, s in zip(parts, sizes, strict=True)]

    def _exchange(self, mine: torch.Tensor) -> list[torch.Tensor]:
        import torch  # noqa: PLC0415 - extra [train]
        import torch.distributed as dist  # noqa: PLC0415 - extra [train]

        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(parts, mine, group=self._group)
        return parts
