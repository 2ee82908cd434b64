"""What a person or a CI system asks for, as data: validated at the border, no Airflow, no I/O.

The descriptions are what people read beside each field of the DAG's form (see `forms.py`).
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from mlops_sdk.training.program import ProgramSpec

ResourceClass = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,80}$")]
Trait = Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,255}$")]
Corpus = Literal["python", "cpp"]
CORPORA: tuple[Corpus, ...] = get_args(Corpus)


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CapacitySpec(_Spec):
    """The machines a training needs."""

    nodes: int = Field(default=2, ge=1, le=4096, description="How many machines; all or none are leased.")
    spares: int = Field(default=0, ge=0, le=64, description="Machines in reserve, for the place of a lost one.")
    resource_class: ResourceClass = Field(
        default="gpu.h200.8x", description="Kind of each machine, as its provider calls it."
    )
    traits: tuple[Trait, ...] = Field(default=(), description="What each machine must have.")
    hours: float = Field(
        default=1.0,
        gt=0,
        le=24 * 90,
        description="Hard limit of the lease; the machines are returned then, whatever happens.",
    )
    wait_s: float = Field(default=60.0, ge=0, description="How long to wait for free capacity before giving up.")
    priority: Literal["batch", "normal", "urgent"] = Field(
        default="normal", description="Who gets machines first while there are too few."
    )
    preemptible: bool = Field(default=False, description="The lease may be ended, with notice, for a higher priority.")
    provider: Literal["ironic", "nova", "static"] = Field(
        default="ironic", description="Whose machines: bare metal, servers of Nova, or the deployment's pool of hosts."
    )
    hold_on_failure_s: float = Field(
        default=0.0, ge=0, description="How long machines stay for a person to look when the training fails; 0: not."
    )
    keep_warm_s: float = Field(
        default=0.0, ge=0, description="How long machines stay for a later task of this run once given back; 0: not."
    )


class TrainSpec(_Spec):
    """One training from data to registered model."""

    model_name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="Name of the registered model in MLflow."
    )
    capacity: CapacitySpec = CapacitySpec()
    program: ProgramSpec


class DataSpec(_Spec):
    """What it is trained on."""

    corpora: tuple[Corpus, ...] = Field(
        default=("python",),
        min_length=1,
        description="Kinds of text. A run that drift has started adds those that users began to send.",
    )
    vocabulary: int = Field(default=4096, ge=300, le=60000, description="Entries of the tokenizer.")


class GateSpec(_Spec):
    """What a candidate must reach before it may serve."""

    worse_by: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="On a corpus that the serving model knows, bits per byte may be worse by this share.",
    )


class RetrainSpec(_Spec):
    """One turn of the loop: from a commit to a model that serves."""

    repository: str = Field(default="", description="Clone URL; empty: the one that the serving model came from.")
    commit: str = Field(
        default="",
        pattern=r"^([0-9a-f]{40})?$",
        description="Exactly this commit; empty: the one that the serving model came from.",
    )
    ref: str = Field(default="", description="The ref that was pushed, for people to read.")
    webhook_key: str = Field(default="", description="The inbox's key of the push that started this turn.")
    data: DataSpec = DataSpec()
    capacity: CapacitySpec = CapacitySpec()
    program: ProgramSpec = ProgramSpec(
        module="mlops_pipelines.programs.code_lm.train", arguments={"steps": 120, "evaluate_bytes": 60_000}
    )
    gate: GateSpec = GateSpec()
