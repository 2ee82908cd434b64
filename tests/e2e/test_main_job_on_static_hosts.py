"""The main job on a fixed pool of SSH hosts: checkpoints in Ceph RGW, a killed rank, given back clean."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mlops_pipelines.recipes.fault import WorkerKiller
from mlops_pipelines.recipes.main_job import MainJob, run_main_job
from mlops_pipelines.recipes.timeline import Timeline
from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.client import Client
from mlops_sdk.local.layout import Tools
from mlops_sdk.names import run_id_for
from mlops_sdk.registry.models import find_version
from support_sshd import CLASS, SshdHost, on_a_switch

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[SshdHost]]:
    with on_a_switch(tmp_path, 2, image=Tools.find().node_image) as started:
        yield started


@pytest.fixture
def client(stack: Any, hosts: list[SshdHost]) -> Iterator[Client]:
    """Of the same deployment, which has these hosts besides."""
    pool = {"static_hosts": tuple(host.settings for host in hosts), "static_key": SecretStr(hosts[0].login.private)}
    client = Client(stack.settings.model_copy(update=pool))
    yield client
    for info in list(client.store.list("pool/static/")):
        client.store.delete(info.key)


def test_a_killed_rank_costs_no_commit_and_the_hosts_are_given_back_clean(
    client: Client, hosts: list[SshdHost], job: MainJob, timeline: Timeline
):
    capacity = job.spec.capacity.model_copy(update={"provider": "static", "resource_class": CLASS})
    job = replace(job, name=f"static-{uuid.uuid4()}", spec=job.spec.model_copy(update={"capacity": capacity}))
    before = [(host.commands, host.keys) for host in hosts]
    killer = WorkerKiller(rank=1)
    result = run_main_job(client, job, timeline, on_event=killer)
    assert result.attempts == 2
    assert 0 < killer.commit <= result.resumed_from < 12
    assert 0 < result.bits_per_byte < 16
    assert result.node_seconds > 0
    run = client.attach(result.run_key)
    assert run.id == run_id_for(client.settings.deployment_id, job.name)
    assert run.prove().complete
    assert find_version(client.mlflow, "code-lm", run.id, 1) == result.model
    released = [piece.evidence for piece in run.history().generations[1].pieces.values()]
    assert [item.outcome for item in released if item] == [Outcome.CLEANED] * 2
    assert [(host.commands, host.keys) for host in hosts] == before
    assert [
        path for host in hosts for place in ("scratch", "run/mlops") for path in (host.root / place).iterdir()
    ] == []
