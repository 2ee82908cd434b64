"""What a training was asked to be, and what a finished one leaves: in the run's journal, for whoever goes on there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from mlops_sdk.errors import RegistryError, SettingsError
from mlops_sdk.invalid import wrong_fields
from mlops_sdk.journal import EntryKind
from mlops_sdk.registry.lineage import CheckpointRecord, CostRecord, GitState, LeaseRecord, Lineage, NodeRecord
from mlops_sdk.training.job import JobResult
from mlops_sdk.training.program import ProgramSpec
from mlops_sdk.training.spec import BundleRef, DataRef, Launcher, LaunchSpec

if TYPE_CHECKING:
    from mlops_sdk.client import Client
    from mlops_sdk.run import Lease, Run

_ACTION = "train"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingOrder(_Record):
    """A training as it was asked for: which code, program and data; everything is named by its content.

    Attributes:
        model_name: Of the model that it is for; also MLflow's experiment.
        program: What runs.
        bundle: The code, as a `BundleRef`.
        data: The inputs, as `DataRef`s.
        git: The commit of the code.
        data_revision: The commit that pins the data; "" if it is not pinned.
        tracking_run_id: MLflow run for the metrics; "" for none.
        tracking_url: Where a person finds it.
    """

    model_name: str
    program: ProgramSpec
    bundle: BundleRef
    data: tuple[DataRef, ...] = ()
    git: GitState
    data_revision: str = ""
    tracking_run_id: str = ""
    tracking_url: str = ""

    @property
    def launch(self) -> LaunchSpec:
        """What `run_job` is given."""
        return LaunchSpec(
            module=self.program.module,
            bundle=self.bundle,
            args=self.program.arguments,
            launcher=Launcher(self.program.launcher),
            processes_per_node=self.program.processes_per_node,
            data=self.data,
            reads=(*self.program.reads, *models_in(self.program.arguments)),
            max_attempts=self.program.max_attempts,
        )


def models_in(arguments: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """Prefixes of the models that a program's arguments name, each as `Champion.argument` does; its job may read them.

    Example:
        >>> models_in({"champion": {"prefix": "runs/aaaaaaaaaaaa/model", "sha256": "0"}, "steps": 3})
        ('runs/aaaaaaaaaaaa/model/',)
    """
    named = [value for value in arguments.values() if isinstance(value, dict) and set(value) == {"prefix", "sha256"}]
    return tuple(f"{str(value['prefix']).rstrip('/')}/" for value in named)


class Trained(_Record):
    """A finished training: what registration needs, long after the machines are gone.

    `held_out` and its kin are bits per byte on held-out text, by kind of text.
    """

    model_name: str
    program: ProgramSpec
    generation: int
    attempts: int
    git: GitState
    nodes: tuple[NodeRecord, ...]
    allocations: tuple[str, ...]
    bits_per_byte: float
    held_out: dict[str, float] = Field(default_factory=dict[str, float])
    baseline_held_out: dict[str, float] = Field(default_factory=dict[str, float])
    champion_held_out: dict[str, float] = Field(default_factory=dict[str, float])
    parameters: int
    resumed_from: int
    tokens_per_s: float
    data_sha256: str
    data_revision: str = ""
    model_prefix: str
    model_sha256: str
    checkpoint: CheckpointRecord
    packages: dict[str, str]


_REPORTED = (
    "bits_per_byte",
    "held_out",
    "baseline_held_out",
    "champion_held_out",
    "parameters",
    "resumed_from",
    "tokens_per_s",
    "data_sha256",
    "checkpoint",
    "packages",
)


def order(run: Run, wanted: TrainingOrder) -> None:
    """Write down what is to be trained, for the process that will do it."""
    data = {**wanted.model_dump(mode="json", exclude={"bundle", "data"}), "bundle": asdict(wanted.bundle)}
    data["data"] = [asdict(item) for item in wanted.data]
    run.journal.append(EntryKind.INTENT, _ACTION, generation=run.generation, order=data)


def ordered(run: Run) -> TrainingOrder:
    """What is to be trained by this run.

    Raises:
        SettingsError: nothing was ordered.
    """
    found = [e for e in run.journal.entries() if e.action == _ACTION and e.kind is EntryKind.INTENT]
    if not found:
        raise SettingsError(f"run {run.key!r} was not told what to train", next_step="order a training first")
    return TrainingOrder.model_validate(found[-1].data["order"])


def remember(run: Run, lease: Lease, wanted: TrainingOrder, done: JobResult) -> Trained:
    """Write a training that has succeeded into the journal: whatever happens from here on, it is not done again.

    Raises:
        RegistryError: the program reported too little to register its model.
    """
    try:
        trained = Trained.model_validate(
            {
                "model_name": wanted.model_name,
                "program": wanted.program,
                "git": wanted.git,
                "data_revision": wanted.data_revision,
                "generation": lease.generation,
                "attempts": done.attempts[-1].attempt,
                "nodes": tuple(NodeRecord.of(node) for node in (run.held or lease).nodes),  # one may be another by now
                "allocations": tuple(sorted(run.history().generations[lease.generation].pieces)),
                **_reported(done.result),
            }
        )
    except ValidationError as error:
        raise RegistryError(
            f"program {wanted.program.module!r} has not reported what registration needs",
            seen=wrong_fields(error),
            next_step="report it on rank 0 with ctx.report_result; see mlops_pipelines.programs.code_lm.train",
        ) from None
    run.journal.append(EntryKind.OUTCOME, _ACTION, generation=run.generation, trained=trained.model_dump(mode="json"))
    return trained


def remembered(run: Run) -> Trained | None:
    """The finished training of this run, if there is one."""
    found = [e for e in run.journal.entries() if e.action == _ACTION and e.kind is EntryKind.OUTCOME]
    return Trained.model_validate(found[-1].data["trained"]) if found else None


def check_same(run: Run, trained: Trained, *, model_name: str, program: ProgramSpec) -> None:
    """Check that the finished training is the one that is asked for now. Pure.

    Raises:
        SettingsError: it was another one.
    """
    if (trained.model_name, trained.program) != (model_name, program):
        raise SettingsError(
            f"job {run.name!r} has been trained already, as something else",
            seen=f"{trained.model_name}: {trained.program}; now {model_name}: {program}",
            next_step="give the new job a name of its own",
        )


def lineage_of(client: Client, run: Run, trained: Trained, *, metrics: Mapping[str, float] | None = None) -> Lineage:
    """Where the model comes from, with what it has cost so far.

    Args:
        client: Knows the prices.
        run: Whose training it was.
        trained: What the training left.
        metrics: More figures to record.
    """
    so_far = client.summary(run.key)
    return Lineage(
        run_id=run.id,
        owner=run.owner,
        git=trained.git,
        data_sha256=trained.data_sha256,
        data_revision=trained.data_revision,
        model_prefix=trained.model_prefix,
        model_sha256=trained.model_sha256,
        lease=LeaseRecord(names=trained.allocations, generation=trained.generation),
        nodes=trained.nodes,
        checkpoint=trained.checkpoint,
        packages=trained.packages,
        cost=CostRecord(node_seconds=so_far.node_seconds, amount=so_far.cost, currency=client.settings.currency),
        attempts=trained.attempts,
        metrics={"bits_per_byte": trained.bits_per_byte, **(metrics or {})},
        held_out=trained.held_out,
        baseline_held_out=trained.baseline_held_out,
        champion_held_out=trained.champion_held_out,
        args=trained.program.arguments,
    )


def _reported(result: Mapping[str, JsonValue]) -> dict[str, Any]:
    found: dict[str, Any] = {name: result[name] for name in _REPORTED if name in result}
    model = result.get("model")
    if isinstance(model, dict):
        found |= {"model_prefix": model.get("prefix"), "model_sha256": model.get("manifest_sha256")}
    return found
