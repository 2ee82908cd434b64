"""The reaper as a process that runs for ever."""

import json
import logging
import threading
from datetime import timedelta

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.json_lines import JsonLines
from mlops_sdk.testing.cloud import FakeCloud


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
