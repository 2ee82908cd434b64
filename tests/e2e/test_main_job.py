"""The main job as a whole, on leased machines of the embedded stack."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlops_pipelines.recipes.fault import WorkerKiller
from mlops_pipelines.recipes.main_job import MainJob, run_main_job
from mlops_pipelines.recipes.timeline import Timeline
from mlops_sdk.client import Client
from mlops_sdk.errors import MlopsError, RegistryError, SettingsError
from mlops_sdk.names import run_id_for
from mlops_sdk.registry.mlflow_api import MlflowApi
from mlops_sdk.registry.models import find_version
from support_jobs import start_controller

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300), pytest.mark.usefixtures("nothing_is_held")]

STEPS = [
    "test the program",
    "prepare the data",
    "measure the baseline",
    "quote",
    "open the run",
    "send the code",
    "lease the machines",
    "train",
    "fetch and try the model",
    "register the model",
    "give the machines back",
    "prove that nothing is held",
]


@pytest.mark.parametrize(("launcher", "per_node"), [("torchrun", 1), pytest.param("mpirun", 2, marks=pytest.mark.slow)])
def test_a_killed_worker_costs_no_commit_and_everything_is_given_back(
    client: Client, job: MainJob, timeline: Timeline, launcher: str, per_node: int
):
    program = job.spec.program.model_copy(update={"launcher": launcher, "processes_per_node": per_node})
    killer = WorkerKiller(rank=2 * per_node - 1)
    result = run_main_job(
        client, replace(job, spec=job.spec.model_copy(update={"program": program})), timeline, on_event=killer
    )
    assert result.attempts == 2
    assert 0 < killer.commit <= result.resumed_from < 12  # what was committed while the kill was on its way counts too
    assert 0 < result.bits_per_byte < 16
    assert result.baseline_bits_per_byte < 3.5
    assert result.node_seconds > 0

    assert [step.name for step in timeline.steps] == STEPS
    assert all(step.evidence and not step.failed and step.log.is_file() for step in timeline.steps)

    run = client.attach(result.run_key)
    proof = run.prove()
    assert proof.complete
    assert sorted(item.kind.value for item in proof.items) == ["allocation"] * 2 + ["credential"] + ["machine"] * 2
    assert find_version(client.mlflow, "code-lm", run.id, 1) == result.model
    tags = mlflow_tags(client, result.model.mlflow_run_id)
    assert len(tags["mlops.git_commit"]) == 40
    assert len(tags["mlops.nodes"].split(",")) == 2
    assert tags["mlops.drivers"] == "570.133.20"
    assert tags["mlops.attempts"] == "2"
    assert float(tags["mlops.node_seconds"]) > 0
    assert mlflow_params(client, result.model.mlflow_run_id)["version.torch"].startswith("2.13.0")  # the nodes' own


@pytest.mark.slow
def test_a_job_whose_controller_died_goes_on_where_it_stopped(
    client: Client, job: MainJob, timeline: Timeline, stack: Any
):
    """Killed after training while it holds machines: the same name finishes it, without training again.

    On the way: a model that is no better than the baseline is refused, and a name stands for one training only.
    """
    process, _ = start_controller(stack, job, "train", "after")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, output
    with pytest.raises(RegistryError, match="does not beat the baseline"):
        run_main_job(client, replace(job, beat_baseline=True), Timeline(log_dir=timeline.log_dir / "refused"))
    run = client.attach(run_id_for(client.settings.deployment_id, job.name))
    assert run.prove().complete
    assert find_version(client.mlflow, "code-lm", run.id, 1) is None

    result = run_main_job(client, job, timeline)
    needless = {"lease the machines", "send the code", "train"}
    assert [step.name for step in timeline.steps] == [name for name in STEPS if name not in needless]
    assert result.attempts == 1
    assert client.attach(result.run_key).prove().complete
    again = run_main_job(client, job, Timeline(log_dir=timeline.log_dir / "again"))
    assert again.model == result.model

    program = job.spec.program.model_copy(update={"arguments": {**job.spec.program.arguments, "steps": 14}})
    other = replace(job, spec=job.spec.model_copy(update={"program": program}))
    with pytest.raises(SettingsError, match="has been trained already") as caught:
        run_main_job(client, other, timeline)
    assert "'steps': 12" in caught.value.seen
    assert "'steps': 14" in caught.value.seen


def test_a_red_program_never_costs_a_machine(
    client: Client, job: MainJob, timeline: Timeline, checkout: Path, tmp_path: Path
):
    red = tmp_path / "red"
    subprocess.run(["git", "clone", "-q", str(checkout), str(red)], check=True)
    (red / "tests/unit/code_lm/test_program.py").write_text("def test_program():\n    assert 1 == 2\n")
    with pytest.raises(MlopsError, match="tests of the program failed") as caught:
        run_main_job(client, replace(job, checkout=red), timeline)
    assert "assert 1 == 2" in caught.value.seen
    assert str(timeline.steps[-1].log) in caught.value.next_step
    with pytest.raises(MlopsError, match="there is no run"):
        client.attach(run_id_for(client.settings.deployment_id, job.name))


def mlflow_tags(client: Client, run_id: str) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in mlflow_data(client, run_id)["tags"]}


def mlflow_params(client: Client, run_id: str) -> dict[str, str]:
    return {param["key"]: param["value"] for param in mlflow_data(client, run_id)["params"]}


def mlflow_data(client: Client, run_id: str) -> Any:
    return MlflowApi(client.mlflow).get("runs/get", run_id=run_id)["run"]["data"]
