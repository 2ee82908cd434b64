"""What a finished training leaves: written into the run's journal, read back by whoever goes on from there."""

from __future__ import annotations

from typing import cast

from pydantic import BaseModel, ConfigDict, JsonValue

from mlops_pipelines.specs import TrainSpec
from mlops_sdk.client import Client
from mlops_sdk.errors import SettingsError
from mlops_sdk.journal import EntryKind
from mlops_sdk.registry.lineage import CheckpointRecord, CostRecord, GitState, LeaseRecord, Lineage, NodeRecord
from mlops_sdk.run import Lease, Run
from mlops_sdk.training.job import JobResult

_ACTION = "train"


class Trained(BaseModel):
    """A finished training: what registration needs, long after the machines are gone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: TrainSpec
    generation: int
    attempts: int
    git: GitState
    nodes: tuple[NodeRecord, ...]
    allocations: tuple[str, ...]
    bits_per_byte: float
    parameters: int
    resumed_from: int
    tokens_per_s: float
    data_sha256: str
    model_prefix: str
    model_sha256: str
    checkpoint: CheckpointRecord
    packages: dict[str, str]


def remember(run: Run, lease: Lease, git: GitState, spec: TrainSpec, done: JobResult) -> Trained:
    """Write a training that has succeeded into the journal: whatever happens from here on, it is not done again."""
    result = done.result
    model = cast("dict[str, JsonValue]", result["model"])
    trained = Trained.model_validate(
        {
            "spec": spec,
            "generation": lease.generation,
            "attempts": done.attempts[-1].attempt,
            "git": git,
            "nodes": tuple(NodeRecord.of(node) for node in lease.nodes),
            "allocations": tuple(sorted(run.history().generations[lease.generation].pieces)),
            **{name: result[name] for name in ("bits_per_byte", "parameters", "resumed_from", "tokens_per_s")},
            "data_sha256": result["data_sha256"],
            "model_prefix": model["prefix"],
            "model_sha256": model["manifest_sha256"],
            "checkpoint": result["checkpoint"],
            "packages": result["packages"],
        }
    )
    run.journal.append(EntryKind.OUTCOME, _ACTION, generation=run.generation, trained=trained.model_dump(mode="json"))
    return trained


def remembered(run: Run, spec: TrainSpec) -> Trained | None:
    """The finished training of this run, if there is one.

    Raises:
        SettingsError: it was another training than the one asked for.
    """
    found = [e for e in run.journal.entries() if e.action == _ACTION and e.kind is EntryKind.OUTCOME]
    if not found:
        return None
    trained = Trained.model_validate(found[-1].data["trained"])
    if (trained.spec.model_name, trained.spec.program) != (spec.model_name, spec.program):
        raise SettingsError(
            f"job {run.name!r} has been trained already, as something else",
            seen=f"{trained.spec.model_name}: {trained.spec.program}; now {spec.model_name}: {spec.program}",
            next_step="give the new job a name of its own",
        )
    return trained


def lineage_of(client: Client, run: Run, trained: Trained, baseline: float) -> Lineage:
    """Where the model comes from, with what it has cost so far."""
    so_far = client.summary(run.key)
    return Lineage(
        run_id=run.id,
        owner=run.owner,
        git=trained.git,
        data_sha256=trained.data_sha256,
        model_sha256=trained.model_sha256,
        lease=LeaseRecord(names=trained.allocations, generation=trained.generation),
        nodes=trained.nodes,
        checkpoint=trained.checkpoint,
        packages=trained.packages,
        cost=CostRecord(node_seconds=so_far.node_seconds, amount=so_far.cost, currency=client.settings.currency),
        attempts=trained.attempts,
        metrics={"bits_per_byte": trained.bits_per_byte, "baseline_bits_per_byte": baseline},
        args=trained.spec.program.arguments,
    )
