"""The HTTP fake keeps the contracts that the real services keep, through the real clients and the light ones."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import openstack
import pytest

from mlops_sdk.capacity.providers.ironic_api import IronicApi
from mlops_sdk.cloud import Cloud
from mlops_sdk.errors import AccessDenied, ServiceUnavailable
from mlops_sdk.identity.keystone import KeystoneCredentials
from mlops_sdk.objects import ObjectStore
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.contracts import check_baremetal, check_credentials
from mlops_sdk.testing.http_cloud.ironic_wire import fault
from mlops_sdk.testing.http_cloud.keystone import PROJECT
from mlops_sdk.testing.http_cloud.light import LightCloud, LightS3
from mlops_sdk.testing.http_cloud.messages import Answer, Call
from mlops_sdk.testing.http_cloud.openstack_wire import session_through
from mlops_sdk.testing.http_cloud.s3_wire import s3_through
from mlops_sdk.testing.http_cloud.site import HttpCloud, cloud_settings
from mlops_sdk.testing.http_cloud.virtual_time import virtual_time
from mlops_sdk.testing.settings import fake_settings

SETTINGS = cloud_settings(fake_settings())


@dataclass
class Wire:
    """A way to the cloud."""

    cloud: HttpCloud
    clock: FakeClock
    login: Callable[..., Cloud]
    store: Callable[[], ObjectStore]


@pytest.fixture(params=["real clients", "light clients"])
def wire(request) -> Wire:
    clock = FakeClock()
    cloud = HttpCloud(clock.monotonic)
    for number in range(2):
        cloud.ironic.add_node(f"gpu-{number}", resource_class="gpu", project=PROJECT)
    if request.param == "light clients":
        return Wire(
            cloud,
            clock,
            lambda keystone=SETTINGS.keystone: LightCloud(keystone, cloud.deliver, clock.sleep),
            lambda: ObjectStore(LightS3(cloud.deliver, clock.sleep), "mlops"),
        )
    return Wire(
        cloud,
        clock,
        lambda keystone=SETTINGS.keystone: Cloud(keystone, connect=session_through(cloud.deliver)),
        lambda: ObjectStore(s3_through(SETTINGS.s3, cloud.deliver), "mlops"),
    )


def test_ironic_keeps_the_contract(wire):
    image = fake_settings().instance_info_for("gpu")
    check_baremetal(IronicApi(wire.login()), resource_class="gpu", image=image, sleep=wire.clock.sleep)
    assert not wire.cloud.ironic.allocations


def test_keystone_keeps_the_contract(wire):
    check_credentials(KeystoneCredentials(wire.login()))
    assert not wire.cloud.keystone.credentials


def test_s3_has_one_winner_of_a_conditional_put_and_lists_what_is_there(wire):
    store = wire.store()
    assert store.put_if_absent("a/1", b"first")
    assert not store.put_if_absent("a/1", b"second")
    assert store.put_if_absent("a/1", b"first"), "a retry meets its own object"
    body, tag = store.get_with_etag("a/1")
    assert body == b"first"
    assert store.put_if_match("a/1", b"third", "0" * 32) is None
    assert store.put_if_match("a/1", b"third", tag)
    store.put("a/b c/2", b"")
    assert [item.key for item in store.list("a/")] == ["a/1", "a/b c/2"]
    assert list(store.list_folders("")) == ["a"]
    store.delete("a/1")
    assert store.get("a/1") is None


def test_a_credential_whose_owner_took_it_back_is_refused(wire):
    check = IronicApi(wire.login())
    check.now()
    for token in wire.cloud.keystone.tokens:
        wire.cloud.keystone.revoked.add(token)
    assert list(check.list_allocations()) == [], "one new login after a 401"
    wire.cloud.keystone.passwords = {}
    wire.cloud.keystone.revoked |= set(wire.cloud.keystone.tokens)
    with pytest.raises(AccessDenied):
        list(check.list_allocations())


def test_openstacksdk_itself_finds_its_way(wire):
    session = session_through(wire.cloud.deliver)(SETTINGS.keystone)
    api = openstack.connection.Connection(session=session, region_name="RegionOne").baremetal
    assert [node.name for node in api.nodes(details=True)] == ["gpu-0", "gpu-1"]
    made = api.create_allocation(name="by-hand", resource_class="gpu", traits=[])
    wire.clock.sleep(1)
    assert api.get_allocation(made).state == "active"
    api.delete_allocation(made)
    assert list(api.allocations()) == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_call_that_is_put_off_is_sent_again(status):
    clock = FakeClock()
    cloud = HttpCloud(clock.monotonic)
    asked: list[Call] = []

    def send(call: Call) -> Answer:
        asked.append(call)
        return fault(status, "later") if len(asked) == 2 else cloud.deliver(call)  # the first is the login

    assert list(IronicApi(LightCloud(SETTINGS.keystone, send, clock.sleep)).list_allocations()) == []
    assert len(asked) == 3


@pytest.mark.parametrize("client", ["real", "light"])
@pytest.mark.parametrize(("seconds", "times"), [(7, [0.0, 7.0]), (600, [0.0])])
def test_a_service_that_says_for_how_long_is_left_alone_for_so_long(client, seconds, times):
    """And one that wants longer than a call may take is not asked again: whoever asked decides."""
    clock = FakeClock()
    cloud = HttpCloud(clock.monotonic)
    asked: list[float] = []

    def send(call: Call) -> Answer:
        if call.service != "baremetal":
            return cloud.deliver(call)
        asked.append(clock.monotonic())
        put_off = Answer(status=429, body=fault(429, "later").body, headers={"Retry-After": str(seconds)})
        return put_off if len(asked) == 1 else cloud.deliver(call)

    with virtual_time(lambda: clock):
        login = (
            LightCloud(SETTINGS.keystone, send, clock.sleep)
            if client == "light"
            else Cloud(SETTINGS.keystone, connect=session_through(send))
        )
        with suppress(ServiceUnavailable):
            list(IronicApi(login).list_allocations())
    assert [moment - asked[0] for moment in asked] == pytest.approx(times, abs=0.5)
