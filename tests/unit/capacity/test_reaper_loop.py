"""The reaper as a process that runs for ever."""

import json
import logging
import threading
from datetime import timedelta
from pathlib import Path

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.json_lines import JsonLines
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.settings import fake_settings

DOWN = ServiceUnavailable("no answer")


class StopAfter(threading.Event):
    """Lets the fake clock pass instead of waiting, and stops after some time of it."""

    def __init__(self, cloud: FakeCloud, seconds: float) -> None:
        super().__init__()
        self._cloud = cloud
        self._end = cloud.clock.monotonic() + seconds

    def wait(self, timeout: float | None = None) -> bool:
        self._cloud.clock.sleep(timeout or 0.0)
        if self._cloud.clock.monotonic() >= self._end:
            self.set()
        return self.is_set()


def dead_run(cloud: FakeCloud, name: str) -> None:
    deadline = cloud.clock.now() + timedelta(hours=1)
    with cloud.client().start_run(name=name) as run:
        run.lease(LeaseRequest(nodes=2, resource_class="gpu.h200.8x", deadline=deadline))
        run.keep()


def test_what_dead_runs_hold_comes_back_within_the_stated_time():
    cloud = FakeCloud()
    dead_run(cloud, "one")
    dead_run(cloud, "two")
    lease = cloud.settings.lease
    cleaning = 4
    bound = lease.renew_for_s + lease.clock_skew_s + lease.reaper_period_s + cleaning + 4 * lease.poll_s
    cloud.reaper().run(StopAfter(cloud, bound))
    assert cloud.held == {}
    assert cloud.credentials == {}
    assert {m.shown.provision_state for m in cloud.machines.values()} == {"available"}


def test_it_survives_outages_of_ironic_keystone_and_s3_and_then_does_its_work():
    cloud = FakeCloud()
    dead_run(cloud, "one")
    down = ServiceUnavailable("no answer")
    for call in ("list_allocations", "list_credentials", "put_object", "get_object"):
        done = cloud.faults.calls.count(call)
        for k in range(done + 1, done + 20):
            cloud.faults.fail_at(call, k, error=down)
    cloud.reaper().run(StopAfter(cloud, 3600))
    assert cloud.held == {}
    assert cloud.credentials == {}


def test_damaged_objects_of_a_run_keep_it_from_nothing():
    cloud = FakeCloud()
    for name in ("one", "two"):
        dead_run(cloud, name)
    for key in [key for key in cloud.s3.objects if key.endswith("heartbeat.json") or "/journal/" in key]:
        cloud.s3.objects[key] = b"damaged"
    cloud.reaper().run(StopAfter(cloud, 3600))
    assert cloud.held == {}
    assert cloud.credentials == {}


def test_a_run_that_lives_is_left_alone():
    cloud = FakeCloud()
    deadline = cloud.clock.now() + timedelta(hours=1)
    with cloud.client().start_run() as run:
        lease = run.lease(LeaseRequest(nodes=2, resource_class="gpu.h200.8x", deadline=deadline))
        for _ in range(20):
            cloud.reaper().run(StopAfter(cloud, 5))
            run._heartbeat.beat()
        run.raise_if_lost()
        assert set(cloud.held) == {node.name for node in lease.nodes}


def test_its_log_is_one_json_object_a_line():
    record = logging.LogRecord("mlops.reaper", logging.INFO, "", 0, "returned", None, None)
    record.data = {"resource": "ml-x", "reason": "not\nrenewed"}
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["resource"] == "ml-x"


def test_its_figures_say_what_it_found_gave_back_and_could_not_do(tmp_path):
    file = tmp_path / "reaper.prom"
    settings = fake_settings()
    lease = settings.lease.model_copy(update={"metrics_file": str(file)})
    cloud = FakeCloud(settings=settings.model_copy(update={"lease": lease}))
    reaper = cloud.reaper()
    dead_run(cloud, "one")
    reaper.run(StopAfter(cloud, 1))
    began = figures(file)
    assert (began["mlops_reaper_held"], began["mlops_reaper_due"], began["mlops_reaper_errors"]) == (2, 0, 0)
    cloud.clock.sleep(lease.renew_for_s + lease.clock_skew_s)
    reaper.run(StopAfter(cloud, 0.1))
    assert figures(file)['mlops_reaper_due{kind="allocation"}'] == 2
    reaper.run(StopAfter(cloud, 600))
    done = figures(file)
    assert done['mlops_reaper_returned_total{outcome="cleaned"}'] == 2
    assert (done["mlops_reaper_held"], done["mlops_reaper_due"]) == (0, 0)
    assert done["mlops_reaper_passes_total"] > began["mlops_reaper_passes_total"]
    good = done["mlops_reaper_last_success_timestamp_seconds"]
    assert good == done["mlops_reaper_last_pass_timestamp_seconds"]
    cloud.faults.fail_at("list_allocations", cloud.faults.calls.count("list_allocations") + 1, error=DOWN)
    reaper.run(StopAfter(cloud, 0.1))
    failed = figures(file)
    assert (failed["mlops_reaper_errors"], failed["mlops_reaper_errors_total"]) == (1, 1)
    assert failed["mlops_reaper_last_success_timestamp_seconds"] == good
    assert failed["mlops_reaper_last_pass_timestamp_seconds"] > good


def test_a_place_for_figures_that_cannot_be_written_does_not_end_it(tmp_path):
    settings = fake_settings()
    lease = settings.lease.model_copy(update={"metrics_file": str(tmp_path / "not" / "there.prom")})
    cloud = FakeCloud(settings=settings.model_copy(update={"lease": lease}))
    dead_run(cloud, "one")
    cloud.reaper().run(StopAfter(cloud, 3600))
    assert cloud.held == {}


def figures(file: Path) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in file.read_text().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}
