"""What a person asks to be run on the machines, as validated data. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class ProgramSpec(BaseModel):
    """What runs on the machines."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str = Field(pattern=r"^[A-Za-z_][\w.]*$", description="Python module that every rank runs.")
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict[str, JsonValue], description="JSON arguments, read by the program from its context."
    )
    launcher: Literal["torchrun", "mpirun"] = Field(default="torchrun", description="What starts the ranks.")
    reads: tuple[Annotated[str, Field(pattern=r"^[^/*?$][^*?$]*$")], ...] = Field(
        default=(), description="What else in the bucket it may read: keys, or prefixes that end in a slash."
    )
    processes_per_node: int = Field(default=1, ge=1, le=64, description="Ranks on each machine.")
    max_attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Starts in all; only causes that trying again can cure (a killed worker, a lost node) use them up.",
    )
