"""Main jobs in processes of their own, for tests that kill them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlops_pipelines.programs.code_lm import corpus
from mlops_pipelines.recipes.main_job import MainJob
from mlops_pipelines.specs import TrainSpec
from mlops_sdk.client import Client
from mlops_sdk.cloud import Cloud
from mlops_sdk.data.versioning import DataVersion
from mlops_sdk.identity.keystone import KeystoneCredentials
from mlops_sdk.names import run_key

CONTROLLER = Path(__file__).parent / "e2e" / "controller.py"


def on_nodes(spec: TrainSpec, nodes: int) -> TrainSpec:
    """The same on another number of machines, without waiting for them."""
    return spec.model_copy(update={"capacity": spec.capacity.model_copy(update={"nodes": nodes, "wait_s": 1.0})})


def start_controller(
    stack: Any, job: MainJob, what: str, phase: str, *, suffix: str = "", renew_for_s: float = 20.0
) -> tuple[subprocess.Popen[str], str]:
    """Start `controller.py`; returns the process and the job's name."""
    name = f"{job.name}{suffix}"
    described = {
        "name": name,
        "spec": job.spec.model_dump(mode="json"),
        "checkout": str(job.checkout),
        "workdir": str(job.workdir),
    }
    file = job.workdir / f"{name}.json"
    file.write_text(json.dumps(described))
    environment = {
        **os.environ,
        "MLOPS_CONFIG": str(stack.layout.client_toml),
        "MLOPS_LEASE__RENEW_FOR_S": str(renew_for_s),
    }
    process = subprocess.Popen(
        [sys.executable, str(CONTROLLER), str(file), what, phase],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, name


def held(client: Client, run_ids: Sequence[uuid.UUID]) -> list[str]:
    """Allocations and credentials of these runs that exist."""
    keys = [run_key(run_id) for run_id in run_ids]
    names = [allocation.name for allocation in client.services.baremetal.list_allocations()]
    names += [credential.name for credential in KeystoneCredentials(Cloud(client.settings.keystone)).list()]
    return [name for name in names if any(key in name for key in keys)]


def corpus_in_the_bucket(client: Client, folder: Path) -> DataVersion:
    """The corpus, in the bucket where DVC would have put it."""
    prepared = corpus.prepared(folder, vocabulary=4096)
    version = DataVersion(
        name=corpus.FILE_NAME,
        sha256=prepared.sha256,
        md5=prepared.sha256[:32],
        size=prepared.size,
        revision="0" * 40,
    )
    client.store.put_if_absent(version.key, prepared.path.read_bytes())
    return version
