"""`mlops lease` on a cloud in memory."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
from click.testing import CliRunner

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.owned import PoolMachine
from mlops_sdk.capacity.provider import Provider
from mlops_sdk.cli import hold, lease
from mlops_sdk.cli.main import main
from mlops_sdk.testing.cloud import FakeCloud


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> FakeCloud:
    cloud = FakeCloud(hosts=2)
    for module in (lease, hold):
        monkeypatch.setattr(module, "Client", cloud.client)
    return cloud


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(lease.lease, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_a_quote_says_what_it_costs_and_whether_it_can_be_had(cloud):
    found = json.loads(shown("quote", "--nodes", "2", "--class", "gpu.h200.8x", "--hours", "2", "--json"))
    assert (found["provider"], found["available_now"], found["total"]) == ("ironic", True, 144.0)
    of_hosts = json.loads(shown("quote", "--nodes", "3", "--class", "gpu.static", "--provider", "static", "--json"))
    assert (of_hosts["available_now"], of_hosts["free"]) == (False, 2)


def test_machines_of_every_provider_are_listed_and_a_host_that_is_out_can_be_cleaned(cloud):
    deadline = cloud.clock.now() + timedelta(hours=1)
    cloud.hosts.host("pool-01").fails.add("clean")
    with cloud.client().start_run() as run:
        run.lease(LeaseRequest(nodes=2, resource_class="gpu.static", deadline=deadline, provider="static"))
        rows = json.loads(shown("list", "--json"))
        assert [row["provider"] for row in rows] == ["ironic"] * 4 + ["static"] * 2
        assert {row["held_by"] for row in rows if row["provider"] == "static"} == {
            f"ml-{run.key}-g1-0",
            f"ml-{run.key}-g1-1",
        }
    assert "out: exit status 5: clean is stuck" in shown("list")
    cloud.hosts.host("pool-01").fails.clear()
    assert shown("clean", "pool-01") == "pool-01: 1 processes ended\n"
    assert "out:" not in shown("list")


def test_room_for_servers_is_one_line_for_each_flavor(cloud, monkeypatch):
    def pool() -> Iterator[PoolMachine]:
        room = PoolMachine(
            provider="nova", id="", name="room for one gpu", resource_class="gpu", state="free", free=True
        )
        yield from (replace(room, id=f"gpu/{number}") for number in range(16))
        yield replace(room, id="uuid", name="ml-a-g1-0", held_by="ml-a-g1-0", state="ACTIVE", free=False)

    provider = create_autospec(Provider, instance=True)
    provider.pool = pool
    services = cloud.services()
    nova = replace(services, others={"nova": lambda *_: provider})
    monkeypatch.setattr(lease, "Client", lambda: SimpleNamespace(services=nova))
    rows = [row for row in json.loads(shown("list", "--json")) if row["provider"] == "nova"]
    assert [(row["machine"], row["count"]) for row in rows] == [("ml-a-g1-0", 1), ("room for one gpu", 16)]


def test_a_person_replaces_a_machine_on_his_word(cloud):
    deadline = cloud.clock.now() + timedelta(hours=1)
    with cloud.client().start_run() as run:
        lost, other = run.lease(LeaseRequest(nodes=2, spares=1, resource_class="gpu.h200.8x", deadline=deadline)).nodes
        (spare,) = run.held.spares
        cloud.machines[lost.id].fails.add("bmc")
        refused = CliRunner().invoke(main, ["lease", "replace", run.key, lost.name])
        assert refused.exit_code == 1
        assert "unfenced" in refused.output
        word = ("--unfenced", "ada pulled the plug")
        assert shown("replace", run.key, lost.name, *word) == f"run {run.key} works on {spare.name}, {other.name}\n"
        rows = {row["machine"]: row["held_by"] for row in json.loads(shown("list", "--json"))}
        assert rows[spare.name] == f"ml-{run.key}-g1-2"
        assert rows[lost.name] == ""


def test_a_machine_of_ironic_that_is_out_can_be_cleaned(cloud):
    deadline = cloud.clock.now() + timedelta(hours=1)
    machine = cloud.machines[next(iter(cloud.machines))]
    machine.fails.add("clean")
    with cloud.client().start_run() as run:
        run.lease(LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=deadline))
    cloud.reaper().reap_once()
    assert "clean failed, in maintenance: mlops: 'clean failed' after ml-" in shown("list")
    machine.fails.clear()
    assert shown("clean", machine.shown.name) == "gpu-01: clean, back in the pool (deploy.erase_devices)\n"
    assert "mlops:" not in shown("list")


def test_a_quote_counts_the_spares(cloud):
    found = json.loads(shown("quote", "--nodes", "2", "--spares", "1", "--class", "gpu.h200.8x", "--json"))
    assert found["total"] == 108.0
