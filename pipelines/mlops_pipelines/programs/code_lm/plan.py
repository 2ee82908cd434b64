"""What a training does, step by step, decided from its arguments alone: learning rate, data order, windows. Pure."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from mlops_sdk.errors import SettingsError
from mlops_sdk.invalid import wrong_fields

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ChampionRef(BaseModel):
    """A model that was exported earlier: where its files are in the bucket, and the SHA-256 of their manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefix: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class TrainArgs(BaseModel):
    """The arguments of the program.

    Attributes:
        batch: Sequences a step over all ranks; the data order does not depend on how many ranks share it.
        seq_len: Tokens a sequence.
        checkpoint_every: Steps between commits; the last step is committed too.
        evaluate_bytes: Held-out bytes of each kind to measure on (whole files, see `corpus.samples`).
        champion: A model to measure on the same files, with its own tokenizer, so that a gate can compare.
        warm_start: Begin with the champion's weights instead of random ones; without a champion it changes nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=240, ge=1)
    batch: int = Field(default=8, ge=1)
    seq_len: int = Field(default=128, ge=8)
    checkpoint_every: int = Field(default=20, ge=1)
    keep: int = Field(default=2, ge=1)
    log_every: int = Field(default=5, ge=1)
    evaluate_bytes: int = Field(default=200_000, ge=1)
    seed: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=2e-3, gt=0)
    warm_up: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.02, ge=0)
    beta2: float = Field(default=0.98, gt=0, lt=1)
    clip: float = Field(default=1.0, gt=0)
    hidden: int = Field(default=384, ge=8)
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=6, ge=1)
    intermediate: int = Field(default=640, ge=8)
    champion: ChampionRef | None = None
    warm_start: bool = False

    @classmethod
    def parse(cls, args: Mapping[str, JsonValue]) -> TrainArgs:
        """Arguments from JSON.

        Raises:
            SettingsError: naming the argument.
        """
        try:
            return cls.model_validate(dict(args))
        except ValidationError as error:
            raise SettingsError(
                "the program's arguments are wrong", seen=wrong_fields(error), next_step="correct the named arguments"
            ) from None


class Window(NamedTuple):
    """Tokens `start`..`end` of a file; those from `scored` on are predicted, the ones before are context."""

    start: int
    scored: int
    end: int


def learning_rate(args: TrainArgs, step: int) -> float:
    """Linear warm-up, then a cosine down to 3 % of the peak. `step` counts from 0."""
    if step < args.warm_up:
        return args.learning_rate * (step + 1) / args.warm_up
    done = (step - args.warm_up) / max(1, args.steps - args.warm_up)
    return args.learning_rate * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def sequences(tokens: NDArray[np.uint16], args: TrainArgs, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """The rank's share of a step's batch, ``[batch / world_size, seq_len + 1]``; `step` counts from 0.

    Every epoch cuts the stream into sequences from another offset and takes them in another order, both drawn from
    (seed, epoch). Sequence i of a step belongs to rank i mod world size.
    """
    import numpy as np  # noqa: PLC0415 - extra [train]

    per_epoch = (len(tokens) - 1) // args.seq_len - 1
    rows: list[NDArray[np.uint16]] = []
    for index in range(step * args.batch + rank, (step + 1) * args.batch, world_size):
        epoch, position = divmod(index, per_epoch)
        offset, order = _epoch_order(args.seed, epoch, per_epoch, args.seq_len)
        start = offset + int(order[position]) * args.seq_len
        rows.append(tokens[start : start + args.seq_len + 1])
    return np.stack(rows).astype(np.int64)


def windows(length: int, seq_len: int) -> Iterator[Window]:
    """Cut a file of `length` tokens into windows of at most ``seq_len + 1``; each token but the first is scored once.

    Every window but the first has a quarter of `seq_len` as context.
    """
    context = seq_len // 4
    scored = 1
    while scored < length:
        start = max(0, scored - 1 - context)
        end = min(length, start + seq_len + 1)
        yield Window(start, scored, end)
        scored = end


def check_world(args: TrainArgs, world_size: int) -> None:
    """Refuse a batch that the ranks cannot share evenly.

    Raises:
        SettingsError: the batch is not a multiple of the number of ranks.
    """
    if args.batch % world_size:
        raise SettingsError(
            f"batch {args.batch} cannot be shared by {world_size} ranks",
            seen=f"{args.batch} mod {world_size} = {args.batch % world_size}",
            next_step="choose a batch that is a multiple of the number of ranks",
        )


def padded(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Rows of unequal length as one array, zeros on the right."""
    import numpy as np  # noqa: PLC0415 - extra [train]

    out = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int, seq_len: int) -> tuple[int, NDArray[np.int64]]:
    import numpy as np  # noqa: PLC0415 - extra [train]

    draw = np.random.default_rng([seed, epoch])
    return int(draw.integers(seq_len)), draw.permutation(count)
