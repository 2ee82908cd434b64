"""Servers of the HTTP fake keep the contract of providers that the real Nova keeps, through our own client of it."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.lease import EndReason
from mlops_sdk.capacity.loss import Answer
from mlops_sdk.capacity.owned import Held, Standing
from mlops_sdk.capacity.provider import Fencing, Grant, Party, Provider
from mlops_sdk.capacity.providers.nova import NovaLeases
from mlops_sdk.capacity.providers.nova_api import ServerOrder, VolumeOrder
from mlops_sdk.capacity.providers.nova_http import NovaHttp
from mlops_sdk.capacity.providers.nova_marker import to_line, to_metadata
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import NovaSettings
from mlops_sdk.errors import RemoteError, ServiceUnavailable
from mlops_sdk.names import run_key
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.http_cloud.light import LightCloud
from mlops_sdk.testing.http_cloud.nova_wire import FakeFlavor
from mlops_sdk.testing.http_cloud.openstack_wire import session_through
from mlops_sdk.testing.http_cloud.server_site import ServerSite, SiteDoor
from mlops_sdk.testing.http_cloud.site import HttpCloud, cloud_settings
from mlops_sdk.testing.http_cloud.virtual_time import virtual_time
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.testing.provider_contract import CHECKS, Bench
from mlops_sdk.testing.settings import fake_settings

NOVA = {"networks": ("net",), "image": "ubuntu"}


@dataclass
class Deployment:
    """A deployment on the fake cloud, through one kind of client."""

    clock: FakeClock
    site: ServerSite
    login: Callable[[], Cloud]
    nova: dict[str, Any]

    def __post_init__(self) -> None:
        lease = fake_settings().lease.model_copy(update={"ssh_timeout_s": 10.0, "renew_for_s": 60.0})
        changes = {"nova": NovaSettings(**NOVA, **self.nova), "lease": lease}
        self.settings = cloud_settings(fake_settings()).model_copy(update=changes)
        self.s3 = MemoryS3()
        self.api = NovaHttp(self.login())

    def open(self, boundary: Boundary = no_boundary) -> Provider:
        fence = Fence(memory_store(self.s3), now=self.clock.now, ttl_s=60)
        party = Party(settings=self.settings, fence=fence, clock=self.clock, boundary=boundary)
        return NovaLeases(NovaHttp(self.login()), party, SiteDoor(self.site))

    @property
    def bench(self) -> Bench:
        return Bench(
            open=self.open,
            clock=self.clock,
            deployment_id=self.settings.deployment_id,
            resource_class="gpu",
            plant=self.plant,
        )

    def plant(self, grant: Grant) -> Callable[[], bool]:
        marker = self.bench.grant().marker(0, now=self.clock.now(), renew_for_s=60)  # another run's
        name, network, line = grant.name(0), self.api.find_network("net"), to_line(marker)
        port = self.api.create_port(name=name, network=network, line=line, groups=())
        order = ServerOrder(
            name=name,
            flavor="f1",
            image=self.api.find_image("ubuntu"),
            ports=(port.id,),
            metadata=to_metadata(marker),
        )
        server = self.api.create_server(order)
        volume = self.api.create_volume(VolumeOrder(name=name, role="data", gib=1, line=line))
        self.clock.sleep(30)  # it is built

        def take_away() -> bool:
            site = self.site
            site.settle()
            found = site.nova.servers.get(server)
            there = port.id in site.neutron.ports and volume.id in site.cinder.volumes
            for things in (site.nova.servers, site.neutron.ports, site.cinder.volumes):
                things.clear()
            return there and found is not None and found.task == ""

        return take_away

    @property
    def left(self) -> list[str]:
        self.clock.sleep(10)
        self.site.settle()
        return [*self.site.nova.servers, *self.site.neutron.ports, *self.site.cinder.volumes]


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    yield from deployed({"root_volume_gib": 20, "data_volume_gib": 10}, light=True)


def deployed(nova: dict[str, Any], *, light: bool) -> Iterator[Deployment]:
    clock = FakeClock()
    cloud = HttpCloud(clock.monotonic)
    site = ServerSite(cloud)
    site.nova.flavors["f1"] = FakeFlavor(id="f1", name="gpu", specs={"pci_passthrough:alias": "a100:1"})
    site.nova.images["0a1b2c3d-0000-4000-8000-000000000001"] = "ubuntu"
    keystone = cloud_settings(fake_settings()).keystone

    def log_in() -> Cloud:
        if light:
            return LightCloud(keystone, cloud.deliver, clock.sleep)
        return Cloud(keystone, connect=session_through(cloud.deliver))

    with virtual_time(lambda: clock):
        yield Deployment(clock, site, log_in, nova)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_leases_on_it_keep_the_contract_of_providers(check: Callable[[Bench], None], deployment: Deployment):
    check(deployment.bench)
    assert deployment.left == []


@pytest.mark.parametrize("check", CHECKS[:2], ids=lambda check: check.__name__)
def test_keystoneauth_and_requests_find_it_too(check: Callable[[Bench], None]):
    for deployment in deployed({"data_volume_gib": 10}, light=False):
        check(deployment.bench)
        assert deployment.left == []


@pytest.mark.parametrize("light", [True, False])
def test_what_the_catalogue_lacks_is_not_there(light: bool):
    for deployment in deployed({}, light=light):
        cloud = deployment.login()
        assert [cloud.has(kind) for kind in ("compute", "accelerator")] == [True, False]
        if not light:
            with pytest.raises(RemoteError, match="no public endpoint of service type 'accelerator'"):
                cloud.endpoint("accelerator")


def test_a_server_whose_cell_does_not_answer_is_in_no_list_and_is_still_held(deployment: Deployment):
    """Its lease is renewed, nobody takes it for gone or off, and what was made for it stays."""
    bench, site = deployment.bench, deployment.site
    grant = bench.grant(nodes=1)
    provider = deployment.open()
    (node,) = bench.drive(provider.acquire(grant))
    site.nova.away_until = deployment.clock.monotonic() + 60
    assert list(deployment.api.list_servers(grant.name(0))) == []
    assert provider.renew(grant) == 1
    assert provider.inspect(Held(name=grant.name(0))).standing is Standing.HELD
    assert isinstance(provider, Fencing)
    assert provider.power(Held(name=grant.name(0), node_id=node.id)).answer is Answer.BLIND
    returning = provider.returning(
        Held(name=grant.name(0)), reason=EndReason.FINISHED, entitled=grant.owns, run_key=run_key(grant.run_id)
    )
    with suppress(ServiceUnavailable):  # what its host did nobody can tell now
        returning.step()
    assert (len(site.neutron.ports), len(site.cinder.volumes)) == (1, 2)
    deployment.clock.sleep(61)
    bench.release(grant)
    assert deployment.left == []


def test_a_recycle_bin_is_found_through_the_port_and_emptied(deployment: Deployment):
    bench, site = deployment.bench, deployment.site
    grant = bench.grant(nodes=1)
    (node,) = bench.drive(deployment.open().acquire(grant))
    site.nova.fails["recycle"] = 1
    deployment.api.delete_server(node.id)
    assert list(deployment.api.list_servers(grant.name(0))) == []
    assert {item.kind for item in deployment.open().list_owned()} == {"server", "port", "volume"}
    (evidence,) = bench.release(grant)
    assert (evidence.outcome, evidence.node_id) == (Outcome.CLEANED, node.id)
    assert deployment.left == []


def test_a_volume_that_is_being_deleted_is_not_taken_for_the_next_server(deployment: Deployment):
    """The second process of a lease met what the first one was giving back, and ended with Nova's 400."""
    api, bench = deployment.api, deployment.bench
    grant = bench.grant(nodes=1)
    line = to_line(grant.marker(0, now=deployment.clock.now(), renew_for_s=60))
    old = api.create_volume(VolumeOrder(name=grant.name(0), role="data", gib=10, line=line))
    deployment.clock.sleep(2)
    api.delete_volume(old.id)
    (node,) = bench.drive(deployment.open().acquire(grant))
    assert node.id in deployment.site.nova.servers
    bench.release(grant)
    assert deployment.left == []
