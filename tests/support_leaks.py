"""Drawn schedules, in two halves: `make test` runs test files in two processes."""

from benchmarks.leaks import run_chunk
from benchmarks.leaks_schedules import draw

IN_ALL = 2_000
CHUNK = 250


def failures(first: int) -> list[str]:
    """What failed of a chunk of drawn schedules, a line each that replays it."""
    return run_chunk([str(draw(seed)) for seed in range(first, first + CHUNK)]).failures
