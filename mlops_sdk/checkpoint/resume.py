"""Find the newest checkpoint that is what was committed, and load it on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pydantic import JsonValue

from mlops_sdk.checkpoint.communicator import Communicator, agree
from mlops_sdk.checkpoint.manifest import Manifest, Shard, committed_steps, manifest_key, parse_key, parse_manifest
from mlops_sdk.checkpoint.reports import report_of
from mlops_sdk.errors import CheckpointCorrupt
from mlops_sdk.objects import ObjectStore

if TYPE_CHECKING:
    import torch


class Damage(NamedTuple):
    """A checkpoint that was passed over: which object, what was expected, what was seen."""

    step: int
    key: str
    expected: str
    seen: str

    def __str__(self) -> str:
        return f"checkpoint of step {self.step} is damaged: {self.key!r}: expected {self.expected}, saw {self.seen}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint in memory: all tensors of all shards, by name."""

    manifest: Manifest
    tensors: Mapping[str, torch.Tensor]

    @property
    def step(self) -> int:
        """Training steps done."""
        return self.manifest.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """What was found: the newest good checkpoint (None: start from nothing) and what was passed over on the way.

    `condemned` maps a step whose commit is damaged to the ETag of its manifest; whoever reaches the step again may
    replace that one manifest.
    """

    checkpoint: Checkpoint | None
    damages: tuple[Damage, ...]
    condemned: Mapping[int, str]


def resume(store: ObjectStore, prefix: str, comm: Communicator) -> Resumption:
    """Load the newest committed checkpoint of which every rank has verified every shard.

    A collective call. Rank 0 says which step is tried; a step counts only if it verified on all ranks. Bytes are used
    after their length and SHA-256 matched the manifest.

    Raises:
        ServiceUnavailable: S3 does not answer (that is not damage: nothing is passed over for it).
    """
    damages: list[Damage] = []
    condemned: dict[int, str] = {}
    for step in _agreed_steps(store, prefix, comm):
        manifest, etag, found = _agreed_manifest(store, prefix, step, comm)
        tensors: dict[str, torch.Tensor] = {}
        if manifest is not None:
            tensors, found = _load(store, manifest, comm)
        if manifest is not None and not found:
            checkpoint = Checkpoint(manifest=manifest, tensors=tensors)
            return Resumption(checkpoint=checkpoint, damages=tuple(damages), condemned=condemned)
        damages.extend(found)
        condemned[step] = etag
    return Resumption(checkpoint=None, damages=tuple(damages), condemned=condemned)


def committed(store: ObjectStore, prefix: str) -> list[int]:
    """Steps that are committed below the prefix, newest first. Whether they are intact, only loading tells."""
    return committed_steps(o for info in store.list(f"{prefix}/") if (o := parse_key(prefix, info.key)) is not None)


def fetch_shard(store: ObjectStore, shard: Shard, step: int) -> bytes | Damage:
    """The shard's bytes if they are what the manifest says."""
    body = store.get(shard.key)
    if body is None:
        return Damage(step, shard.key, f"{shard.bytes} bytes", "no such object")
    if len(body) != shard.bytes:
        return Damage(step, shard.key, f"{shard.bytes} bytes", f"{len(body)} bytes")
    digest = hashlib.sha256(body).hexdigest()
    if digest != shard.sha256:
        return Damage(step, shard.key, f"SHA-256 {shard.sha256}", f"SHA-256 {digest}")
    return body


def _agreed_steps(store: ObjectStore, prefix: str, comm: Communicator) -> list[int]:
    said: JsonValue = None
    if comm.rank == 0:
        try:
            said = {"steps": [*committed(store, prefix)]}
        except Exception as error:  # noqa: BLE001 - the other ranks wait for an answer, whatever went wrong here
            said = report_of(error)
    answer = _from_rank_0(comm, said)
    steps = answer["steps"]
    return [int(str(step)) for step in steps] if isinstance(steps, list) else []


def _agreed_manifest(
    store: ObjectStore, prefix: str, step: int, comm: Communicator
) -> tuple[Manifest | None, str, list[Damage]]:
    key = manifest_key(prefix, step)
    said: JsonValue = None
    if comm.rank == 0:
        try:
            said = _read_manifest(store, key)
        except Exception as error:  # noqa: BLE001 - as above
            said = report_of(error)
    answer = _from_rank_0(comm, said)
    etag = str(answer["etag"])
    if answer["damage"]:
        return None, etag, [Damage(step, key, "a manifest", str(answer["damage"]))]
    return parse_manifest(str(answer["body"]).encode(), key), etag, []


def _read_manifest(store: ObjectStore, key: str) -> dict[str, JsonValue]:
    stored = store.get_with_etag(key)
    if stored is None:
        return {"body": "", "etag": "", "damage": "no such object"}
    body, etag = stored
    try:
        parse_manifest(body, key)
    except CheckpointCorrupt as error:
        return {"body": "", "etag": etag, "damage": error.seen}
    return {"body": body.decode(), "etag": etag, "damage": ""}


def _load(store: ObjectStore, manifest: Manifest, comm: Communicator) -> tuple[dict[str, torch.Tensor], list[Damage]]:
    tensors: dict[str, torch.Tensor] = {}
    report: JsonValue
    try:
        damage = _load_shards(store, manifest, tensors)
        report = {"damage": None if damage is None else list(damage)}
    except Exception as error:  # noqa: BLE001 - as above
        report = report_of(error)
    reports = agree(comm, report)
    found: list[Damage] = []
    for said in reports:
        raw = said.get("damage") if isinstance(said, dict) else None
        if isinstance(raw, list):
            found.append(Damage(manifest.step, str(raw[1]), str(raw[2]), str(raw[3])))
    return tensors, list(dict.fromkeys(found))


def _load_shards(store: ObjectStore, manifest: Manifest, into: dict[str, torch.Tensor]) -> Damage | None:
    from safetensors import SafetensorError  # noqa: PLC0415 - extra [train]
    from safetensors.torch import load  # noqa: PLC0415 - extra [train]

    for shard in manifest.shards:
        body = fetch_shard(store, shard, manifest.step)
        if isinstance(body, Damage):
            return body
        try:
            tensors = load(body)
        except SafetensorError as error:
            return Damage(manifest.step, shard.key, "safetensors", str(error))
        if set(tensors) != set(shard.tensors):
            return Damage(manifest.step, shard.key, f"tensors {shard.tensors}", f"{tuple(sorted(tensors))}")
        into.update(tensors)
    return None


def _from_rank_0(comm: Communicator, said: JsonValue) -> dict[str, JsonValue]:
    answer = agree(comm, said)[0]
    return answer if isinstance(answer, dict) else {}
