"""A budget refuses a lease before anything is asked for, also when several ask at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.capacity.budget import Account, Month, admit, months, price_in
from mlops_sdk.capacity.cost import Interval
from mlops_sdk.capacity.cost_lines import Prices
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.reservations import HOLD_S, accounts_of_month, reserve
from mlops_sdk.cli.main import main
from mlops_sdk.config import BudgetSettings
from mlops_sdk.errors import BudgetExceeded, NodeFailed
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.settings import fake_settings

HOUR = 36.0  # one machine of the fake cloud for an hour


def a_cloud(**budget: object) -> FakeCloud:
    settings = fake_settings().model_copy(update={"budget": BudgetSettings.model_validate(budget)})
    return FakeCloud(settings=settings)


def request(cloud: FakeCloud, nodes: int = 1, hours: float = 1.0, kind: str = "gpu.h200.8x") -> LeaseRequest:
    return LeaseRequest(nodes=nodes, resource_class=kind, deadline=cloud.clock.now() + timedelta(hours=hours))


def test_a_lease_beyond_the_budget_is_refused_with_nothing_asked_for():
    cloud = a_cloud(per_month=100.0, raised_by="ada@example.org")
    run = cloud.client().start_run(name="big")
    with pytest.raises(BudgetExceeded, match=r"4 x gpu\.h200\.8x would cost 144\.00 EUR in 2026-01") as caught:
        run.lease(request(cloud, nodes=4))
    assert "0.00 EUR are spent" in caught.value.seen
    assert "ada@example.org" in caught.value.next_step
    assert not caught.value.retriable
    assert (cloud.allocations, cloud.credentials) == ({}, {})
    assert run.history().generations == {}
    run.lease(request(cloud, nodes=2))  # a smaller one fits


def test_what_lasts_counts_until_its_deadline_and_what_is_over_what_it_cost():
    cloud = a_cloud(owners={"tester": 100.0})
    client = cloud.client()
    first = client.start_run(name="first")
    first.lease(request(cloud, nodes=2))
    with pytest.raises(BudgetExceeded, match="has left") as caught:
        client.start_run(name="second").lease(request(cloud))
    assert "promised to leases that last" in caught.value.seen
    first.release()
    (account,) = accounts_of_month(client.services)
    assert account.promised == 0
    assert account.spent == pytest.approx(client.summary(first.key).cost)
    client.start_run(name="third").lease(request(cloud, nodes=2))


def test_budgets_are_per_owner_and_who_has_none_may_spend():
    cloud = a_cloud(owners={"ada": 10.0})
    with pytest.raises(BudgetExceeded, match="'ada'"):
        cloud.client().start_run(name="hers", owner="ada").lease(request(cloud))
    cloud.client().start_run(name="his", owner="bob").lease(request(cloud, nodes=4))


def test_a_lease_that_was_asked_for_is_not_charged_again_when_it_is_continued():
    cloud = a_cloud(per_month=2 * HOUR)
    run = cloud.client().start_run(name="one")
    run.lease(request(cloud, nodes=2))
    run.close()
    again = cloud.client().attach(run.key)
    assert len(again.lease().nodes) == 2
    again.release()


def test_a_retry_is_charged_for_what_the_failure_cost():
    cloud = a_cloud(per_month=HOUR)
    broken = next(iter(cloud.machines.values()))
    broken.fails.add("deploy")
    run = cloud.client().start_run(name="one")
    with pytest.raises(NodeFailed):
        run.lease(request(cloud))
    run.next_generation()
    broken.fails.clear()
    with pytest.raises(BudgetExceeded):
        run.lease(request(cloud))
    run.lease(request(cloud, hours=0.9))


def test_a_new_month_is_a_new_budget_and_a_lease_over_its_end_needs_room_in_both():
    cloud = a_cloud(per_month=HOUR)
    client = cloud.client()
    with client.start_run(name="may") as run:
        run.lease(request(cloud, hours=0.9))
        cloud.clock.sleep(1800)
    with pytest.raises(BudgetExceeded, match="2026-01"):
        client.start_run(name="more").lease(request(cloud))
    end = Month.of(cloud.clock.now()).next.start
    cloud.clock.sleep((end - cloud.clock.now()).total_seconds() - 60)
    with pytest.raises(BudgetExceeded, match="2026-02"):
        client.start_run(name="late").lease(request(cloud, hours=1.1))
    client.start_run(name="over").lease(request(cloud, hours=1.0))


@pytest.mark.parametrize("run_at_once", [2, 8])
def test_of_those_that_ask_at_once_only_as_many_get_machines_as_the_budget_has_room_for(run_at_once):
    cloud = a_cloud(per_month=1.5 * HOUR)

    def ask(number: int) -> bool:
        services = cloud.services()
        try:
            wanted = request(cloud)
            reserve(services, wanted, owner="tester", run_key=f"run-{number}", generation=1)
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(run_at_once) as pool:
        assert sum(pool.map(ask, range(run_at_once))) == 1


def test_a_reservation_of_a_process_that_died_is_forgotten_after_a_while():
    cloud = a_cloud(per_month=HOUR)
    reserve(cloud.services(), request(cloud), owner="tester", run_key="dead", generation=1)
    client = cloud.client()
    with pytest.raises(BudgetExceeded, match="has left") as caught:
        client.start_run(name="next").lease(request(cloud))
    assert "being asked for now" in caught.value.seen
    cloud.clock.sleep(HOLD_S + 1)
    client.start_run(name="next").lease(request(cloud))


def test_without_a_limit_or_a_price_nobody_is_asked():
    cloud = a_cloud()
    reserve(cloud.services(), request(cloud), owner="tester", run_key="a", generation=1)
    free = a_cloud(per_month=0.0)
    reserve(free.services(), request(free, kind="cpu"), owner="tester", run_key="a", generation=1)
    assert (cloud.s3.objects, free.s3.objects) == ({}, {})


def test_a_person_sees_what_is_left(monkeypatch):
    cloud = a_cloud(per_month=100.0, owners={"ada": 50.0})
    monkeypatch.setattr("mlops_sdk.cli.budget.Client", cloud.client)
    cloud.client().start_run(name="one").lease(request(cloud))
    shown = CliRunner().invoke(main, ["budget"])
    assert shown.exit_code == 0, shown.output
    assert "50.00 EUR" in shown.output
    ada, tester = json.loads(CliRunner().invoke(main, ["budget", "--json"]).output)
    assert (ada["owner"], ada["left"]) == ("ada", 50.0)
    assert tester["spent"] + tester["promised"] == pytest.approx(HOUR, abs=0.1)
    assert tester["left"] == pytest.approx(100 - HOUR, abs=0.1)


START = datetime(2025, 11, 20, tzinfo=UTC)
PRICES = Prices(node_second={"gpu": 0.01})


@given(st.integers(0, 100 * 86400), st.integers(0, 100 * 86400))
def test_the_months_of_an_interval_add_up_to_its_price(begin, length):
    start = START + timedelta(seconds=begin)
    interval = Interval(node_id="a", resource_class="gpu", start=start, end=start + timedelta(seconds=length))
    found = months(interval.start, interval.end)
    assert sum(price_in([interval], PRICES, month) for month in found) == pytest.approx(length * 0.01)
    assert list(found) == sorted(set(found))


@given(limit=st.floats(0, 100), spent=st.floats(0, 100), promised=st.floats(0, 100), wanted=st.floats(0, 100))
def test_what_is_admitted_never_exceeds_the_limit(limit, spent, promised, wanted):
    account = Account(owner="ada", month=Month.of(START), limit=limit, spent=spent, promised=promised)
    try:
        admit(account, wanted, what="a lease", raised_by="")
    except BudgetExceeded:
        assert spent + promised + wanted > limit - 1e-9
    else:
        assert wanted == 0 or spent + promised + wanted <= limit + 1e-9
