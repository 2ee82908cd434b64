"""What the whole-job tests share: a checkout to train from, small arguments, a stranger who holds a machine."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlops_pipelines.recipes.main_job import MainJob, default_spec
from mlops_pipelines.recipes.timeline import Timeline
from mlops_sdk.client import Client
from mlops_sdk.local import control
from support import deploy_by_hand, eventually
from support_jobs import corpus_in_the_bucket, on_nodes
from support_turns import Turn

REPOSITORY = Path(__file__).parents[2]
SMALL = {
    "steps": 12,
    "batch": 4,
    "seq_len": 32,
    "checkpoint_every": 2,
    "keep": 3,
    "log_every": 1,
    "evaluate_bytes": 3000,
    "hidden": 16,
    "layers": 1,
    "heads": 2,
    "intermediate": 24,
    "warm_up": 2,
}


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This source tree as a repository of its own, whose program tests pass within a second (the real ones run in
    `tests/unit/code_lm`)."""
    root = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in listed.split("\0"):
        if (REPOSITORY / name).is_file() and not name.startswith("tests/"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)
    tests = root / "tests" / "unit" / "code_lm"
    tests.mkdir(parents=True)
    (tests / "test_program.py").write_text("def test_program():\n    assert True\n")
    git = ["git", "-C", str(root), "-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for argv in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a program"]):
        subprocess.run([*git, *argv], check=True)
    return root


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data is made once for all jobs of the session."""
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture
def client(stack: Any) -> Client:
    return Client(stack.settings)


@pytest.fixture
def timeline(tmp_path: Path) -> Timeline:
    return Timeline(log_dir=tmp_path / "logs")


@pytest.fixture
def job(checkout: Path, workdir: Path) -> MainJob:
    """The main job on two machines, too small to learn anything."""
    return MainJob(
        name=f"job-{uuid.uuid4()}",
        spec=default_spec(**SMALL),
        checkout=checkout,
        workdir=workdir,
        beat_baseline=False,
    )


@pytest.fixture
def one_machine_job(job: MainJob) -> MainJob:
    """The same on one machine, so that several run at once."""
    return replace(job, spec=on_nodes(job.spec, 1))


@pytest.fixture
def start(airflow: Any, client: Client, checkout: Path, workdir: Path, job: MainJob) -> Callable[..., Turn]:
    """Start a run of a DAG of `tests/stack_dags` that leases and trains; what it trains lies in the bucket already."""
    version = corpus_in_the_bucket(client, workdir / "data")

    def begin(dag: str = "leases", conf: dict[str, Any] | None = None, **arguments: Any) -> Turn:
        program = {
            "module": "mlops_pipelines.programs.code_lm.train",
            "arguments": {**job.spec.program.arguments, **arguments},
        }
        given = {"program": program, "code": str(checkout), "data": version.to_json(), **(conf or {})}
        return Turn(airflow, client, dag, airflow.start(dag, given))

    return begin


@pytest.fixture
def nothing_is_held(client: Client, operator: Any, stack: Any) -> Iterator[None]:
    """After the test: no allocation, no credential of a run, no process on any machine, all nodes available and off."""
    yield
    assert list(client.services.baremetal.list_allocations()) == []
    assert [(node.provision_state, node.power_state) for node in operator.baremetal.nodes(details=True)] == [
        ("available", "power off")
    ] * 4
    assert machine_pids(stack) == set()


def machine_pids(stack: Any) -> set[int]:
    """The processes on all machines, as this computer numbers them."""
    return set(control.machine_processes(stack.layout))


@pytest.fixture
def stranger(operator: Any, stack: Any) -> Iterator[Callable[[], object]]:
    """A second tenant with a machine of its own that is deployed and runs; call it to see all that must not change."""
    api = operator.baremetal
    theirs = stack.admin["projects"]["other-team"]
    ours = stack.admin["projects"]["ml-research"]
    name = "ml-bbbbbbbbbbbb-g1-0"  # a name like ours, which is no reason to touch it
    api.update_node("gpu-04", owner=theirs)
    try:
        api.create_allocation(name=name, resource_class="gpu.h200.8x", owner=theirs, candidate_nodes=["gpu-04"])
        eventually(lambda: api.get_allocation(name).state == "active", within_s=30)
        deploy_by_hand(operator, "gpu-04", {"meta_data": {"uuid": name}}, settings=stack.settings)
        eventually(lambda: api.get_node("gpu-04").provision_state == "active", within_s=60)
        pids = machine_pids(stack)

        def look() -> object:
            node = api.get_node("gpu-04")
            return (
                (node.provision_state, node.power_state, node.instance_id, node.allocation_id),
                api.get_allocation(name).updated_at,
                bool(pids) and pids <= machine_pids(stack),
            )

        yield look
    finally:
        if api.get_node("gpu-04").provision_state == "active":
            api.set_node_provision_state("gpu-04", "deleted")
        else:
            api.delete_allocation(name, ignore_missing=True)
        eventually(lambda: api.get_node("gpu-04").provision_state == "available", within_s=60)
        eventually(lambda: not api.get_node("gpu-04").reservation, within_s=30)
        api.update_node("gpu-04", owner=ours)
