"""Runs that wait for one cloud in one event loop: they share its looks, and decide by looks of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from mlops_sdk.capacity.lease import EndReason, LeaseRequest
from mlops_sdk.capacity.providers.static import StaticHosts
from mlops_sdk.errors import NodeFailed, ServiceUnavailable
from mlops_sdk.pollers import Pollers
from mlops_sdk.run import Lease, Run
from mlops_sdk.steps import adrive
from mlops_sdk.testing import cloud as cloud_module
from mlops_sdk.testing.cloud import FakeBaremetal, FakeCloud
from mlops_sdk.testing.settings import fake_settings
from support_waiting import FastClock

SLOW_S = 50.0
AWAY_S = 60.0  # half of the renewal time


@pytest.fixture
def cloud() -> FakeCloud:
    settings = fake_settings()
    lease = settings.lease.model_copy(update={"deploy_timeout_s": 5000, "renew_for_s": 2 * AWAY_S})
    cloud = FakeCloud(machines=12, settings=settings.model_copy(update={"lease": lease}))
    cloud.clock = FastClock()
    return cloud


@pytest.fixture
def slow(cloud, monkeypatch) -> FakeCloud:
    """Machines take long to deploy."""

    def deploy(self, node_id, config_drive):
        with self._call("deploy"):
            cloud.change(cloud.machines[node_id], to="wait call-back", after_s=SLOW_S, then="active")

    monkeypatch.setattr(FakeBaremetal, "deploy", deploy)
    return cloud


async def lease(cloud: FakeCloud, pollers: Pollers, run: Run, nodes: int = 1) -> Lease:
    deadline = cloud.clock.now() + timedelta(hours=1)
    request = LeaseRequest(nodes=nodes, resource_class="gpu.h200.8x", deadline=deadline)
    return await adrive(run.leasing(request), cloud.clock, pollers.pause(run._services))


def looks(cloud: FakeCloud) -> Counter[str]:
    return Counter(call for call in cloud.faults.calls if call.startswith(("get_", "list_")))


async def test_runs_that_wait_together_ask_ironic_as_often_as_one_of_them(slow):
    pollers = Pollers()
    runs = [slow.client().start_run(f"r{number}") for number in range(8)]
    leases = await asyncio.gather(*(lease(slow, pollers, run) for run in runs))
    assert len({one.nodes[0].id for one in leases}) == len(slow.held) == 8
    polls = SLOW_S / slow.settings.lease.poll_s
    found = looks(slow)
    assert found["get_machine"] < 8 * 10  # alone it would be 8 * polls
    assert found["get_machine"] + found["get_allocation"] < 8 * polls / 4
    await asyncio.gather(*(adrive(run.releasing(), slow.clock, pollers.pause(slow.services())) for run in runs))
    assert not slow.held
    assert all(run.prove().complete for run in runs)


async def test_they_share_one_poller_that_ends_with_them(slow):
    pollers = Pollers()
    first, second = slow.client().start_run("a"), slow.client().start_run("b")
    waiting = [asyncio.ensure_future(lease(slow, pollers, run)) for run in (first, second)]
    poller = pollers.of(first._services, "ironic")
    assert poller is not None
    assert poller is pollers.of(second._services, "ironic")
    while poller.waiting < 2:  # noqa: ASYNC110 - the steps run in other threads
        await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not poller.works
    for run in (first, second):
        run.release(EndReason.CANCELLED)
    assert not slow.held


async def test_a_machine_that_fails_is_noticed_by_its_own_run_alone(slow):
    pollers = Pollers()
    runs = [slow.client().start_run(f"r{number}") for number in range(3)]
    tasks = [asyncio.ensure_future(lease(slow, pollers, run)) for run in runs]
    while len(coming := [m for m in slow.machines.values() if m.shown.provision_state == "wait call-back"]) < 3:  # noqa: ASYNC110 - from other threads
        await asyncio.sleep(0.001)
    broken = coming[0]
    slow.change(broken, to="deploying", after_s=5, then="deploy failed")
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results if isinstance(result, Exception)] == [NodeFailed]
    assert sum(isinstance(result, Lease) for result in results) == 2
    assert len(slow.held) == 2
    for run in runs:
        run.close()


async def test_a_cloud_that_stays_away_ends_the_wait_with_its_own_error_and_nothing_is_kept(slow, monkeypatch):
    away = []

    def list_machines(_self, *, brief=False):
        if not brief:
            return iter([machine.shown for machine in slow.machines.values()])
        away.append(slow.clock.monotonic())
        raise ServiceUnavailable("Ironic does not answer")

    pollers = Pollers()
    run = slow.client().start_run("a")
    monkeypatch.setattr(FakeBaremetal, "list_machines", list_machines)
    with pytest.raises(ServiceUnavailable, match="Ironic does not answer"):
        await lease(slow, pollers, run)
    assert away[-1] - away[0] >= AWAY_S
    assert not slow.held


async def test_a_provider_that_cannot_show_everything_is_asked_by_each(monkeypatch):
    class Unlisted(StaticHosts):
        sights = None

    monkeypatch.setattr(cloud_module, "StaticHosts", Unlisted)
    hosts = FakeCloud(hosts=2)
    pollers = Pollers()
    assert pollers.of(hosts.services(), "static") is None
    run = hosts.client().start_run("a")
    deadline = hosts.clock.now() + timedelta(hours=1)
    request = LeaseRequest(nodes=2, resource_class="gpu.static", provider="static", deadline=deadline)
    done = await adrive(run.leasing(request), hosts.clock, pollers.pause(hosts.services()))
    assert len(done.nodes) == 2
    run.close()
