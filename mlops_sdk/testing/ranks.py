"""The ranks of a job as threads of one process, for tests of what ranks do together."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pydantic import JsonValue

from mlops_sdk.checkpoint.communicator import Communicator
from mlops_sdk.errors import CheckpointError

T = TypeVar("T")


class _World:
    def __init__(self, size: int, timeout_s: float) -> None:
        self.size = size
        self.timeout_s = timeout_s
        self.changed = threading.Condition()
        self.rounds: dict[int, dict[int, str]] = {}
        self.lost = False


class ThreadCommunicator:
    """One of several ranks in one process. When one is gone the others get a `CheckpointError`, as with gloo."""

    def __init__(self, world: _World, rank: int) -> None:
        self._world = world
        self._round = 0
        self.rank = rank
        self.world_size = world.size

    def all_gather(self, value: JsonValue) -> Sequence[JsonValue]:
        """What every rank gave, in rank order."""
        world = self._world
        with world.changed:
            said = world.rounds.setdefault(self._round, {})
            self._round += 1
            said[self.rank] = json.dumps(value)
            world.changed.notify_all()
            world.changed.wait_for(lambda: len(said) == world.size or world.lost, world.timeout_s)
            if len(said) < world.size:
                raise CheckpointError(
                    f"rank {self.rank} lost the other ranks", seen=f"{len(said)} of {world.size} are there"
                )
            return [json.loads(said[rank]) for rank in range(world.size)]

    def leave(self) -> None:
        """This rank's process ends: the others find out."""
        with self._world.changed:
            self._world.lost = True
            self._world.changed.notify_all()


def run_ranks(size: int, program: Callable[[Communicator], T], *, timeout_s: float = 300.0) -> list[T | BaseException]:
    """Run a program as every one of `size` ranks; returns, by rank, its result or what it raised.

    Args:
        size: How many ranks.
        program: What each runs.
        timeout_s: Ends a test that hangs; a rank that ended is noticed at once, a slow one is waited for.

    Example:
        >>> run_ranks(2, lambda comm: list(comm.all_gather(comm.rank)))
        [[0, 1], [0, 1]]
    """
    world = _World(size, timeout_s)

    def one(rank: int) -> T | BaseException:
        comm = ThreadCommunicator(world, rank)
        try:
            return program(comm)
        except BaseException as error:  # noqa: BLE001 - the caller looks at how each rank ended
            comm.leave()
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))
