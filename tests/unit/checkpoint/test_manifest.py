"""The pure decisions about checkpoints."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mlops_sdk.checkpoint.manifest import (
    Manifest,
    Shard,
    assign,
    committed_steps,
    manifest_key,
    parse_key,
    parse_manifest,
    shard_key,
    superfluous,
)
from mlops_sdk.errors import CheckpointCorrupt

PREFIX = "runs/abc/checkpoints"


def a_manifest(step: int = 20, attempt: int = 1) -> Manifest:
    shards = tuple(
        Shard(key=shard_key(PREFIX, step, attempt, rank, 2), bytes=10, sha256="ab" * 32, tensors=(f"t{rank}",))
        for rank in range(2)
    )
    return Manifest(
        run_id="r", step=step, attempt=attempt, world_size=2, created=datetime(2026, 1, 1, tzinfo=UTC), shards=shards
    )


def stored(*steps: int, uncommitted: tuple[int, ...] = (), attempt: int = 1) -> list[str]:
    keys = [manifest_key(PREFIX, step) for step in steps]
    return keys + [shard_key(PREFIX, step, attempt, rank, 2) for step in (*steps, *uncommitted) for rank in range(2)]


def parsed(keys: list[str]):
    return [found for key in keys if (found := parse_key(PREFIX, key)) is not None]


def test_a_manifest_survives_the_way_through_its_bytes():
    manifest = a_manifest()
    assert parse_manifest(manifest.to_bytes(), "k") == manifest


def test_every_changed_byte_of_a_manifest_is_noticed():
    body = a_manifest().to_bytes()
    for position in range(len(body)):
        damaged = body[:position] + bytes([body[position] ^ 1]) + body[position + 1 :]
        with pytest.raises(CheckpointCorrupt):
            parse_manifest(damaged, "k")


def test_a_manifest_of_an_unknown_version_is_refused_by_name():
    with pytest.raises(CheckpointCorrupt, match="version"):
        parse_manifest(a_manifest().to_bytes().replace(b'"version":1', b'"version":9'), "k")


def test_only_steps_with_a_manifest_are_committed_newest_first():
    assert committed_steps(parsed(stored(20, 100, uncommitted=(120,)))) == [100, 20]


def test_strange_objects_below_the_prefix_are_not_ours():
    assert parse_key(PREFIX, f"{PREFIX}/step-00000001/notes.txt") is None
    assert parse_key(PREFIX, "runs/abc/model/config.json") is None


def test_retention_keeps_the_last_commits_and_deletes_manifests_before_shards():
    keys = stored(20, 40, 60)
    gone = superfluous(parsed(keys), a_manifest(60), keep=2)
    assert gone == [manifest_key(PREFIX, 20), *stored(uncommitted=(20,))]


def test_the_newest_commit_stays_even_with_nothing_to_keep():
    gone = superfluous(parsed(stored(20, 40)), a_manifest(40), keep=0)
    assert not any("step-00000040" in key for key in gone)


def test_shards_without_a_commit_go_when_a_newer_step_is_committed():
    keys = stored(40, uncommitted=(20, 60))
    assert superfluous(parsed(keys), a_manifest(40), keep=2) == stored(uncommitted=(20,))


def test_shards_of_a_later_attempt_are_left_alone():
    keys = stored(40) + stored(uncommitted=(20,), attempt=2)
    assert superfluous(parsed(keys), a_manifest(40, attempt=1), keep=2) == []


def test_left_over_shards_of_an_earlier_attempt_at_the_same_step_go():
    keys = [*stored(40, attempt=2), shard_key(PREFIX, 40, 1, 0, 2)]
    assert superfluous(parsed(keys), a_manifest(40, attempt=2), keep=2) == [shard_key(PREFIX, 40, 1, 0, 2)]


def test_tensors_are_shared_evenly_whole_and_alike_on_every_rank():
    sizes = {f"layer{i}": 100 + i for i in range(10)} | {"embedding": 400}
    parts = assign(sizes, 3)
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    loads = [sum(sizes[name] for name in part) for part in parts]
    assert max(loads) - min(loads) <= 110
    assert assign(dict(reversed(sizes.items())), 3) == parts


def test_more_ranks_than_tensors_leaves_some_with_nothing():
    assert assign({"a": 1}, 3) == [("a",), (), ()]
