"""What triggers do while machines are on their way: as little as one of ten thousand may."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from mlops_hooks.deployment import DeploymentHook
from mlops_operators.capacity import ProvisionOperator, ReleaseOperator, WaitForMachinesOperator
from mlops_operators.providers import IronicProvisionOperator, NovaProvisionOperator, StaticProvisionOperator
from mlops_operators.triggers.keeping import caretaker
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.errors import LeaseLost, NodeFailed, ServiceUnavailable
from mlops_sdk.testing.cloud import FakeBaremetal, FakeCloud
from mlops_sdk.testing.settings import fake_settings
from support_airflow import Task, event_of, stored
from support_waiting import FastClock

NAME = "retrain_lm/r1"
SLOW_S = 40.0
RENEW_FOR_S = 30.0


@pytest.fixture
def cloud(monkeypatch) -> FakeCloud:
    """A deployment whose machines take long to deploy."""
    settings = fake_settings()
    lease = settings.lease.model_copy(update={"deploy_timeout_s": 5000, "renew_for_s": RENEW_FOR_S, "poll_s": 1.0})
    cloud = FakeCloud(settings=settings.model_copy(update={"lease": lease}))
    cloud.clock = FastClock()

    async def aclient(_hook, *, keeper=None, earlier=None):
        return earlier or cloud.client(keeper=keeper)

    def deploy(self, node_id, config_drive):
        with self._call("deploy"):
            cloud.change(cloud.machines[node_id], to="wait call-back", after_s=SLOW_S, then="active")

    monkeypatch.setattr(DeploymentHook, "client", lambda _hook: cloud.client())
    monkeypatch.setattr(DeploymentHook, "aclient", aclient)
    monkeypatch.setattr(FakeBaremetal, "deploy", deploy)
    return cloud


def provision() -> Task:
    return Task(
        ProvisionOperator(task_id="provision", run_name=NAME, nodes=2, resource_class="gpu.h200.8x", wait_s=500)
    )


async def until_some_wait(count: int = 1) -> None:
    while sum(poller.waiting for poller in caretaker().pollers.all) < count:  # noqa: ASYNC110 - steps run in threads
        await asyncio.sleep(0.001)


def calls(cloud: FakeCloud) -> Counter[str]:
    return Counter(cloud.faults.calls)


def test_it_takes_no_credential_or_journal_until_the_machines_are_there_and_their_lease_is_renewed(cloud):
    task = provision()
    deferred = task.defer()
    before = calls(cloud)
    renewed = {allocation.name: allocation.marker.renewed_until for allocation in cloud.allocations.values()}

    async def wait() -> dict:
        event = asyncio.ensure_future(event_of(stored(deferred)))
        await until_some_wait()
        while calls(cloud)["set_times"] == before["set_times"]:  # noqa: ASYNC110 - made in other threads
            await asyncio.sleep(0.001)
        since = calls(cloud) - before
        assert not {"create_credential", "find_credential", "get_allocation", "get_machine"} & since.keys()
        assert since["put_object"] <= 1  # the heartbeat
        assert since["get_object"] == 0
        return await event

    event = asyncio.run(wait())
    assert task.resume(deferred, event)["nodes"] == ["gpu-01", "gpu-02"]
    assert all(cloud.allocations[name].marker.renewed_until > moment for name, moment in renewed.items())


def test_a_triggerer_that_stops_meanwhile_leaves_everything_and_renews_nothing(cloud):
    deferred = provision().defer()
    held = dict(cloud.held)

    async def stop() -> None:
        event = asyncio.ensure_future(event_of(stored(deferred)))
        await until_some_wait()
        while not event.done():
            event.cancel("shutdown")
            await asyncio.sleep(0)
        (poller,) = caretaker().pollers.all
        assert not poller.works

    asyncio.run(stop())
    assert cloud.held == held
    since = len(cloud.faults.calls)
    cloud.clock.sleep(RENEW_FOR_S + cloud.settings.lease.clock_skew_s + 1)
    assert "set_times" not in cloud.faults.calls[since:]
    cloud.reaper().reap_once()
    assert not cloud.held


def test_killed_by_a_person_meanwhile_it_gives_back_what_the_task_asked_for(cloud):
    deferred = provision().defer()
    assert cloud.held

    async def kill() -> None:
        trigger = stored(deferred)
        event = asyncio.ensure_future(event_of(trigger))
        await until_some_wait()
        while not event.done():
            event.cancel("user-action")
            await asyncio.sleep(0)
        await trigger.on_kill()

    asyncio.run(kill())
    assert not cloud.held
    assert not cloud.credentials


def test_a_machine_that_fails_meanwhile_is_given_back_and_the_failure_says_which(cloud):
    task = provision()
    deferred = task.defer()
    broken = next(machine for machine in cloud.machines.values() if machine.shown.allocation_id)
    cloud.change(broken, to="wait call-back", after_s=10, then="deploy failed")
    with pytest.raises(NodeFailed, match=broken.shown.name):
        task.finish(deferred)
    assert not cloud.held


def test_a_cloud_that_is_away_for_long_fails_the_try_and_the_next_one_adopts(cloud, monkeypatch):
    task = provision()
    deferred = task.defer()
    held = dict(cloud.held)
    lists = FakeBaremetal.list_machines

    def away(self, *, brief=False):
        raise ServiceUnavailable("Ironic does not answer")

    monkeypatch.setattr(FakeBaremetal, "list_machines", away)
    event = asyncio.run(event_of(stored(deferred)))
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        task.resume(deferred, event)
    monkeypatch.setattr(FakeBaremetal, "list_machines", lists)
    assert task.run()["generation"] == 1
    assert cloud.held == held


def test_ten_triggers_of_one_deployment_ask_airflow_for_their_connections_once(cloud, monkeypatch):
    asked = []

    async def aclient(_hook, *, keeper=None, earlier=None):
        asked.append(1)
        await asyncio.sleep(0.01)
        return cloud.client(keeper=keeper)

    deferred = provision().defer()
    monkeypatch.setattr(DeploymentHook, "aclient", aclient)

    async def all_of_them() -> None:
        clients = await asyncio.gather(*(stored(deferred).client() for _ in range(10)))
        assert len(set(map(id, clients))) == 1

    asyncio.run(all_of_them())
    assert asked == [1]


def wait_for_machines(**changes) -> Task:
    return Task(WaitForMachinesOperator(task_id="wait", run_name=NAME, **changes))


def lease(cloud: FakeCloud) -> None:
    """Somebody leases, in another process, and is not there any more when its machines come up."""
    deadline = cloud.clock.now() + timedelta(hours=1)
    run = cloud.client().start_run(NAME)
    steps = run.beginning_in(1, LeaseRequest(nodes=2, resource_class="gpu.h200.8x", deadline=deadline, wait_s=500))
    for pause in steps:
        cloud.clock.sleep(pause)
    run.close()


def test_another_task_can_wait_for_the_same_machines(cloud):
    lease(cloud)
    ready = wait_for_machines().run()
    assert ready["nodes"] == ["gpu-01", "gpu-02"]
    assert ready["generation"] == 1


def test_another_task_can_wait_for_hosts_of_a_pool(cloud):
    pool = FakeCloud(hosts=2)
    cloud.settings, cloud.hosts = pool.settings, pool.hosts
    run = cloud.client().start_run(NAME)
    deadline = cloud.clock.now() + timedelta(hours=1)
    run.lease(LeaseRequest(nodes=1, resource_class="gpu.static", deadline=deadline, provider="static"))
    assert wait_for_machines().run()["nodes"] == [node.name for node in run.held.nodes]
    run.release()


def test_who_waits_for_machines_that_fail_is_told_which_and_gives_nothing_back(cloud):
    lease(cloud)
    task = wait_for_machines()
    deferred = task.defer()
    broken = next(machine for machine in cloud.machines.values() if machine.shown.allocation_id)
    cloud.change(broken, to="wait call-back", after_s=10, then="deploy failed")
    with pytest.raises(NodeFailed, match="did not become ready") as caught:
        task.finish(deferred)
    assert "deploy failed" in caught.value.seen
    assert len(cloud.held) == 2


def test_who_waits_too_long_is_told_what_was_seen_last(cloud):
    lease(cloud)
    with pytest.raises(NodeFailed) as caught:
        wait_for_machines(wait_s="5").run()
    assert "wait call-back" in caught.value.seen


def test_there_is_nothing_to_wait_for_in_a_run_that_leases_nothing(cloud):
    with pytest.raises(LeaseLost, match="leases no machines"):
        wait_for_machines().run()
    lease(cloud)
    Task(ReleaseOperator(task_id="release", run_name=NAME)).run()
    with pytest.raises(LeaseLost, match="leases no machines"):
        wait_for_machines().run()


@pytest.mark.parametrize(
    ("operator", "word", "provider"),
    [
        (IronicProvisionOperator, "resource_class", "ironic"),
        (NovaProvisionOperator, "flavor", "nova"),
        (StaticProvisionOperator, "host_class", "static"),
    ],
)
def test_each_provider_has_an_operator_in_its_own_words(operator, word, provider):
    made = operator(
        task_id="provision", run_name=NAME, nodes="{{ params.nodes }}", hours=2, **{word: "{{ params.kind }}"}
    )
    made.render_template_fields({"params": {"nodes": 2, "kind": "gpu.small"}})
    assert (made.nodes, made.resource_class, made.provider, made.hours) == ("2", "gpu.small", provider, 2)


def test_hosts_of_the_pool_are_leased_by_their_own_operator(cloud):
    pool = FakeCloud(hosts=2)
    cloud.settings, cloud.hosts = pool.settings, pool.hosts
    operator = StaticProvisionOperator(task_id="provision", run_name=NAME, nodes=2, host_class="gpu.static", wait_s=500)
    assert sorted(Task(operator).run()["nodes"]) == ["pool-01", "pool-02"]
