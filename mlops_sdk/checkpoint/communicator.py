"""How the ranks of a job tell each other small JSON values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from pydantic import JsonValue

from mlops_sdk.checkpoint.reports import error_of, first_error
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


def agree(comm: Communicator, report: JsonValue) -> Sequence[JsonValue]:
    """What every rank reports, once none of them reports an error. A collective call.

    Raises:
        MlopsError: the error of the lowest rank that reported one. When the other ranks are gone, a rank with an error
            of its own raises that one: it says why, their absence only follows.
    """
    try:
        reports = comm.all_gather(report)
    except CheckpointError as lost:
        own = error_of(comm.rank, report)
        if own is None:
            raise
        raise own from lost
    failure = first_error(reports)
    if failure is not None:
        raise failure
    return reports


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
        timeout_s: How long a rank waits for the others before it gives up on them (one that ended is noticed at once).
            Longer than the S3 client tries (`connect_s3`: four times 30 s a call, two calls in a commit), so that a
            rank whose S3 hangs can still say so.
    """

    def __init__(self, *, timeout_s: float = 300.0) -> None:
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
