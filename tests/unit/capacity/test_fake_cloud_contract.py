"""The fake does what the real services do (tests/integration/capacity runs the same contract on those)."""

from mlops_sdk.testing.cloud import FakeBaremetal, FakeCloud, FakeCredentials
from mlops_sdk.testing.contracts import check_baremetal, check_credentials


def test_the_fake_ironic_keeps_the_contract():
    cloud = FakeCloud()
    check_baremetal(FakeBaremetal(cloud), resource_class="gpu.h200.8x", sleep=cloud.clock.sleep)


def test_the_fake_keystone_keeps_the_contract():
    check_credentials(FakeCredentials(FakeCloud()))
