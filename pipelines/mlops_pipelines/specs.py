"""What a person or a CI system asks for, as data: validated at the border, no Airflow, no I/O."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

ResourceClass = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,80}$")]
Trait = Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,255}$")]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CapacitySpec(_Spec):
    """The machines a training needs.

    Attributes:
        nodes: How many machines; all or none are leased.
        resource_class: Ironic resource class of each.
        traits: Ironic traits that each must carry.
        hours: Hard limit of the lease; the machines are returned then, whatever happens.
        wait_s: How long to wait for free capacity before giving up.
    """

    nodes: int = Field(default=2, ge=1, le=4096)
    resource_class: ResourceClass = "gpu.h200.8x"
    traits: tuple[Trait, ...] = ()
    hours: float = Field(default=1.0, gt=0, le=24 * 90)
    wait_s: float = Field(default=60.0, ge=0)


class ProgramSpec(_Spec):
    """What runs on the machines.

    Attributes:
        module: Python module run on every rank by the worker.
        arguments: JSON arguments, read by the program from its context.
        launcher: `torchrun` or `mpirun`.
        processes_per_node: Ranks on each machine.
        max_attempts: Starts in all; only causes that trying again can cure (a killed worker, a lost node) use them up.
    """

    module: str = Field(pattern=r"^[A-Za-z_][\w.]*$")
    arguments: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    launcher: Literal["torchrun", "mpirun"] = "torchrun"
    processes_per_node: int = Field(default=1, ge=1, le=64)
    max_attempts: int = Field(default=3, ge=1, le=100)


class TrainSpec(_Spec):
    """One training from data to registered model."""

    model_name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    capacity: CapacitySpec = CapacitySpec()
    program: ProgramSpec
