"""What a checkpoint consists of and which ones to keep. Pure: values in, values out.

    runs/<key>/checkpoints/step-00000040/attempt-1/shard-00000-of-00002.safetensors    written first, one a rank
    runs/<key>/checkpoints/step-00000040/manifest.json                                 written last: the commit

A checkpoint exists when its manifest does. Tensors are stored whole, so any number of ranks can load what any other
number wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from mlops_sdk.canonical import to_json
from mlops_sdk.errors import CheckpointCorrupt

_STEP = re.compile(r"^step-(\d{8})/(?:manifest\.json|attempt-(\d+)/shard-\d{5}-of-\d{5}\.safetensors)$")


class Shard(BaseModel):
    """One object with tensors: where, how long, its SHA-256, and what is in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tensors: tuple[str, ...]


class Manifest(BaseModel):
    """A committed checkpoint.

    Attributes:
        world_size: How many ranks wrote it; any number may load it.
        created: When the commit was decided, UTC.
        shards: In rank order.
        state: Scalars of the training: data position, learning rate, ...
        program: What the program wants to find again: its configuration.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    run_id: str
    step: int = Field(ge=0)
    attempt: int = Field(ge=0)
    world_size: int = Field(ge=1)
    created: datetime
    shards: tuple[Shard, ...]
    state: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    program: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])

    def to_bytes(self) -> bytes:
        """As stored: canonical JSON with its own SHA-256, so that damage to the manifest shows too."""
        body = self.model_dump(mode="json")
        return to_json({"manifest": body, "sha256": _digest(body)})

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object below a checkpoint prefix. `attempt` is None for a manifest."""

    key: str
    step: int
    attempt: int | None


def parse_manifest(body: bytes, key: str) -> Manifest:
    """Read a manifest.

    Raises:
        CheckpointCorrupt: not JSON, not a manifest of a known version, or not what was written.
    """
    try:
        raw: Any = json.loads(body)
        manifest = Manifest.model_validate(raw["manifest"], strict=False)
        expected, seen = raw["sha256"], _digest(raw["manifest"])
    except (ValueError, TypeError, KeyError) as error:
        raise _corrupt(key, _first_problem(error)) from error
    if expected != seen:
        raise _corrupt(key, f"expected SHA-256 {expected!r}, got {seen!r}")
    return manifest


def manifest_key(prefix: str, step: int) -> str:
    """Where the commit of a step is."""
    return f"{prefix}/step-{step:08d}/manifest.json"


def shard_key(prefix: str, step: int, attempt: int, rank: int, world_size: int) -> str:
    """Where a rank writes its shard; a left-over rank of an earlier attempt writes elsewhere."""
    return f"{prefix}/step-{step:08d}/attempt-{attempt}/shard-{rank:05d}-of-{world_size:05d}.safetensors"


def parse_key(prefix: str, key: str) -> StoredObject | None:
    """What an object below the prefix is; None for anything that is not a manifest or shard."""
    match = _STEP.match(key.removeprefix(f"{prefix}/"))
    if match is None:
        return None
    return StoredObject(key=key, step=int(match[1]), attempt=None if match[2] is None else int(match[2]))


def committed_steps(objects: Iterable[StoredObject]) -> list[int]:
    """Steps that have a manifest, newest first."""
    return sorted({o.step for o in objects if o.attempt is None}, reverse=True)


def superfluous(objects: Sequence[StoredObject], newest: Manifest, *, keep: int) -> list[str]:
    """Keys that may go once `newest` is committed, in the order in which to delete them.

    Kept are the last `keep` committed steps up to `newest` (at least `newest` itself) and everything of later steps or
    later attempts: those may be in the making. Manifests go before shards, so that none ever points at nothing.

    Args:
        objects: What is below the prefix.
        newest: What this attempt has just committed.
        keep: How many commits to keep.
    """
    steps = [step for step in committed_steps(objects) if step <= newest.step]
    kept = {newest.step, *steps[: max(keep, 1)]}
    wanted = {shard.key for shard in newest.shards}
    manifests = [o.key for o in objects if o.attempt is None and o.step in set(steps) - kept]
    shards = [
        o.key
        for o in objects
        if o.attempt is not None
        and o.attempt <= newest.attempt
        and ((o.step < newest.step and o.step not in kept) or (o.step == newest.step and o.key not in wanted))
    ]
    return [*manifests, *shards]


def assign(sizes: Mapping[str, int], world_size: int) -> list[tuple[str, ...]]:
    """Which rank writes which tensor: largest first to the least loaded rank; equal input gives equal output.

    Example:
        >>> assign({"a": 4, "b": 3, "c": 2}, 2)
        [('a',), ('b', 'c')]
    """
    load = [0] * world_size
    names: list[list[str]] = [[] for _ in range(world_size)]
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        rank = min(range(world_size), key=lambda r: (load[r], r))
        load[rank] += size
        names[rank].append(name)
    return [tuple(sorted(mine)) for mine in names]


def _digest(body: Any) -> str:
    return hashlib.sha256(to_json(body)).hexdigest()


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}"
    return f"{type(error).__name__}: {error}"


def _corrupt(key: str, seen: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(
        f"checkpoint manifest {key!r} cannot be read",
        seen=seen,
        next_step="nothing to do if an older checkpoint is there: resume falls back to it",
    )
