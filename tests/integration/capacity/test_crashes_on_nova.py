"""Two crashes one after the other, and a call that fails in any other way, on the real Nova, Neutron, Keystone, RGW.

See `test_crashes_on_ironic`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from support_compute import ComputeHandle, create, gone, settled, take_back_servers
from support_crashes import Bed, crash_in_pairs, fail_at_calls

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]

SEED = 4
BATCHES = 4
LIVES = 20
FLAVOR = "cpu.small"


@pytest.fixture
def bed(compute: ComputeHandle) -> Iterator[Bed]:
    of_runs, of_reaper = (
        settings.model_copy(update={"ironic": False}) for settings in (compute.settings, compute.reaper_settings)
    )
    yield Bed.of(of_runs, of_reaper, resource_class=FLAVOR, provider="nova")
    take_back_servers(compute.operator())


@pytest.fixture
def colleague(compute: ComputeHandle) -> Iterator[Any]:
    """A server in our project, by a name like ours, without our marker."""
    cloud = compute.user()
    server = settled(cloud, create(cloud, compute.offers, name="ml-aaaaaaaaaaaa-g1-0", flavor=FLAVOR))
    yield server
    cloud.compute.delete_server(server)
    gone(cloud, server)


def only_the_colleague_has_something(compute: ComputeHandle, colleague: Any) -> None:
    cloud = compute.user()
    (server,) = cloud.compute.servers()
    assert (server.id, server.status, server.updated_at) == (colleague.id, "ACTIVE", colleague.updated_at)
    assert {port.device_id for port in cloud.network.ports() if port.device_owner.startswith("compute:")} == {server.id}
    assert list(cloud.block_storage.volumes()) == []


def test_after_two_crashes_nothing_is_held_and_a_colleague_is_left_alone(
    bed: Bed, compute: ComputeHandle, colleague: Any
):
    """A run dies, then whoever goes on: the run again, or the reaper."""
    told = crash_in_pairs(bed, seed=SEED, batches=BATCHES)
    only_the_colleague_has_something(compute, colleague)
    deleted = Counter(
        sent.path
        for sent in bed.log
        if sent.what.startswith("DELETE") and "/servers/" in sent.path and sent.status == requests.codes.no_content
    )
    assert deleted
    assert set(deleted.values()) == {1}
    twice = [line for line in told if not line.endswith("run ") and not line.endswith("reaper ")]
    assert len(twice) > len(told) / 2  # of some pairs nobody came to the second moment


def test_a_call_that_fails_in_any_way_leaves_nothing_and_a_colleague_is_left_alone(
    bed: Bed, compute: ComputeHandle, colleague: Any
):
    """Lost and late replies, requests that come twice or late, and errors of every kind, at calls of all services."""
    told = fail_at_calls(bed, seed=SEED, lives=LIVES)
    only_the_colleague_has_something(compute, colleague)
    assert len([line for line in told if not line.startswith("never")]) > LIVES / 2
