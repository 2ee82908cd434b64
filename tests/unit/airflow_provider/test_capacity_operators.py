"""Provision and release as Airflow drives them: cleared, retried, killed, restarted; one lease, no orphan."""

from __future__ import annotations

import asyncio
import json

import pytest
from airflow.sdk.exceptions import AirflowFailException

from mlops_hooks.deployment import DeploymentHook
from mlops_operators.capacity import ProvisionOperator, ReleaseOperator
from mlops_operators.failures import airflow_failures, error_from_json, error_to_json
from mlops_operators.triggers.capacity import ProvisionTrigger
from mlops_sdk import errors
from mlops_sdk.capacity.lease import Priority
from mlops_sdk.config import BudgetSettings
from mlops_sdk.errors import AccessDenied, MlopsError, NoCapacity, NodeFailed, ServiceUnavailable
from mlops_sdk.testing.cloud import FakeBaremetal, FakeCloud
from support_airflow import Task, event_of, stored

NAME = "retrain_lm/r1"


@pytest.fixture
def cloud(monkeypatch) -> FakeCloud:
    """The deployment that the connections lead to."""
    cloud = FakeCloud()

    async def aclient(_hook, *, keeper=None, earlier=None):
        return cloud.client(keeper=keeper)

    monkeypatch.setattr(DeploymentHook, "client", lambda _hook: cloud.client())
    monkeypatch.setattr(DeploymentHook, "aclient", aclient)
    return cloud


def provision(**changes) -> Task:
    values = {"nodes": 2, "resource_class": "gpu.h200.8x", "wait_s": 5, **changes}
    return Task(ProvisionOperator(task_id="provision", run_name=NAME, **values))


def release(**changes) -> Task:
    return Task(ReleaseOperator(task_id="release", run_name=NAME, **changes))


def nothing_is_held(cloud: FakeCloud) -> bool:
    return not cloud.held and not cloud.credentials and cloud.client().start_run(NAME).prove().complete


def machines_fail(cloud: FakeCloud) -> None:
    """An operator tears down what is leased."""
    for machine in cloud.machines.values():
        if machine.shown.allocation_id:
            FakeBaremetal(cloud).tear_down(machine.shown.id)
    cloud.clock.sleep(10)


def test_machines_are_leased_and_given_back(cloud):
    task = provision()
    result = task.run()
    assert result["nodes"] == ["gpu-01", "gpu-02"]
    assert result["generation"] == 1
    assert task.ti.pushed["_link_NodeLink"].startswith("http://ironic.invalid/v1/nodes/")
    assert sorted(cloud.held) == result["nodes"]
    back = release().run()
    assert back["machines"] == {"gpu-01": "cleaned", "gpu-02": "cleaned"}
    assert nothing_is_held(cloud)


def test_a_later_task_of_the_dag_run_gets_the_machines_that_were_kept_warm(cloud):
    first = provision().run()
    kept = release(keep_warm_s="300").run()
    assert kept["machines"] == {"gpu-01": "warm", "gpu-02": "warm"}
    assert kept["until"].startswith("2026-01-01T00:05:")
    assert release(keep_warm_s=300).run()["machines"] == kept["machines"]
    cloud.clock.sleep(200)
    cloud.reaper().reap_once()
    deploys = cloud.faults.calls.count("deploy")
    second = provision().run()
    assert (second["nodes"], second["generation"]) == (first["nodes"], 1)
    assert second["deadline"] > first["deadline"]
    assert cloud.faults.calls.count("deploy") == deploys
    assert set(release().run()["machines"].values()) == {"cleaned"}
    assert nothing_is_held(cloud)


def test_a_later_task_that_wants_something_else_gets_it_after_what_was_kept_warm_is_back(cloud):
    provision().run()
    release(keep_warm_s=300).run()
    other = provision(nodes=1).run()
    assert (len(other["nodes"]), other["generation"]) == (1, 2)
    assert len(cloud.held) == 1
    release().run()
    assert nothing_is_held(cloud)


def test_what_was_never_leased_is_not_kept_warm(cloud):
    assert release(keep_warm_s=300).run() == {"run": "", "machines": {}}
    cloud.client().start_run(NAME)
    assert release(keep_warm_s=300).run()["machines"] == {}


def test_the_generation_is_stored_before_anything_is_created(cloud):
    task = provision()
    cloud.faults.fail_at("create_credential", 1, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        task.defer()
    assert task.store.values == {"generation": 1}
    assert not cloud.allocations
    assert not cloud.credentials


def test_a_budget_without_room_fails_the_task_at_once_and_nothing_was_asked_for(cloud):
    budget = BudgetSettings(per_month=1.0, raised_by="ada@example.org")
    cloud.settings = cloud.settings.model_copy(update={"budget": budget})
    with pytest.raises(AirflowFailException, match=r"BudgetExceeded: .* let ada@example\.org raise the budget"):
        provision().run()
    assert not cloud.allocations
    assert nothing_is_held(cloud)


def test_machines_deploy_while_airflow_starts_the_trigger(cloud):
    deferred = provision().defer()
    assert len(cloud.held) == 2
    assert {machine.shown.provision_state for machine in cloud.machines.values() if machine.shown.allocation_id} == {
        "deploying"
    }
    cloud.clock.sleep(20)
    since = len(cloud.faults.calls)
    asyncio.run(event_of(stored(deferred)))
    assert not {"create_allocation", "deploy"} & set(cloud.faults.calls[since:])


def test_a_task_killed_before_there_is_a_trigger_leaves_what_its_next_try_adopts(cloud):
    task = provision()
    task.defer()  # and what it deferred to is lost with it
    held = dict(cloud.held)
    assert task.run()["generation"] == 1
    assert cloud.held == held


def test_a_task_killed_before_there_is_a_trigger_is_not_renewed_and_the_reaper_returns_it(cloud):
    provision().defer()
    cloud.clock.sleep(cloud.settings.lease.renew_for_s + cloud.settings.lease.clock_skew_s + 1)
    cloud.reaper().reap_once()
    assert nothing_is_held(cloud)


def test_a_trigger_that_starts_too_late_does_not_cost_the_task_a_try(cloud):
    task = provision()
    deferred = task.defer()
    cloud.clock.sleep(cloud.settings.lease.renew_for_s + cloud.settings.lease.clock_skew_s + 1)
    cloud.reaper().reap_once()
    assert task.finish(deferred)["generation"] == 2
    assert len(cloud.held) == 2


def test_a_request_keeps_its_class_on_the_way_to_the_cloud(cloud):
    provision(nodes=1, priority="urgent", preemptible="True").run()
    (allocation,) = cloud.allocations.values()
    assert (allocation.marker.priority, allocation.marker.preemptible) == (Priority.URGENT, True)
    with pytest.raises(ValueError, match=r"no priority 'soon'; there are 'batch', 'normal', 'urgent'"):
        provision(nodes=1, priority="soon").run()


def test_hosts_of_a_pool_are_leased_and_given_back_by_the_same_operators(cloud):
    pool = FakeCloud(hosts=2)
    cloud.settings, cloud.hosts = pool.settings, pool.hosts
    leased = provision(nodes=2, resource_class="gpu.static", provider="static").run()
    assert sorted(leased["nodes"]) == ["pool-01", "pool-02"]
    assert cloud.held == {}


def test_the_trigger_row_holds_names_only(cloud):
    deferred = provision().defer()
    path, arguments = deferred.trigger.serialize()
    assert path == "mlops_operators.triggers.capacity.ProvisionTrigger"
    arguments = json.loads(json.dumps(arguments))
    assert arguments.pop("asked_by").startswith("run-")
    assert arguments.pop("quote").startswith("2 x gpu.h200.8x: now")
    assert arguments == {
        "run_name": NAME,
        "openstack_conn_id": "mlops_openstack",
        "s3_conn_id": "mlops_s3",
        "mlflow_conn_id": "mlops_mlflow",
        "generation": 1,
        "nodes": 2,
        "resource_class": "gpu.h200.8x",
        "traits": [],
        "hours": 1.0,
        "wait_s": 5.0,
        "priority": "normal",
        "preemptible": False,
        "provider": "ironic",
        "until": "",
        "hold_on_failure_s": 0.0,
        "spares": 0,
    }
    assert stored(deferred).serialize() == deferred.trigger.serialize()
    assert cloud.settings.broker_key.get_secret_value() not in repr(deferred.trigger)


def test_cleared_after_success_it_adopts_the_same_machines(cloud):
    task = provision()
    first = task.run()
    assert "2 x gpu.h200.8x: now" in first["quote"]
    assert task.run() == {**first, "quote": ""}
    assert len(cloud.held) == 2


def test_cleared_when_its_machines_are_gone_it_opens_the_next_generation(cloud):
    task = provision()
    task.run()
    machines_fail(cloud)
    again = task.run()
    assert again["generation"] == task.store.values["generation"] == 2
    assert len(cloud.held) == 2
    release().run()
    assert nothing_is_held(cloud)


def test_cleared_to_ask_for_something_else_it_gives_the_first_back(cloud):
    task = provision(nodes=1)
    task.run()
    task.operator.nodes = 2
    assert task.run()["generation"] == 2
    assert len(cloud.held) == 2
    assert all("-g2-" in name for name in cloud.held.values())


def test_a_second_task_with_another_wish_does_not_take_the_machines_of_the_first(cloud):
    provision(nodes=1).run()
    with pytest.raises(AirflowFailException, match=r"for another task already.*run_name of its own"):
        provision(nodes=2).run()
    assert len(cloud.held) == 1


def test_a_machine_that_fails_gives_all_back_and_a_retry_gets_others(cloud):
    bad = next(iter(cloud.machines.values()))
    bad.fails.add("deploy")
    task = provision()
    with pytest.raises(NodeFailed) as caught:
        task.run()
    assert "gpu-01" in str(caught.value)
    assert nothing_is_held(cloud)
    bad.fails.clear()
    assert task.run()["generation"] == 2


def test_too_few_machines_may_be_tried_again_a_refused_login_may_not(cloud):
    with pytest.raises(NoCapacity, match="5 x gpu"):
        provision(nodes=5).run()
    cloud.faults.clear()
    for call in (1, 2):  # the task's, and the trigger's
        cloud.faults.fail_at("create_credential", call, error=AccessDenied("Keystone refused us", next_step="check it"))
    with pytest.raises(AirflowFailException, match=r"Keystone refused us.*check it"):
        provision().run()
    assert nothing_is_held(cloud)


@pytest.mark.parametrize("calls", [1, 9, 13, 24, 30, 36, 44])
def test_a_triggerer_that_stops_leaves_the_machines_and_the_next_one_goes_on(cloud, calls):
    task = provision()
    deferred = task.defer()
    asyncio.run(cancelled_after(cloud, stored(deferred), calls, message="shutdown"))
    held = dict(cloud.held)
    event = asyncio.run(event_of(stored(deferred)))
    assert task.resume(deferred, event)["generation"] == 1
    assert held.items() <= cloud.held.items()
    assert len(cloud.held) == 2


@pytest.mark.parametrize("calls", [1, 9, 13, 24, 30, 36, 44])
def test_killed_by_a_person_in_any_state_it_gives_back_what_it_got(cloud, calls):
    task = provision()
    asyncio.run(cancelled_after(cloud, stored(task.defer()), calls, message="user-action"))
    assert nothing_is_held(cloud)
    assert task.run()["generation"] in {1, 2}  # cleared: the same generation if nothing had been asked for yet
    assert len(cloud.held) == 2


def test_a_kill_leaves_alone_what_the_next_try_has_taken_over(cloud):
    task = provision()
    deferred = task.defer()

    async def kill_late() -> None:
        killed = stored(deferred)
        await event_of(killed)
        await event_of(stored(deferred))  # cleared: the next try's trigger is faster than the kill
        await killed.on_kill()

    asyncio.run(kill_late())
    assert len(cloud.held) == 2


def test_timed_out_or_dead_it_is_not_renewed_and_the_reaper_returns_it(cloud):
    task = provision()
    asyncio.run(cancelled_after(cloud, stored(task.defer()), 36, message="timeout"))
    assert cloud.held
    cloud.clock.sleep(cloud.settings.lease.renew_for_s + cloud.settings.lease.clock_skew_s + 1)
    cloud.reaper().reap_once()
    assert nothing_is_held(cloud)
    assert task.run()["generation"] == 2


def test_release_of_a_run_that_never_began_makes_none(cloud):
    assert release().run() == {"run": "", "machines": {}}
    assert not cloud.s3.objects


def test_release_is_idempotent_and_finds_what_the_reaper_returned(cloud):
    provision().run()
    cloud.clock.sleep(60)
    cloud.reaper().reap_once()
    first = release().run()
    assert first["machines"] == {"gpu-01": "cleaned", "gpu-02": "cleaned"}
    assert release().run() == first


def test_release_after_a_provision_that_stopped_half_way(cloud):
    asyncio.run(cancelled_after(cloud, stored(provision().defer()), 36, message="shutdown"))
    assert cloud.held
    release().run()
    assert nothing_is_held(cloud)


def test_a_machine_that_is_not_clean_fails_the_release_by_name(cloud):
    next(iter(cloud.machines.values())).fails.add("clean")
    provision().run()
    with pytest.raises(NodeFailed, match="not given everything back") as caught:
        release().run()
    assert "gpu-01" in caught.value.seen
    assert "disk stuck" in caught.value.seen


def test_a_service_that_is_away_while_the_task_decides_may_be_tried_again(cloud):
    cloud.faults.fail_at("put_object", 1, error=ServiceUnavailable("S3 is down"))
    with pytest.raises(ServiceUnavailable):
        provision().operator.execute(provision().context())


@pytest.mark.parametrize(
    "kind", [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, MlopsError)]
)
def test_every_error_of_the_library_crosses_from_trigger_to_task(kind):
    error = kind("what", seen="seen", next_step="next")
    again = error_from_json(json.loads(json.dumps(error_to_json(error))))
    assert type(again) is kind
    assert str(again) == str(error)
    with pytest.raises((kind, AirflowFailException), match="what; seen: seen; next: next"), airflow_failures():
        raise again


def test_a_refused_secret_names_the_connections_of_the_task(cloud):
    cloud.faults.fail_at("get_object", 1, error=AccessDenied("S3 refused it"))
    task = provision()
    task.operator.s3_conn_id = "bucket_of_paris"
    with pytest.raises(
        AirflowFailException, match=r"S3 refused it; it is in one of .* mlops_openstack, bucket_of_paris"
    ):
        task.operator.execute(task.context())


async def cancelled_after(cloud: FakeCloud, trigger: ProvisionTrigger, calls: int, *, message: str) -> None:
    """As the triggerer does it: cancel again and again until it ended; `on_kill` if a person was the reason."""
    cloud.faults.clear()
    task = asyncio.ensure_future(event_of(trigger))
    while len(cloud.faults.calls) < calls and not task.done():  # noqa: ASYNC110 - the calls come from other threads
        await asyncio.sleep(0)
    assert not task.done()
    while not task.done():
        task.cancel(message)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        task.result()
    if message == "user-action":
        await trigger.on_kill()
