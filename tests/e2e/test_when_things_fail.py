"""The main job when machines and services fail: one clear error, everything given back, nothing committed lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stamina

from mlops_pipelines.recipes.fault import WorkerKiller
from mlops_pipelines.recipes.main_job import MainJob, RunningJob, run_main_job
from mlops_pipelines.recipes.timeline import Timeline
from mlops_sdk.capacity.node import Node
from mlops_sdk.checkpoint.manifest import manifest_key, parse_manifest
from mlops_sdk.checkpoint.resume import committed
from mlops_sdk.client import Client
from mlops_sdk.errors import HostKeyMismatch, MlopsError, NoCapacity, NodeFailed, RemoteCommandError, ServiceUnavailable
from mlops_sdk.local import control
from mlops_sdk.names import run_id_for
from mlops_sdk.registry.models import find_version
from mlops_sdk.remote.ssh import run_once
from mlops_sdk.run import Run
from mlops_sdk.training.events import AttemptEnded, JobEvent, StepDone
from mlops_sdk.training.launch import Cause
from mlops_sdk.training.site import Site
from support import eventually
from support_jobs import on_nodes

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300), pytest.mark.usefixtures("nothing_is_held")]


def run_of(client: Client, job: MainJob) -> Run:
    return client.attach(run_id_for(client.settings.deployment_id, job.name))


def assert_clear(error: MlopsError) -> None:
    assert error.what
    assert error.seen
    assert error.next_step


def from_the_command_line(stack: Any, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The recipe as a user types it."""
    argv = ["--name", tmp_path.name, "--workdir", str(tmp_path)]
    return subprocess.run(
        [sys.executable, "-m", "mlops_pipelines.recipes.main_job", *argv],
        env={**os.environ, "MLOPS_CONFIG": str(stack.layout.client_toml), **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_bad_settings_are_named_before_anything_happens(stack: Any, tmp_path: Path):
    done = from_the_command_line(stack, tmp_path, MLOPS_LEASE__RENEW_FOR_S="soon")
    assert done.returncode == 1
    assert "lease.renew_for_s" in done.stdout
    assert str(stack.layout.client_toml) in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_wrong_secret_is_access_denied_and_stays_secret(client: Client, job: MainJob, timeline: Timeline, stack: Any):
    wrong = stack.settings.keystone.model_copy(update={"password": type(stack.settings.keystone.password)("not-this")})
    denied = Client(stack.settings.model_copy(update={"keystone": wrong}))
    with pytest.raises(MlopsError, match="Keystone") as caught:
        run_main_job(denied, job, timeline)
    assert_clear(caught.value)
    assert "not-this" not in str(caught.value)
    assert timeline.steps[-1].failed


def test_no_capacity_within_the_stated_time(client: Client, job: MainJob, timeline: Timeline):
    with pytest.raises(NoCapacity) as caught:
        run_main_job(client, replace(job, spec=on_nodes(job.spec, 5)), timeline)
    assert_clear(caught.value)
    assert run_of(client, job).prove().complete


def test_a_node_that_never_comes_up(
    client: Client, job: MainJob, timeline: Timeline, stack: Any, fault: Callable[..., None]
):
    fault(deploy="no-boot")
    lease = stack.settings.lease.model_copy(update={"ssh_timeout_s": 3.0})
    impatient = Client(stack.settings.model_copy(update={"lease": lease}))
    with pytest.raises(NodeFailed, match=r"no SSH login on 'gpu-0\d'") as caught:
        run_main_job(impatient, job, timeline)
    assert_clear(caught.value)
    assert run_of(client, job).prove().complete


def test_another_machine_at_the_address_of_a_node(client: Client, one_machine_job: MainJob, tmp_path: Path):
    """Its host key is not the one of the lease: nothing is sent to it."""
    job = one_machine_job

    def swap(step: str, phase: str) -> None:
        if (step, phase) != ("train", "before"):
            return
        run = run_of(client, job)
        (node,) = run.lease().nodes
        with_new_host_key(run, node)
        run.close()

    with pytest.raises(HostKeyMismatch, match="is not 'gpu-") as caught:
        run_main_job(client, job, Timeline(log_dir=tmp_path, on_boundary=swap))
    assert_clear(caught.value)
    assert run_of(client, job).prove().complete


def with_new_host_key(run: Run, node: Node) -> None:
    key = "/etc/ssh/ssh_host_ed25519_key"
    restart = "[ \"$(cut -d' ' -f2,4 $p/stat 2>/dev/null)\" = '(sshd) 1' ] && kill ${p#/proc/}"
    script = (
        f"rm -f {key} {key}.pub && ssh-keygen -q -t ed25519 -N '' -f {key} && "
        f"for p in /proc/[0-9]*; do {restart}; done; true"
    )
    host = Site.of(run).host(node)
    with contextlib.suppress(RemoteCommandError):  # the daemon may take this session along
        run_once(host, ["sh", "-c", script])

    def refused() -> bool:
        try:
            run_once(host, ["true"], timeout_s=2)
        except HostKeyMismatch:
            return True
        except NodeFailed:
            pass
        return False

    eventually(refused, within_s=20, what="the machine shows its new host key")


@pytest.mark.slow  # the same failure is in make test below the job: tests/integration
def test_s3_down_in_the_middle_of_a_training(client: Client, one_machine_job: MainJob, timeline: Timeline, stack: Any):
    """Saves fail, the attempt ends; once S3 is back the job goes on from the last commit by itself."""
    outage = Outage(stack, "ceph-rgw", seconds=20)  # longer than the attempts need to find out
    at = [0]
    ended: list[AttemptEnded] = []

    def disturb(job: RunningJob, event: JobEvent) -> None:
        if isinstance(event, StepDone) and not at[0]:
            steps = committed(job.site.store, f"{job.site.prefix}/checkpoints")
            if steps:
                at[0] = steps[0]
                outage.begin()
        if isinstance(event, AttemptEnded):
            ended.append(event)

    result = run_main_job(client, one_machine_job, timeline, on_event=disturb)
    outage.over()
    assert [event.cause for event in ended] == [Cause.SERVICE, Cause.SUCCEEDED]
    assert "S3" in ended[0].seen
    assert result.resumed_from >= at[0] > 0


class Outage:
    """A service that is down for a while, in the background."""

    def __init__(self, stack: Any, service: str, *, seconds: float) -> None:
        self._layout, self._service = stack.layout, service
        self._timer = threading.Timer(seconds, control.release, (self._layout, service))

    def begin(self) -> None:
        control.hold(self._layout, self._service)
        self._timer.start()

    def over(self) -> None:
        self._timer.join()


@pytest.mark.slow  # the same failure is in make test below the job: tests/integration
def test_mlflow_down_at_registration(client: Client, one_machine_job: MainJob, tmp_path: Path, stack: Any):
    """The machines go back at once; the model is registered later, without training again."""
    job = one_machine_job

    def cut(step: str, phase: str) -> None:
        if (step, phase) == ("register the model", "before"):
            control.hold(stack.layout, "mlflow")

    with stamina.set_testing(True, attempts=2), pytest.raises(ServiceUnavailable, match="MLflow") as caught:
        run_main_job(client, job, Timeline(log_dir=tmp_path / "1", on_boundary=cut))
    try:
        assert_clear(caught.value)
        run = run_of(client, job)
        assert run.prove().complete
    finally:
        control.release(stack.layout, "mlflow")
    later = Timeline(log_dir=tmp_path / "2")
    result = run_main_job(client, job, later)
    assert "train" not in [step.name for step in later.steps]
    assert find_version(client.mlflow, "code-lm", run.id, 1) == result.model


@pytest.mark.slow  # the same failure is in make test below the job: tests/integration
def test_a_corrupt_checkpoint_is_passed_over(client: Client, one_machine_job: MainJob, timeline: Timeline):
    """The newest commit has a damaged shard: the job resumes from the one before it."""
    killer = WorkerKiller(rank=0)
    damaged: list[int] = []

    def disturb(job: RunningJob, event: JobEvent) -> None:
        if not isinstance(event, StepDone) or event.step >= 5:  # two commits before the kill
            killer(job, event)
        if isinstance(event, AttemptEnded) and event.retry:
            damaged.append(damage_newest(job))

    result = run_main_job(client, one_machine_job, timeline, on_event=disturb)
    assert result.attempts == 2
    assert damaged
    assert 0 < result.resumed_from < damaged[0]
    log = next(step.log for step in timeline.steps if step.name == "train").read_text()
    assert f"checkpoint of step {damaged[0]} is damaged" in log


def damage_newest(job: RunningJob) -> int:
    """Change one byte of a shard of the newest commit; returns its step."""
    store, prefix = job.site.store, f"{job.site.prefix}/checkpoints"
    newest = committed(store, prefix)[0]
    key = manifest_key(prefix, newest)
    shard = parse_manifest(store.get(key) or b"", key).shards[0].key
    body = bytearray(store.get(shard) or b"")
    body[-1] ^= 1
    store.put(shard, bytes(body))
    return newest


@pytest.fixture
def small_disks(stack: Any) -> Iterator[None]:
    """Machines whose scratch disk has 4 MiB, from their next power-on."""
    limits = [slot / "scratch-mib" for slot in (stack.state_dir / "machines").glob("gpu-*")]
    for limit in limits:
        limit.write_text("4")
    yield
    for limit in limits:
        limit.unlink()


@pytest.mark.slow
@pytest.mark.usefixtures("small_disks")
def test_a_node_whose_disk_is_full(client: Client, one_machine_job: MainJob, timeline: Timeline):
    with pytest.raises(NodeFailed, match=r"node 'gpu-0\d'") as caught:
        run_main_job(client, one_machine_job, timeline)
    assert_clear(caught.value)
    assert "scratch" in str(caught.value)
    assert run_of(client, one_machine_job).prove().complete
