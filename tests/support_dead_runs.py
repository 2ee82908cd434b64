"""Runs on the fake cloud whose process is gone, and what is left of them."""

from __future__ import annotations

from datetime import timedelta

from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.journal import Entry, Journal
from mlops_sdk.keeper import Beat, Stop
from mlops_sdk.run import Run
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.memory_s3 import memory_store


class ByHand:
    """Nobody beats."""

    def keep(self, beat: Beat, every_s: float) -> Stop:
        del beat, every_s
        return lambda: None


def leased(cloud: FakeCloud, name: str = "one", nodes: int = 1) -> Run:
    deadline = cloud.clock.now() + timedelta(hours=1)
    with cloud.client().start_run(name=name) as run:
        run.lease(LeaseRequest(nodes=nodes, resource_class="gpu.h200.8x", deadline=deadline))
        cloud.clock.sleep(10)
        run.keep()
    return run


def died(cloud: FakeCloud, name: str = "one", nodes: int = 1) -> Run:
    """A run whose process is gone, and whose lease is not renewed any more."""
    run = leased(cloud, name, nodes)
    cloud.clock.sleep(cloud.settings.lease.renew_for_s + cloud.settings.lease.clock_skew_s)
    return run


def entries(cloud: FakeCloud, run: Run) -> list[Entry]:
    return Journal(memory_store(cloud.s3), run.key, now=cloud.clock.now).entries()


def fence(cloud: FakeCloud) -> Fence:
    return Fence(memory_store(cloud.s3), now=cloud.clock.now, ttl_s=cloud.settings.lease.renew_for_s)
