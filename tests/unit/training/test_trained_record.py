"""An ordered training and a finished one are found again in the run's journal."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.errors import RegistryError, SettingsError
from mlops_sdk.registry.lineage import GitState
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.training.events import AttemptEnded
from mlops_sdk.training.job import JobResult
from mlops_sdk.training.launch import Cause
from mlops_sdk.training.program import ProgramSpec
from mlops_sdk.training.spec import BundleRef, DataRef
from mlops_sdk.training.trained import (
    TrainingOrder,
    check_same,
    lineage_of,
    order,
    ordered,
    remember,
    remembered,
)

PROGRAM = ProgramSpec(module="a.program", arguments={"steps": 3}, launcher="mpirun", max_attempts=2)
ORDER = TrainingOrder(
    model_name="lm",
    program=PROGRAM,
    bundle=BundleRef(sha256="b" * 64, size=10),
    data=(DataRef(name="x", sha256="d" * 64, size=5, key="dvc/files/md5/aa/bb"),),
    git=GitState(commit="c" * 40, dirty=False),
    data_revision="r" * 40,
    tracking_run_id="mlflow-run",
)
REPORTED = {
    "bits_per_byte": 2.5,
    "held_out": {"python": 2.4, "cpp": 2.6},
    "parameters": 7,
    "resumed_from": 2,
    "tokens_per_s": 10.0,
    "data_sha256": "d" * 64,
    "model": {"prefix": "runs/x/model", "manifest_sha256": "e" * 64},
    "checkpoint": {"key": "runs/x/checkpoints/3/manifest.json", "step": 3, "sha256": "f" * 64},
    "packages": {"torch": "2.13.0"},
    "something else": 1,
}


def ended(attempt: int, cause: Cause) -> AttemptEnded:
    return AttemptEnded(attempt=attempt, cause=cause, what="", seen="", seconds=1, retry=False)


def result(**reported) -> JobResult:
    ends = (ended(1, Cause.SERVICE), ended(2, Cause.SUCCEEDED))
    return JobResult(attempts=ends, seconds=3, result={**REPORTED, **reported}, log_uri="s3://logs")


@pytest.fixture
def run():
    cloud = FakeCloud()
    client = cloud.client()
    with client.start_run("nightly") as run:
        run.client = client
        deadline = cloud.clock.now() + timedelta(hours=1)
        run.lease(LeaseRequest(nodes=2, resource_class="gpu.h200.8x", deadline=deadline))
        yield run


def test_an_order_is_read_back_as_it_was_written(run):
    with pytest.raises(SettingsError, match="not told what to train"):
        ordered(run)
    order(run, ORDER)
    assert ordered(run) == ORDER
    assert ordered(run).launch.data == ORDER.data
    assert remembered(run) is None


def test_a_finished_training_is_remembered_with_its_machines_and_figures(run):
    trained = remember(run, run.held, ORDER, result())
    assert remembered(run) == trained
    assert (trained.attempts, trained.generation, len(trained.nodes)) == (2, 1, 2)
    assert trained.held_out == {"python": 2.4, "cpp": 2.6}
    lineage = lineage_of(run.client, run, trained, metrics={"baseline_bits_per_byte": 3.0})
    assert lineage.data_revision == "r" * 40
    assert lineage.model_prefix == "runs/x/model"
    assert lineage.held_out == trained.held_out
    assert lineage.metrics == {"bits_per_byte": 2.5, "baseline_bits_per_byte": 3.0}
    check_same(run, trained, model_name="lm", program=PROGRAM)
    with pytest.raises(SettingsError, match="trained already"):
        check_same(run, trained, model_name="lm", program=PROGRAM.model_copy(update={"arguments": {"steps": 4}}))


def test_a_program_that_reports_too_little_is_told_what_is_missing(run):
    with pytest.raises(RegistryError, match=r"a\.program") as caught:
        remember(run, run.held, ORDER, result(model=None))
    assert "model_sha256" in caught.value.seen
    assert remembered(run) is None
