"""Jobs on leased machines of the embedded stack: both launchers, and everything that goes wrong."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.node import Node
from mlops_sdk.client import Client
from mlops_sdk.config import PerRun
from mlops_sdk.data.versioning import pin
from mlops_sdk.errors import BundleError, HostKeyMismatch, JobFailed, LeaseLost, NodeFailed
from mlops_sdk.identity.audit import Audit
from mlops_sdk.identity.sts import StsTokens
from mlops_sdk.remote.ssh import run_once
from mlops_sdk.run import Run
from mlops_sdk.training.bundle import put_bundle, put_data
from mlops_sdk.training.events import AttemptEnded, JobEvent, RankStarted, StepDone, Warned
from mlops_sdk.training.job import JobResult, run_job
from mlops_sdk.training.launch import Cause
from mlops_sdk.training.site import Site, as_they_are
from mlops_sdk.training.spec import BundleRef, Launcher, LaunchSpec

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

PROGRAMS = Path(__file__).with_name("programs")
CONTROLLER = Path(__file__).with_name("controller.py")
BOTH = pytest.mark.parametrize("launcher", list(Launcher))
BOTH_IN_TIME = pytest.mark.parametrize(  # what tests/e2e does with torchrun too
    "launcher", [Launcher.MPIRUN, pytest.param(Launcher.TORCHRUN, marks=pytest.mark.slow)]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    run: Run
    nodes: tuple[Node, ...]
    bundle: BundleRef
    config: Path

    @property
    def site(self) -> Site:
        return Site.of(self.run)

    def spec(self, launcher: Launcher = Launcher.TORCHRUN, *, max_attempts: int = 3, **args: Any) -> LaunchSpec:
        return LaunchSpec(
            module="toy",
            bundle=self.bundle,
            launcher=launcher,
            args={"steps": 5, **args},
            max_attempts=max_attempts,
        )

    def quick(self, *, max_attempts: int = 3, **args: Any) -> LaunchSpec:
        """For tests that are about something else than the ranks' communication: no torch, starts in a second."""
        return self.spec(Launcher.MPIRUN, max_attempts=max_attempts, alone=True, **args)

    def shell(self, node: Node, script: str) -> str:
        return run_once(self.site.host(node), ["sh", "-c", script])

    def left(self) -> list[str]:
        """Command lines of the job's processes on all machines."""
        script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null; echo; done"
        words = ("mlops_sdk", "torch.distributed", "mpirun", "orted")
        lines = [line for node in self.nodes for line in self.shell(node, script).splitlines()]
        return [line for line in lines if any(word in line for word in words)]


@pytest.fixture(scope="module")
def leased(stack: Any) -> Iterator[Leased]:
    """Two machines with a scratch disk small enough to be filled."""
    limits = [slot / "scratch-mib" for slot in (stack.state_dir / "machines").iterdir() if slot.is_dir()]
    for limit in limits:
        limit.write_text("64")
    client = Client(stack.settings)
    try:
        with client.start_run() as run:
            lease = run.lease(
                LeaseRequest(
                    nodes=2,
                    resource_class="gpu.h200.8x",
                    deadline=datetime.now(UTC) + timedelta(minutes=30),
                    wait_s=60.0,
                )
            )
            bundle = put_bundle(run.store, program=PROGRAMS)
            yield Leased(run=run, nodes=lease.nodes, bundle=bundle, config=stack.layout.client_toml)
        assert run.prove().complete
    finally:
        for limit in limits:
            limit.unlink(missing_ok=True)


def run_it(
    leased: Leased, spec: LaunchSpec, *, look: Callable[[JobEvent], None] = lambda _: None
) -> tuple[JobResult, list[JobEvent], list[str]]:
    events: list[JobEvent] = []
    lines: list[str] = []

    def note(event: JobEvent) -> None:
        events.append(event)
        look(event)

    return run_job(leased.site, spec, leased.nodes, on_event=note, on_line=lines.append), events, lines


@BOTH
def test_one_spec_runs_under_both_launchers_with_the_bundles_own_code(leased: Leased, launcher: Launcher) -> None:
    result, events, lines = run_it(leased, leased.spec(launcher))
    assert result.result == {"total": 3.0, "world_size": 2, "attempt": result.attempts[-1].attempt}
    assert [e.step for e in events if isinstance(e, StepDone)] == [0, 1, 2, 3, 4]
    started = {e.rank: e.node for e in events if isinstance(e, RankStarted)}
    ordered = sorted(leased.nodes, key=lambda node: (node.leaf, node.position, node.name))
    assert [started[0], started[1]] == [node.name for node in ordered]
    prefix = f"{leased.site.prefix}/logs/attempt-{result.attempts[-1].attempt}"
    for rank in (0, 1):
        log = leased.run.store.get(f"{prefix}/rank-{rank}.log")
        assert log is not None
        assert f"rank {rank} of 2 runs /scratch/{leased.run.key}/bundle/{leased.bundle.sha256}/site/" in log.decode()
    assert any(line.startswith(f"[rank 1 {started[1]}] rank 1 of 2") for line in lines)
    assert leased.left() == []


@BOTH
def test_a_program_that_raises_on_rank_1_ends_everything_within_5_s(leased: Leased, launcher: Launcher) -> None:
    times: list[float] = []

    def note(event: JobEvent) -> None:
        if isinstance(event, AttemptEnded) or (isinstance(event, StepDone) and event.step == 2):
            times.append(time.monotonic())

    with pytest.raises(JobFailed) as caught:
        run_job(leased.site, leased.spec(launcher, do="raise"), leased.nodes, on_event=note)
    raised_at, ended_at = times
    assert ended_at - raised_at < 5
    error = caught.value
    assert error.what.startswith("the program raised ValueError on rank 1")
    assert "no such token: 42" in error.seen
    key = error.next_step.rpartition(f"s3://{leased.run.store.bucket}/")[2]
    log = leased.run.store.get(key)
    assert log is not None
    assert b"ValueError: no such token: 42" in log
    assert leased.left() == []


def test_a_program_that_exits_is_not_tried_again(leased: Leased) -> None:
    with pytest.raises(JobFailed, match="exited with status 7 on rank 1"):
        run_it(leased, leased.quick(do="exit"))


@BOTH_IN_TIME
def test_a_killed_rank_leads_to_a_second_attempt_that_succeeds(leased: Leased, launcher: Launcher) -> None:
    for node in leased.nodes:
        leased.shell(node, f"rm -f /scratch/{leased.run.key}/killed")
    result, _, _ = run_it(leased, leased.spec(launcher, do="kill once"))
    assert [(a.cause, a.retry) for a in result.attempts] == [(Cause.KILLED, True), (Cause.SUCCEEDED, False)]
    assert "rank 1" in result.attempts[0].what
    assert "SIGKILL" in result.attempts[0].what


def test_a_kill_from_outside_is_survived_too_and_the_last_attempt_says_so(leased: Leased) -> None:
    nodes = {node.name: node for node in leased.nodes}
    ended: list[AttemptEnded] = []

    def kill(event: JobEvent) -> None:
        if isinstance(event, RankStarted) and event.rank == 0:
            leased.shell(nodes[event.node], f"kill -9 {event.pid}")
        if isinstance(event, AttemptEnded):
            ended.append(event)

    with pytest.raises(JobFailed, match=r"rank 0 .* was killed by SIGKILL \(attempt 2 of 2\)"):
        run_job(leased.site, leased.quick(max_attempts=2), leased.nodes, on_event=kill)
    assert [e.retry for e in ended] == [True, False]


@pytest.mark.slow  # what tests/e2e/test_killed_controller.py does in `make test`, with a whole job
@BOTH
def test_a_controller_that_dies_takes_the_job_with_it_and_the_next_one_goes_on(
    leased: Leased, launcher: Launcher
) -> None:
    controller = subprocess.Popen(
        [sys.executable, str(CONTROLLER), leased.run.key, launcher.value, leased.bundle.sha256],
        env={**os.environ, "MLOPS_CONFIG": str(leased.config)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert controller.stdout is not None
    assert controller.stdout.readline().startswith("step ")
    assert leased.left()
    controller.send_signal(signal.SIGKILL)
    controller.wait()
    give_up = time.monotonic() + 10
    while leased.left():
        assert time.monotonic() < give_up
        time.sleep(0.2)
    assert run_it(leased, leased.spec(launcher))[0].result["total"] == 3.0


def test_an_error_in_the_callers_own_callback_ends_the_job_and_comes_out(leased: Leased) -> None:
    def note(event: JobEvent) -> None:
        if isinstance(event, StepDone):
            raise LookupError(event.step)  # noqa: TRY004 - any error of the caller's own

    with pytest.raises(LookupError):
        run_job(leased.site, leased.quick(steps=100_000), leased.nodes, on_event=note)
    assert leased.left() == []


def test_another_machine_at_the_address_is_refused_before_anything_is_sent(leased: Leased) -> None:
    first, second = leased.nodes
    swapped = (replace(first, host_public_key=second.host_public_key), second)
    with pytest.raises(HostKeyMismatch, match=first.name) as caught:
        run_job(leased.site, leased.spec(), swapped)
    assert caught.value.seen.count("SHA256:") == 2


def test_a_machine_that_does_not_answer_is_named_with_what_was_seen(leased: Leased) -> None:
    first, second = leased.nodes
    site = replace(leased.site, ssh_timeout_s=2.0, mend=as_they_are)
    silent = replace(second, address="127.0.0.254")
    with pytest.raises(NodeFailed, match=second.name) as caught:
        run_job(site, leased.spec(), (first, silent))
    assert "127.0.0.254" in caught.value.what
    assert caught.value.seen


def test_a_disk_that_a_program_fills_is_named(leased: Leased) -> None:
    try:
        with pytest.raises(JobFailed, match=r"rank 1 .*No space left on device \(0 of \d+ bytes free"):
            run_it(leased, leased.quick(do="fill the disk"))
    finally:
        for node in leased.nodes:
            leased.shell(node, f"rm -f /scratch/{leased.run.key}/full")


@pytest.mark.slow
def test_pinned_data_is_fetched_by_its_hash_and_refused_when_it_changed(leased: Leased, tmp_path: Path) -> None:
    repository = tmp_path / "data.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", repository], check=True)
    file = tmp_path / "pinned.bin"
    file.write_bytes(os.urandom(1 << 20))
    version = pin(leased.run.settings.s3, str(repository), file, cache=tmp_path / "cache")
    spec = replace(leased.quick(data=file.name), data=(version.ref(),))
    result, _, _ = run_it(leased, spec)
    assert result.result["data_sha256"] == version.sha256
    for node in leased.nodes:
        leased.shell(node, f"rm -r /scratch/{leased.run.key}/data")
    leased.run.store.put(version.key, os.urandom(1 << 20))
    with pytest.raises(BundleError, match=r"node 'gpu-0\d': .*dvc/files/md5/.* is not what was sent"):
        run_it(leased, spec)


def test_data_that_does_not_fit_is_refused_with_the_machines_name(leased: Leased, tmp_path: Path) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(80 << 20))
    spec = replace(leased.spec(), data=(put_data(leased.run.store, big),))
    with pytest.raises(NodeFailed, match=r"node 'gpu-0\d': scratch .* is full"):
        run_it(leased, spec)


def test_a_bundle_that_was_changed_in_the_store_never_runs(leased: Leased) -> None:
    store = leased.run.store
    other = put_bundle(store, program=PROGRAMS, requirements=f"# of {leased.run.key} only\n")
    store.put(other.key, b"something else")
    with pytest.raises(BundleError, match=r"node 'gpu-0\d': .*is not what was sent") as caught:
        run_it(leased, replace(leased.spec(), bundle=other))
    assert other.sha256 in caught.value.seen


def test_an_image_that_differs_from_the_lock_is_refused(leased: Leased) -> None:
    other = put_bundle(leased.run.store, program=PROGRAMS, requirements="boto3==0.0.1\n")
    with pytest.raises(BundleError, match=r"node 'gpu-0\d': .*'boto3'.*wanted ==0\.0\.1"):
        run_it(leased, replace(leased.spec(), bundle=other))


def test_a_lost_lease_ends_the_job_on_the_machines(leased: Leased) -> None:
    running = time.monotonic() + 300
    lost = LeaseLost("the lease is gone")

    def note(event: JobEvent) -> None:
        nonlocal running
        if isinstance(event, StepDone):
            running = min(running, time.monotonic())

    def check() -> None:
        if time.monotonic() > running:
            raise lost

    with pytest.raises(LeaseLost) as caught:
        run_job(leased.site, leased.quick(steps=100_000), leased.nodes, on_event=note, check=check)
    assert caught.value is lost
    assert leased.left() == []


def test_no_secret_lies_where_others_can_read_it(leased: Leased) -> None:
    secret = leased.run.settings.s3.secret_access_key.get_secret_value()
    seen: list[str] = []

    def look(event: JobEvent) -> None:
        if isinstance(event, StepDone) and event.step == 0:
            node = leased.nodes[0]
            seen.append(leased.shell(node, "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'"))
            seen.append(leased.shell(node, f"stat -c %a /run/mlops/{leased.run.key}/job.json /run/mlops"))

    _, _, lines = run_it(leased, leased.quick(), look=look)
    assert secret not in seen[0]
    assert seen[1].split() == ["600", "700"]
    assert not [line for line in lines if secret in line]


@pytest.mark.slow
def test_a_job_outlives_its_s3_login_and_finds_no_key_of_the_deployment_on_its_machines(leased: Leased) -> None:
    ours = leased.run.settings.s3
    short = ours.model_copy(update={"per_run": PerRun.STS, "token_s": 6.0})
    audit = Audit(leased.run.store, "the tests")
    site = replace(leased.site, tokens=StsTokens(short, leased.run.key, audit))
    secret = base64.b64encode(ours.secret_access_key.get_secret_value().encode()).decode()
    script = (
        f's=$(echo {secret} | base64 -d); grep -rlF -- "$s" /run /tmp /scratch /etc 2>/dev/null; '
        f'grep -lF -- "$s" /proc/[0-9]*/environ 2>/dev/null; ls -l /run/mlops/{leased.run.key}'
    )
    seen: list[str] = []

    def look(event: JobEvent) -> None:
        if isinstance(event, StepDone) and event.step == 20:
            seen.extend(leased.shell(node, script) for node in leased.nodes)

    began = time.monotonic()
    result = run_job(site, leased.quick(steps=240, max_attempts=1), leased.nodes, on_event=look)
    assert time.monotonic() - began > 2 * short.token_s
    assert result.result["total"] == 1.0
    for listing in seen:
        files = [line for line in listing.splitlines() if line.startswith("/")]
        assert files == []
        assert [line for line in listing.splitlines() if line.startswith("-rw-------") and "s3.json" in line]
    assert len(seen) == len(leased.nodes)


@pytest.mark.slow
def test_no_request_of_a_machine_is_signed_with_a_key_of_the_deployment(leased: Leased, stack: Any) -> None:
    """By the S3 server's own log: which key signed each request to the address that machines use."""
    log, from_here = stack.layout.log("ceph-rgw"), stack.layout.log("ceph-rgw").stat().st_size
    with s3_tells_of_requests(stack):
        run_job(leased.site, leased.quick(), leased.nodes)
    text = log.read_bytes()[from_here:].decode(errors="replace")
    theirs = set(re.findall(rf"req (\d+) .* host={re.escape(stack.bridge_address)}$", text, flags=re.MULTILINE))
    keys = {key for request, key in re.findall(r"req (\d+) .* access key id = (\S+)", text) if request in theirs}
    assert len(keys) == 1  # the run's
    ours = leased.run.settings.s3.access_key_id
    assert ours not in keys
    assert ours in text  # it is the controller's


@contextmanager
def s3_tells_of_requests(stack: Any) -> Iterator[None]:
    """Within the block, Ceph's gateway writes down each request and the key that signed it."""
    data = stack.layout.data("ceph")
    ask = ["ceph", "--admin-daemon", str(data / "run" / "client.rgw.a.asok"), "config", "set", "debug_rgw"]
    environment = {**os.environ, "CEPH_CONF": str(data / "ceph.conf")}
    subprocess.run([*ask, "10/10"], env=environment, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run([*ask, "0/0"], env=environment, check=True, capture_output=True)


@pytest.fixture
def mlflow(leased: Leased) -> Callable[[str, dict[str, Any] | None], dict[str, Any]]:
    settings = leased.run.settings.mlflow
    token = base64.b64encode(f"{settings.username}:{settings.password.get_secret_value()}".encode()).decode()

    def call(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - the stack's own server
            f"{settings.tracking_uri}/api/2.0/mlflow/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Basic {token}"},
        )
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
            return json.loads(reply.read())

    return call


@pytest.mark.slow
def test_metrics_reach_mlflow_and_its_outage_costs_only_them(
    leased: Leased, mlflow: Callable[..., dict[str, Any]], stack: Any
) -> None:
    experiment = mlflow("experiments/create", {"name": leased.run.key})["experiment_id"]
    run_id = mlflow("runs/create", {"experiment_id": experiment, "start_time": 0})["run"]["info"]["run_id"]
    site = Site.of(leased.run, tracking_run_id=run_id)
    run_job(site, leased.quick(), leased.nodes)
    history = mlflow(f"metrics/get-history?run_id={run_id}&metric_key=total")["metrics"]
    assert [(point["step"], point["value"]) for point in history] == [(step, 1) for step in range(5)]
    events: list[JobEvent] = []
    with stack.held("mlflow"):
        result = run_job(site, leased.quick(), leased.nodes, on_event=events.append)
    assert result.result["total"] == 1.0
    warned = [event.text for event in events if isinstance(event, Warned)]
    assert [text for text in warned if "5 metric values did not reach MLflow" in text]
