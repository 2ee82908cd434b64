"""Cost and budgets against the real Ironic, RGW and MLflow of the embedded stack."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mlops_sdk.capacity.accounts import cost_of_run, tag_versions
from mlops_sdk.capacity.cost_lines import Line, by_line
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.reservations import accounts_of_month
from mlops_sdk.checkpoint.manifest import Manifest, Shard, manifest_key
from mlops_sdk.cli.main import main
from mlops_sdk.client import Client
from mlops_sdk.config import BudgetSettings
from mlops_sdk.errors import BudgetExceeded
from mlops_sdk.journal import EntryKind
from mlops_sdk.registry.lineage import CheckpointRecord, CostRecord, GitState, LeaseRecord, Lineage
from mlops_sdk.registry.mlflow_api import MlflowApi
from mlops_sdk.registry.models import register, tags_of_version
from mlops_sdk.run import Run
from mlops_sdk.training.bundle import put_bundle
from mlops_sdk.training.job import run_job
from mlops_sdk.training.site import Site
from mlops_sdk.training.spec import Launcher, LaunchSpec

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(240)]

PROGRAMS = Path(__file__).parents[1] / "training" / "programs"


def request(nodes: int, minutes: float = 10.0) -> LeaseRequest:
    deadline = datetime.now(UTC) + timedelta(minutes=minutes)
    return LeaseRequest(nodes=nodes, resource_class="gpu.h200.8x", deadline=deadline, wait_s=60.0)


def a_version(client: Client, run: Run, name: str, folder: Path) -> str:
    """A model version of the run, as registration makes it."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    summary = client.summary(run.key)
    lineage = Lineage(
        run_id=run.id,
        owner=run.owner,
        git=GitState(commit="0" * 40, dirty=False),
        data_sha256="1" * 64,
        model_sha256="2" * 64,
        lease=LeaseRecord(names=(), generation=1),
        nodes=(),
        checkpoint=CheckpointRecord(key="k", sha256="3" * 64, step=5),
        packages={},
        cost=CostRecord(node_seconds=summary.node_seconds, amount=summary.cost, currency="EUR"),
        metrics={},
        attempts=2,
    )
    registered = register(client.mlflow, name, folder, lineage)
    run.journal.append(EntryKind.OUTCOME, "register", registered.uri, generation=1)
    return registered.uri


def test_a_job_that_failed_once_is_charged_line_by_line_and_its_version_says_so(stack: Any, tmp_path: Path) -> None:
    client = Client(stack.settings)
    with client.start_run() as run:
        lease = run.lease(request(2))
        spec = LaunchSpec(
            module="toy",
            bundle=put_bundle(run.store, program=PROGRAMS),
            launcher=Launcher.MPIRUN,
            args={"steps": 5, "do": "kill once", "alone": True},
            max_attempts=2,
        )
        run_job(Site.of(run), spec, lease.nodes)
        shard = Shard(key="s", bytes=1 << 30, sha256="0" * 64, tensors=())
        manifest = Manifest(
            run_id=str(run.id), step=5, attempt=2, world_size=1, created=datetime.now(UTC), shards=(shard,)
        )
        prefix = f"{run.prefix}/checkpoints"
        run.store.put(manifest_key(prefix, 5), manifest.to_bytes())
    name = f"cost-{run.key}"
    uri = a_version(client, run, name, tmp_path / "model")

    report = cost_of_run(client, run.key)
    (costs,) = report.runs
    lines = by_line(costs.portions)
    assert min(lines[Line.TRAINING], lines[Line.FAILED], lines[Line.IDLE], lines[Line.STORAGE]) > 0
    machines = lines[Line.TRAINING] + lines[Line.FAILED] + lines[Line.IDLE]
    assert machines == pytest.approx(client.summary(run.key).cost)

    assert tag_versions(client, report) == (uri,)
    version = MlflowApi(client.mlflow).get("model-versions/get", name=name, version="1")["model_version"]
    tags = tags_of_version(version)
    assert float(tags["mlops.cost.failed"]) == pytest.approx(lines[Line.FAILED], abs=1e-4)
    assert float(tags["mlops.cost.total"]) == pytest.approx(costs.cost, abs=1e-4)

    config = {"MLOPS_CONFIG": str(stack.layout.client_toml)}
    shown = CliRunner().invoke(main, ["cost", "--run", run.key, "--json"], env=config)
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.output)["lines"]["training"] == pytest.approx(lines[Line.TRAINING], abs=1e-5)
    shown = CliRunner().invoke(main, ["cost", "--model", name], env=config)
    assert uri in shown.output
    shown = CliRunner().invoke(main, ["metrics"], env=config)
    assert 'mlops_node_seconds{line="failed"' in shown.output


def test_of_three_runs_that_start_at_once_the_budget_lets_one_lease_a_machine(stack: Any) -> None:
    owner = f"ada-{uuid.uuid4().hex[:8]}"
    price = stack.settings.node_seconds_price["gpu.h200.8x"] * 600
    budget = BudgetSettings(owners={owner: price * 1.5}, raised_by="the lead")
    settings = stack.settings.model_copy(update={"budget": budget})

    refused: list[BudgetExceeded] = []

    def start(number: int) -> str:
        client = Client(settings)
        run = client.start_run(name=f"{owner}-{number}", owner=owner)
        try:
            run.lease(request(1))
        except BudgetExceeded as refusal:
            refused.append(refusal)
            return ""
        return run.key

    with ThreadPoolExecutor(3) as pool:
        leased = [key for key in pool.map(start, range(3)) if key]
    client = Client(settings)
    try:
        assert len(leased) == 1
        assert all("the lead" in refusal.next_step for refusal in refused)
        mine = [a for a in accounts_of_month(client.services) if a.owner == owner]
        assert mine[0].spent + mine[0].promised <= price * 1.5
    finally:
        for key in leased:
            run = client.attach(key)
            run.release()
            assert run.prove().complete
