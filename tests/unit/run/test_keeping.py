"""Machines that stay though nothing runs on them: after a failure, and between two tasks of a run."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlops_sdk.capacity.cost_lines import Line, by_line, portions
from mlops_sdk.capacity.lease import LeaseRequest, Priority
from mlops_sdk.capacity.records import one_record, prices_of
from mlops_sdk.cli.main import main
from mlops_sdk.errors import LeaseLost, ServiceUnavailable
from mlops_sdk.keeper import Beat, Stop
from mlops_sdk.run import Run
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.faults import Crash


class ByHand:
    """Nobody beats but the test."""

    def keep(self, beat: Beat, every_s: float) -> Stop:
        del beat, every_s
        return lambda: None


@pytest.fixture(params=["ironic", "static"])
def provider(request) -> str:
    return request.param


@pytest.fixture
def cloud(monkeypatch) -> FakeCloud:
    cloud = FakeCloud(hosts=2)
    lease = cloud.settings.lease.model_copy(update={"notice_s": 10.0})
    prices = {"gpu.h200.8x": 0.01, "gpu.static": 0.01}
    cloud.settings = cloud.settings.model_copy(update={"lease": lease, "node_seconds_price": prices})
    for module in ("hold", "lease"):
        monkeypatch.setattr(f"mlops_sdk.cli.{module}.Client", cloud.client)
    return cloud


def mlops(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["lease", *arguments])


def start(cloud: FakeCloud, name: str = "nightly") -> Run:
    return cloud.client(keeper=ByHand()).start_run(name=name)


def request(cloud: FakeCloud, provider: str = "ironic", *, lasts_s: float = 3600, **changes) -> LeaseRequest:
    kind = {"ironic": "gpu.h200.8x", "static": "gpu.static"}[provider]
    deadline = cloud.clock.now() + timedelta(seconds=lasts_s)
    return LeaseRequest(**{"nodes": 2, "resource_class": kind, "deadline": deadline, "provider": provider} | changes)


def held(cloud: FakeCloud, provider: str = "ironic") -> int:
    return len([machine for machine in cloud.services().provider(provider).pool() if machine.held_by])


def state(cloud: FakeCloud, generation: int = 1) -> str:
    return start(cloud).history().generations[generation].state.value


def lines(cloud: FakeCloud, run: Run) -> dict[Line, float]:
    record = one_record(cloud.services(), run.key, cloud.clock.now())
    return by_line(portions(record.spending, prices_of(cloud.settings)))


def fail(cloud: FakeCloud, wanted: LeaseRequest) -> Run:
    run = start(cloud)

    def work() -> None:
        with run:
            run.lease(wanted)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        work()
    assert [note for note in caught.value.__notes__ if f"mlops lease login {run.key}" in note]
    return run


def test_after_a_failure_the_machines_stay_without_a_process_and_end_by_themselves(cloud, provider):
    run = fail(cloud, request(cloud, provider, hold_on_failure_s=300))
    assert state(cloud) == "held_for_debug"
    assert not cloud.credentials
    for _ in range(14):
        cloud.clock.sleep(20)
        assert not cloud.reaper().reap_once().due
    assert held(cloud, provider) == 2
    cloud.clock.sleep(22)
    cloud.reaper().reap_once()
    assert held(cloud, provider) == 0
    assert state(cloud) == "released"
    pieces = run.history().generations[1].pieces.values()
    assert {piece.evidence.reason.value for piece in pieces} == {"work_failed"}
    assert run.prove().complete
    costs = lines(cloud, run)
    assert costs[Line.DEBUG] == pytest.approx(2 * 302 * 0.01, rel=0.02)
    assert costs[Line.IDLE] < 1.0  # deploying and cleaning


def test_never_beyond_the_deadline(cloud):
    run = fail(cloud, request(cloud, lasts_s=60, hold_on_failure_s=300))
    generation = run.history().generations[1]
    assert generation.end == generation.request.deadline
    cloud.clock.sleep(62)
    cloud.reaper().reap_once()
    assert held(cloud) == 0


def test_what_is_held_is_shown_logged_in_to_given_more_time_and_ended_earlier(cloud, monkeypatch):
    run = fail(cloud, request(cloud, hold_on_failure_s=300))
    rows = json.loads(mlops("list", "--json").output)
    notes = {row["machine"]: row["note"] for row in rows if row["held_by"]}
    assert set(notes) == {"gpu-01", "gpu-02"}
    assert all(
        "failed, stays until 00:05:0" in note and f"mlops lease login {run.key}" in note for note in notes.values()
    )

    seen = []

    def ssh(argv, *, check):
        del check
        seen.append((argv, Path(argv[2]).read_text()))
        return subprocess.CompletedProcess(argv, 7)

    monkeypatch.setattr("mlops_sdk.cli.hold.subprocess.run", ssh)
    assert mlops("login", run.key, "--machine", "gpu-02", "--", "nvidia-smi").exit_code == 7
    ((argv, config),) = seen
    assert argv[3:] == ["gpu-02", "nvidia-smi"]
    assert "HostName 10.0.0.2" in config
    assert mlops("login", run.key, "--machine", "gpu-09").exit_code == 2
    assert state(cloud) == "held_for_debug"

    assert mlops("extend", run.key, "--hours", "0.1").exit_code == 0
    cloud.clock.sleep(400)
    assert not cloud.reaper().reap_once().due
    assert mlops("release", run.key).exit_code == 0
    assert held(cloud) == 0
    assert state(cloud) == "released"


def test_a_command_that_fails_leaves_its_machines(cloud):
    wanted = ["--class", "gpu.h200.8x", "--name", "nightly", "--hold-on-failure", "300"]
    done = mlops("acquire", *wanted, "--", "false")
    assert done.exit_code == 1
    assert "mlops lease login" in done.output
    assert state(cloud) == "held_for_debug"
    assert mlops("acquire", *wanted, "--", "true").exit_code != 0  # they are for a person now
    assert mlops("release", start(cloud).key).exit_code == 0


def test_the_next_command_gets_the_machines_that_were_kept_warm(cloud):
    wanted = ["--class", "gpu.h200.8x", "--name", "nightly"]
    assert mlops("acquire", *wanted, "--keep-warm", "300", "--", "true").exit_code == 0
    assert state(cloud) == "warm"
    deploys = cloud.faults.calls.count("deploy")
    assert mlops("acquire", *wanted, "--", "true").exit_code == 0
    assert cloud.faults.calls.count("deploy") == deploys
    assert held(cloud) == 0


def test_without_a_failure_nothing_stays(cloud):
    with start(cloud) as run:
        run.lease(request(cloud, hold_on_failure_s=300))
    assert held(cloud) == 0


def test_a_preempted_run_is_not_held(cloud):
    low = start(cloud)

    def work() -> None:
        with low:
            low.lease(request(cloud, nodes=4, priority=Priority.BATCH, preemptible=True, hold_on_failure_s=300))
            waiting = start(cloud, "urgent").leasing(request(cloud, nodes=1, wait_s=600, priority=Priority.URGENT))
            next(waiting)
            low._heartbeat._again()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert held(cloud) == 0


def test_machines_are_kept_warm_and_got_again_without_a_deployment(cloud, provider):
    with start(cloud) as run:
        first = run.lease(request(cloud, provider)).nodes
        run.park(300)
    assert state(cloud) == "warm"
    assert not cloud.credentials
    deployed = [entry for entry in run.journal.entries() if entry.action == "machine.deploy"]
    for _ in range(10):
        cloud.clock.sleep(20)
        assert not cloud.reaper().reap_once().due
    with start(cloud) as again:
        wanted = request(cloud, provider)
        lease = again.lease(wanted)
        assert lease.nodes == first
        assert lease.deadline == wanted.deadline  # counted anew
        assert again.generation == 1
        assert state(cloud) == "active"
        cloud.clock.sleep(10)
        again._heartbeat._again()
        again.raise_if_lost()
    assert [entry for entry in run.journal.entries() if entry.action == "machine.deploy"] == deployed
    assert held(cloud, provider) == 0
    assert again.prove().complete
    assert lines(cloud, again)[Line.WARM] == pytest.approx(2 * 200 * 0.01, rel=0.05)


def test_what_nobody_wants_again_is_returned_when_its_time_is_over(cloud, provider):
    with start(cloud) as run:
        run.lease(request(cloud, provider))
        run.park(100)
    cloud.clock.sleep(102)
    cloud.reaper().reap_once()
    assert held(cloud, provider) == 0
    pieces = run.history().generations[1].pieces.values()
    assert {piece.evidence.reason.value for piece in pieces} == {"idle"}


def test_who_wants_something_else_gets_the_next_generation(cloud):
    with start(cloud) as run:
        run.lease(request(cloud))
        run.park(300)
    again = start(cloud)
    with pytest.raises(LeaseLost, match="asked for as"):
        again.lease(request(cloud, nodes=1))
    assert again.history().generation_to_try(1, wanted=request(cloud, nodes=1)) == 2
    assert again.history().generation_to_try(1, wanted=request(cloud)) == 1
    again.next_generation()
    assert len(again.lease(request(cloud, nodes=1)).nodes) == 1
    again.release()
    assert held(cloud) == 0


def test_a_process_that_still_beats_does_not_end_what_another_one_keeps(cloud):
    run = start(cloud)
    run.lease(request(cloud))
    start(cloud).park(100)
    for _ in range(4):
        cloud.clock.sleep(20)
        run._heartbeat._again()
        assert not cloud.reaper().reap_once().due
    with pytest.raises(LeaseLost, match="not renewed"):
        run.raise_if_lost()
    assert held(cloud) == 2
    run.release()
    assert held(cloud) == 0


def test_what_the_reaper_returned_leaves_no_orders(cloud):
    with start(cloud) as run:
        run.lease(request(cloud))
        run.park(100)
    assert [key for key in cloud.s3.objects if key.startswith("orders/")]
    cloud.clock.sleep(102)
    cloud.reaper().reap_once()
    assert not [key for key in cloud.s3.objects if key.startswith("orders/")]


def test_what_is_kept_for_one_reason_is_not_kept_for_another(cloud):
    run = start(cloud)
    run.lease(request(cloud))
    start(cloud).park(100)
    with pytest.raises(LeaseLost, match="kept already"):
        start(cloud).hold(100)
    assert state(cloud) == "warm"
    run.release()
    run = fail(cloud, request(cloud, hold_on_failure_s=300))
    with pytest.raises(LeaseLost, match="kept already"):
        start(cloud).park(100)
    assert state(cloud, 2) == "held_for_debug"
    run.release()
    assert held(cloud) == 0


def test_one_process_parks_and_leases_again(cloud):
    with start(cloud) as run:
        run.lease(request(cloud))
        run.park(300)
        assert run.held is None
        run.lease(request(cloud))
    assert held(cloud) == 0


def park(cloud: FakeCloud) -> None:
    run = start(cloud)
    run.lease()
    run.park(100)


def parking_calls() -> int:
    cloud = FakeCloud()
    first = start(cloud)
    first.lease(request(cloud))
    cloud.faults.clear()
    first.park(100)
    return len(cloud.faults.calls)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["park", "hold"])
@pytest.mark.parametrize("k", range(1, parking_calls() + 1))
def test_a_crash_while_leaving_keeps_nothing_longer_than_was_said(k, what, when):
    cloud = FakeCloud()
    run = start(cloud)
    run.lease(request(cloud))
    cloud.faults.clear()
    cloud.faults.fail_at("*", k, error=Crash(), when=when)
    try:
        getattr(run, what)(100)
    except Crash:
        run.close()
    cloud.faults.clear()
    if k % 2:  # it goes on elsewhere
        again = start(cloud)
        if state(cloud) != "held_for_debug":
            assert len(again.lease(request(cloud)).nodes) == 2
        again.release()
    else:
        cloud.clock.sleep(102)
        cloud.reaper().reap_once()
    assert held(cloud) == 0
    cloud.clock.sleep(30)
    cloud.reaper().reap_once()
    assert not cloud.credentials
    assert start(cloud).prove().complete


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("k", range(1, parking_calls() + 1))
def test_what_cannot_be_held_is_given_back(k, when):
    cloud = FakeCloud()
    run = start(cloud)

    def work() -> None:
        with run:
            run.lease(request(cloud, hold_on_failure_s=100))
            cloud.faults.clear()
            cloud.faults.fail_at("*", k, error=ServiceUnavailable("no answer"), when=when)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    cloud.faults.clear()
    assert state(cloud) in {"held_for_debug", "released"}
    assert bool(held(cloud)) == (state(cloud) == "held_for_debug")
    cloud.clock.sleep(130)
    cloud.reaper().reap_once()
    assert held(cloud) == 0
    assert not cloud.credentials
    assert start(cloud).prove().complete
