"""The lists that all who wait share, asked of the real Ironic."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.providers.ironic_api import IronicApi
from mlops_sdk.capacity.watching import Phase, Snapshot
from mlops_sdk.client import Client
from mlops_sdk.keeper import LoopKeeper
from mlops_sdk.pollers import Pollers
from mlops_sdk.steps import adrive

pytestmark = pytest.mark.stack

CLASS = "gpu.h200.8x"


def test_the_short_list_of_machines_says_of_each_what_the_long_one_says(settings: Any):
    api = Client(settings).services.baremetal

    def seen(machine: Any) -> tuple[Any, ...]:
        return (machine.name, machine.provision_state, machine.maintenance, machine.fault)

    assert {m.id: seen(m) for m in api.list_machines(brief=True)} == {m.id: seen(m) for m in api.list_machines()}


@pytest.mark.slow
async def test_three_runs_wait_for_ironic_by_one_poller_and_go_back_by_it(settings: Any, monkeypatch: Any):
    own_looks = []
    get = IronicApi._get

    def counted(self: IronicApi, path: str) -> Any:
        own_looks.append(path)
        return get(self, path)

    monkeypatch.setattr(IronicApi, "_get", counted)
    client = Client(settings, keeper=LoopKeeper(asyncio.get_running_loop()))
    pollers, services = Pollers(), client.services
    poller = pollers.of(services, "ironic")
    assert poller is not None
    runs = [client.start_run(f"poller-{uuid.uuid4()}") for _ in range(3)]
    request = LeaseRequest(
        nodes=1, resource_class=CLASS, deadline=await asyncio.to_thread(services.now) + timedelta(minutes=10), wait_s=30
    )
    try:
        leases = await asyncio.gather(
            *(adrive(run.leasing(request), services.clock, pollers.pause(services)) for run in runs)
        )
        assert len({lease.nodes[0].id for lease in leases}) == 3
        latest: Snapshot | None = await poller.ready([f"ml-{run.key}-g1-0" for run in runs], at_most_s=10)
        assert latest is not None
        sights = [latest.of(f"ml-{run.key}-g1-0") for run in runs]
        assert [sight.phase for sight in sights] == [Phase.READY] * 3
        assert sorted(sight.node_name for sight in sights) == sorted(lease.nodes[0].name for lease in leases)
        assert all(sight.renewed_until is not None for sight in sights)
    finally:
        await asyncio.gather(*(adrive(run.releasing(), services.clock, pollers.pause(services)) for run in runs))
    assert all(run.prove().complete for run in runs)
    assert not poller.works
    assert len(own_looks) <= 3 * 40  # each looks for itself before it acts, and when something of its own changed
