"""The loop against its floor and against stock Airflow: from a push to a training step, from a drift to an answer.

In one run, on one stack of its own, with the same workload (`loop_workload`) and the same Airflow settings:

*ours*: `turn_of_the_loop` as it is shipped. A push arrives as a signed webhook at the receiver; a drift's verdict is
the asset event that `watch_lm` leaves.

*floor*: a DAG of the same shape, in which every task is empty, started in the same two ways.

*stock*: the same steps from stock operators and sensors that poke once a second, started by POST of a DAG run.

Two intervals are measured: *push*, from the moment at which the webhook was stored (stock: the run was posted) to the
end of the first training step; *drift*, from the verdict to the first completion that the new version answered through
the proxy. In the floor they end when `train` begins and when `deploy` has ended. Nothing is subtracted but

- Ironic's own recorded state intervals: `deploying` to `active`, from its log ("moved to provision state"),
- the training: from the program's first step (time of its metric in MLflow) to its result (time of the object in S3),
- the load of the model: from the start of the vLLM process (the kernel's record) to its first ready (/health).

What a turn does besides (the commit's tests, Great Expectations, DVC, SSH, MLflow) is not subtracted. An untimed turn
comes first: it trains a model that passes the gate and fills the caches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.loop_chains import floor, ours, stock, warm_up
from benchmarks.loop_marks import breakdown, figures_of, table
from benchmarks.loop_stage import stage
from benchmarks.report import Goal, Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.loop_marks import Round
    from benchmarks.loop_stage import Stage
    from benchmarks.report import Options

CHAINS: Final[dict[str, Callable[[Stage], Round]]] = {"floor": floor, "ours": ours, "stock": stock}
_GOALS: Final = {
    "excess_over_floor": Goal(op="<=", goal=0.2),
    "total_over_stock": Goal(op="<=", goal=0.5),
}


def run(options: Options) -> Report:
    """Three rounds of the chains; with `quick`, one."""
    count = 1 if options.quick else 3
    print(f"loop: starts a stack, warms it up with one turn, then {count} round(s) of {', '.join(CHAINS)}", flush=True)
    with stage() as on:
        warm_up(on)
        rounds = [_round(on, chain) for _ in range(count) for chain in CHAINS]
    print(table(rounds))
    figures = figures_of(rounds)
    return Report(figures=figures, goals={key: goal for key, goal in _GOALS.items() if key in figures})


def _round(on: Stage, chain: str) -> Round:
    done = CHAINS[chain](on)
    print(f"{chain}: push {done.push.seconds:.2f} s, drift {done.drift.seconds:.2f} s", flush=True)
    for cause, interval in (("push", done.push), ("drift", done.drift)):
        print(f"{chain}, by a {cause}; seconds after it:\n{breakdown(done.tasks[cause], interval.began)}", flush=True)
    return done
