"""Where a model comes from: everything that is needed to say so, and to make it again. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from mlops_sdk.canonical import to_json
from mlops_sdk.capacity.node import Node

_PARAM_LENGTH = 500


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GitState(_Model):
    """The commit of the code, whether files differed from it, and the clone URL if it came from one."""

    commit: str
    dirty: bool
    repository: str = ""


class NodeRecord(_Model):
    """One machine that trained."""

    id: str
    name: str
    resource_class: str
    image: str
    driver: str
    firmware: str

    @classmethod
    def of(cls, node: Node) -> NodeRecord:
        """From a machine of a lease."""
        return cls(
            id=node.id,
            name=node.name,
            resource_class=node.resource_class,
            image=node.image,
            driver=node.driver,
            firmware=node.firmware,
        )


class LeaseRecord(_Model):
    """What the machines were held under."""

    names: tuple[str, ...]
    generation: int = Field(ge=0)


class CheckpointRecord(_Model):
    """The commit that the model was exported from: manifest key and its SHA-256."""

    key: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    step: int = Field(ge=0)


class CostRecord(_Model):
    """What the machines cost until registration."""

    node_seconds: float = Field(ge=0)
    amount: float = Field(ge=0)
    currency: str


class Lineage(_Model):
    """Where a model comes from.

    Attributes:
        run_id: The run that made it; with the lease's generation the identity of the registration.
        owner: Who started the run.
        data_sha256: The data hash.
        model_sha256: SHA-256 of the manifest of the exported model.
        packages: Versions of what trained.
        attempts: Starts of the job.
        metrics: Figures of the model (``bits_per_byte``, ``baseline_bits_per_byte``, ...).
        args: The program's arguments.
        data_revision: The commit of the data repository that says which data it was; empty if it was not pinned.
        model_prefix: Where the exported model is in the bucket.
        held_out: Bits per byte on held-out text, per kind of text that it was trained on.
        champion_held_out: The same of the model that served then, where it was measured.
        baseline_held_out: The same of the baseline.
    """

    run_id: uuid.UUID
    owner: str
    git: GitState
    data_sha256: str
    model_sha256: str
    lease: LeaseRecord
    nodes: tuple[NodeRecord, ...]
    checkpoint: CheckpointRecord
    packages: dict[str, str]
    cost: CostRecord
    attempts: int = Field(ge=1)
    metrics: dict[str, float]
    args: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    data_revision: str = ""
    model_prefix: str = ""
    held_out: dict[str, float] = Field(default_factory=dict[str, float])
    champion_held_out: dict[str, float] = Field(default_factory=dict[str, float])
    baseline_held_out: dict[str, float] = Field(default_factory=dict[str, float])

    def to_bytes(self) -> bytes:
        """The content of ``lineage.json``."""
        return to_json(self.model_dump(mode="json"))


def identity_tags(run_id: uuid.UUID, generation: int) -> dict[str, str]:
    """The tags by which a registration is found again."""
    return {"mlops.run_id": str(run_id), "mlops.generation": str(generation)}


def tags_of(lineage: Lineage) -> dict[str, str]:
    """What MLflow shows and searches as tags; all of it is in ``lineage.json`` too."""
    return {
        **identity_tags(lineage.run_id, lineage.lease.generation),
        "mlops.owner": lineage.owner,
        "mlops.git_commit": lineage.git.commit,
        "mlops.git_dirty": str(lineage.git.dirty).lower(),
        "mlops.git_repository": lineage.git.repository,
        "mlops.data_sha256": lineage.data_sha256,
        "mlops.data_revision": lineage.data_revision,
        "mlops.kinds": ",".join(sorted(lineage.held_out)),
        "mlops.held_out": to_json(lineage.held_out).decode(),
        "mlops.model_prefix": lineage.model_prefix,
        "mlops.model_sha256": lineage.model_sha256,
        "mlops.lease": ",".join(lineage.lease.names),
        "mlops.nodes": ",".join(node.name for node in lineage.nodes),
        "mlops.images": _distinct(node.image for node in lineage.nodes),
        "mlops.drivers": _distinct(node.driver for node in lineage.nodes),
        "mlops.firmware": _distinct(node.firmware for node in lineage.nodes),
        "mlops.checkpoint": lineage.checkpoint.key,
        "mlops.checkpoint_sha256": lineage.checkpoint.sha256,
        "mlops.attempts": str(lineage.attempts),
        "mlops.node_seconds": f"{lineage.cost.node_seconds:.1f}",
        "mlops.cost": f"{lineage.cost.amount:.4f} {lineage.cost.currency}",
    }


def params_of(lineage: Lineage) -> dict[str, str]:
    """What MLflow compares as parameters: the program's arguments and package versions. Never changes in a retry."""
    values: Mapping[str, JsonValue] = {
        **lineage.args,
        **{f"version.{name}": version for name, version in lineage.packages.items()},
    }
    return {name: str(value)[:_PARAM_LENGTH] for name, value in sorted(values.items())}


def metrics_of(lineage: Lineage) -> dict[str, float]:
    """What MLflow plots."""
    return {
        **lineage.metrics,
        **{f"held_out_{kind}": value for kind, value in lineage.held_out.items()},
        **{f"champion_held_out_{kind}": value for kind, value in lineage.champion_held_out.items()},
        **{f"baseline_held_out_{kind}": value for kind, value in lineage.baseline_held_out.items()},
        "node_seconds": lineage.cost.node_seconds,
        "cost": lineage.cost.amount,
        "checkpoint_step": float(lineage.checkpoint.step),
    }


def _distinct(values: Iterable[str]) -> str:
    return ",".join(sorted({value for value in values if value}))
