"""`python -m benchmarks NAME [--quick] [--seed N]`: runs one benchmark; its last line is one JSON object."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING, Protocol

from benchmarks.report import Options, Report, last_line

if TYPE_CHECKING:
    from collections.abc import Sequence

# name -> (module, what it measures). A module is imported only when its benchmark runs, so a peer that is not
# installed here costs nobody else anything.
REGISTRY: dict[str, tuple[str, str]] = {
    "leaks": (
        "benchmarks.leaks",
        "failures at every call of a lease, in simulation: what leaks, what is wrongly deleted",
    ),
    "loop": ("benchmarks.loop", "a push to a training step, a drift to an answer: ours, empty tasks, stock Airflow"),
    "prompts": ("benchmarks.prompts", "drift of served prompts: false alarms, delay, microseconds per prompt"),
    "stack": ("benchmarks.stack", "the embedded stack: seconds to ready and memory, from nothing and again"),
    "waits": ("benchmarks.waits", "10,000 waits in the triggerer on PostgreSQL: delay, loop lag, calls, memory"),
}


class Benchmark(Protocol):
    """What a benchmark's module offers: `run` prints what it does and a table, and returns the figures."""

    def run(self, options: Options) -> Report:
        """Measure."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that the arguments name."""
    arguments = _parser().parse_args(argv)
    if arguments.list or not arguments.name:
        for name, (_, what) in sorted(REGISTRY.items()):
            print(f"{name:<12} {what}")
        return 0
    benchmark: Benchmark = importlib.import_module(REGISTRY[arguments.name][0])  # type: ignore[assignment]
    options = Options(
        quick=arguments.quick,
        seed=arguments.seed,
        schedules=arguments.schedules,
        replay=arguments.replay,
        provider=arguments.provider,
        processes=arguments.processes,
    )
    report = benchmark.run(options)
    print(last_line(arguments.name, report), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(REGISTRY), help="which benchmark")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and what they measure")
    parser.add_argument("--quick", action="store_true", help="within 60 s on 2 cores, at reduced size")
    parser.add_argument("--seed", type=int, default=0, help="for everything that is drawn at random")
    parser.add_argument("--schedules", type=int, default=0, help="leaks: how many schedules in all")
    parser.add_argument("--replay", default="", help="leaks: run this one again, and print every call")
    parser.add_argument("--provider", default="", help="leaks: ironic, nova, or nova-root (servers boot from volumes)")
    parser.add_argument("--processes", type=int, default=0, help="leaks: in how many; else one for each core")
    return parser


if __name__ == "__main__":
    sys.exit(main())
