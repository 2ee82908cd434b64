"""The one workload of all chains of `benchmarks.loop`: small, so that the way is seen and not the work. Pure."""

from __future__ import annotations

from typing import Final

from mlops_pipelines.specs import CapacitySpec, DataSpec, GateSpec, RetrainSpec
from mlops_sdk.training.program import ProgramSpec

MODEL: Final = "loop-lm"
REPOSITORIES: Final = {"ours": "local/loop-ours", "floor": "local/loop-floor"}
DAGS: Final = {"ours": "loop_ours", "floor": "loop_floor", "stock": "loop_stock"}
OURS_ASSET: Final = f"mlops://drift/{MODEL}"  # as `mlops_operators.drift.drift_asset` names it
FLOOR_ASSET: Final = "mlops://drift/loop-floor"
TESTS: Final = ("tests/unit/code_lm",)
WARM_UP_STEPS: Final = 160  # what a first model needs to be better than the 3-gram; later ones begin with its weights


class LoopSpec(RetrainSpec):
    """A turn on one machine that makes four steps from the champion's weights."""

    data: DataSpec = DataSpec(corpora=("python",), vocabulary=4096)
    capacity: CapacitySpec = CapacitySpec(nodes=1, wait_s=30.0)
    program: ProgramSpec = ProgramSpec(
        module="mlops_pipelines.programs.code_lm.train",
        arguments={"steps": 4, "checkpoint_every": 4, "log_every": 1, "evaluate_bytes": 10_000},
    )
    gate: GateSpec = GateSpec(worse_by=0.5)
