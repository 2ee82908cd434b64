"""The fake does what the real services do (tests/integration/capacity runs the same contract on those)."""

from collections.abc import Callable

import pytest

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.provider import Grant, Provider
from mlops_sdk.testing.cloud import FakeBaremetal, FakeCloud, FakeCredentials
from mlops_sdk.testing.contracts import check_baremetal, check_credentials
from mlops_sdk.testing.provider_contract import CHECKS, Bench


def test_the_fake_ironic_keeps_the_contract():
    cloud = FakeCloud()
    image = cloud.settings.instance_info_for("gpu.h200.8x")
    check_baremetal(FakeBaremetal(cloud), resource_class="gpu.h200.8x", image=image, sleep=cloud.clock.sleep)


def test_the_fake_keystone_keeps_the_contract():
    check_credentials(FakeCredentials(FakeCloud()))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_leases_on_ironic_keep_the_contract_of_providers(check):
    cloud = FakeCloud()
    check(bench(cloud))
    assert cloud.held == {}
    cloud.clock.sleep(cloud.settings.lease.renew_for_s + 1)
    cloud.reaper().reap_once()  # what a process that died had claimed
    assert not [key for key in cloud.s3.objects if key.startswith("fence/")]


def bench(cloud: FakeCloud) -> Bench:
    def open_provider(boundary: Boundary = no_boundary) -> Provider:
        return cloud.services().provider("ironic", boundary=boundary)

    def plant(grant: Grant) -> Callable[[], bool]:
        api, name = FakeBaremetal(cloud), grant.name(0)
        marker = bench(cloud).grant().marker(0, now=api.now(), renew_for_s=60)  # another run's
        made = api.create_allocation(name=name, resource_class="gpu.h200.8x", traits=(), marker=marker)
        cloud.clock.sleep(2)

        def take_away() -> bool:
            found = api.get_allocation(name)
            api.delete_allocation(name)
            return found is not None and (found.id, found.marker) == (made.id, marker)

        return take_away

    return Bench(
        open=open_provider,
        clock=cloud.clock,
        deployment_id=cloud.settings.deployment_id,
        resource_class="gpu.h200.8x",
        plant=plant,
    )
