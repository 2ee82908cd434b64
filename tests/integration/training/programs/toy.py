"""A program for tests of launches: sums over all ranks, and misbehaves on demand."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlops_sdk
from mlops_sdk.training.worker import WorkerContext, context


def main() -> None:
    """Run the steps that the arguments ask for."""
    ctx = context()
    print(f"rank {ctx.rank} of {ctx.world_size} runs {mlops_sdk.__file__}")  # noqa: T201 - what the test looks for
    total = 0.0
    with summing(together=not ctx.args.get("alone")) as add_up:
        for step in range(int(str(ctx.args["steps"]))):
            total = add_up(ctx.rank + 1.0)
            ctx.log_metrics(step, {"total": total})
            misbehave(ctx, step)
            time.sleep(0.05)
    result = {"total": total, "world_size": ctx.world_size, "attempt": ctx.attempt}
    if "data" in ctx.args:
        result["data_sha256"] = hashlib.sha256(ctx.data(str(ctx.args["data"])).read_bytes()).hexdigest()
    ctx.report_result(result)


@contextmanager
def summing(*, together: bool) -> Iterator[Callable[[float], float]]:
    """A sum over all ranks; or, where a test is about something else and torch's start would only cost time, none."""
    if not together:
        yield lambda value: value
        return
    import torch  # noqa: PLC0415 - see above
    import torch.distributed as dist  # noqa: PLC0415

    def add_up(value: float) -> float:
        tensor = torch.tensor([value])
        dist.all_reduce(tensor)
        return float(tensor)

    dist.init_process_group("gloo")
    yield add_up
    dist.destroy_process_group()


def misbehave(ctx: WorkerContext, step: int) -> None:
    """Rank 1 does what it was told to do at step 2."""
    wanted = ctx.args.get("do")
    if step != 2 or ctx.rank != 1 or wanted is None:
        return
    if wanted == "raise":
        raise ValueError("no such token: 42")
    if wanted == "exit":
        sys.exit(7)
    if wanted == "kill once" and not (ctx.scratch / "killed").exists():
        (ctx.scratch / "killed").touch()
        os.kill(os.getpid(), 9)
    if wanted == "fill the disk":
        with (ctx.scratch / "full").open("wb") as file:
            while True:
                file.write(bytes(1 << 20))


if __name__ == "__main__":
    main()
