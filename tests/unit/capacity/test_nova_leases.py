"""Servers of Nova as machines: the contract of providers, and what is Nova's own."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.flavors import Flavor
from mlops_sdk.capacity.lease import EndReason
from mlops_sdk.capacity.owned import Held, Standing, due_for_return
from mlops_sdk.capacity.provider import Grant, Party, Provider
from mlops_sdk.capacity.providers.nova import NovaLeases
from mlops_sdk.capacity.providers.nova_api import ServerOrder, VolumeOrder
from mlops_sdk.capacity.providers.nova_marker import to_line, to_metadata
from mlops_sdk.capacity.watching import Phase, Watched
from mlops_sdk.config import NovaSettings
from mlops_sdk.errors import FlavorRefused, LeaseLost, NoCapacity, NodeFailed, ServiceUnavailable, SettingsError
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.testing.nova import FakeCompute, FakeDoor, FakeNova
from mlops_sdk.testing.provider_contract import CHECKS, Bench
from mlops_sdk.testing.settings import fake_settings

GPU = Flavor(id="f1", name="gpu", vcpus=8, ram_mb=1024, disk_gb=10, specs={"pci_passthrough:alias": "a100:1"})
BARE = Flavor(id="f2", name="bare", vcpus=8, ram_mb=1024, disk_gb=10, specs={"resources:CUSTOM_BM": "1"})


class Site:
    """A deployment on a fake Nova."""

    def __init__(self, **nova: Any) -> None:
        self.clock = FakeClock()
        self.cloud = FakeNova(clock=self.clock, flavors=[GPU, BARE])
        self.api = FakeCompute(self.cloud)
        self.s3 = MemoryS3()
        values = {"networks": ("net",), "image": "image", **nova}
        lease = fake_settings().lease.model_copy(update={"ssh_timeout_s": 10.0, "renew_for_s": 60.0})
        self.settings = fake_settings().model_copy(update={"nova": NovaSettings(**values), "lease": lease})

    def open(self, boundary: Boundary = no_boundary, by: Any = "run") -> NovaLeases:
        fence = Fence(memory_store(self.s3), now=self.clock.now, ttl_s=60)
        party = Party(settings=self.settings, fence=fence, clock=self.clock, by=by, boundary=boundary)
        return NovaLeases(self.api, party, FakeDoor(self.cloud))

    @property
    def bench(self) -> Bench:
        return Bench(
            open=self._as_provider,
            clock=self.clock,
            deployment_id=self.settings.deployment_id,
            resource_class="gpu",
            plant=self.plant,
        )

    def _as_provider(self, boundary: Boundary = no_boundary) -> Provider:
        return self.open(boundary)

    def plant(self, grant: Grant) -> Callable[[], bool]:
        marker = self.bench.grant().marker(0, now=self.clock.now(), renew_for_s=60)  # another run's
        name = grant.name(0)
        port = self.api.create_port(name=name, network="id of net", line=to_line(marker), groups=())
        order = ServerOrder(name=name, flavor="f1", image="i", ports=(port.id,), metadata=to_metadata(marker))
        server_id = self.api.create_server(order)
        volume = self.api.create_volume(VolumeOrder(name=name, role="data", gib=1, line=to_line(marker)))

        def take_away() -> bool:
            there = (server_id in self.cloud.servers, port.id in self.cloud.ports, volume.id in self.cloud.volumes)
            untouched = self.cloud.servers[server_id].deleted_at is None if there[0] else False
            self.cloud.servers.clear()
            self.cloud.ports.clear()
            self.cloud.volumes.clear()
            return all(there) and untouched

        return take_away

    @property
    def left(self) -> list[str]:
        self.cloud.moved()
        return [*self.cloud.servers, *self.cloud.ports, *self.cloud.volumes]


@pytest.fixture(params=[{}, {"data_volume_gib": 10}, {"root_volume_gib": 20, "networks": ("net", "fabric")}])
def site(request: pytest.FixtureRequest) -> Site:
    return Site(**request.param)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_leases_on_nova_keep_the_contract_of_providers(check: Callable[[Bench], None], site: Site):
    check(site.bench)
    assert site.left == []


def lease(site: Site, **changes: Any) -> Grant:
    return site.bench.grant(**{"nodes": 1, **changes})


def server_of(site: Site, grant: Grant) -> Any:
    (found,) = [each for each in site.cloud.servers.values() if each.shown.name == grant.name(0)]
    return found


def test_a_request_that_lands_late_makes_no_second_machine(site: Site):
    """Its reply is lost, and another process asks too: the oldest healthy server is kept, the rest given back."""
    grant = lease(site)
    site.cloud.faults.fail_at("create_server", 1, error=ServiceUnavailable("no answer"), when="after")
    (node,) = site.bench.drive(site.open().acquire(grant))
    assert len(site.cloud.servers) == 1
    marker = grant.marker(0, now=site.clock.now(), renew_for_s=60)
    port = site.api.create_port(name=grant.name(0), network="id of net", line=to_line(marker), groups=())
    site.clock.sleep(1)
    late = ServerOrder(
        name=grant.name(0),
        flavor="f1",
        image="i",
        ports=(port.id,),
        metadata={**to_metadata(marker), "mlops.ports": port.id},
    )
    site.api.create_server(late)
    assert site.bench.drive(site.open().acquire(grant)) == (node,)
    assert list(site.cloud.servers) == [node.id]
    assert port.id not in site.cloud.ports
    site.bench.release(grant)
    assert site.left == []


def test_a_request_that_was_lost_is_sent_again(site: Site):
    site.cloud.faults.fail_at("create_server", 1, error=ServiceUnavailable("no answer"), when="before")
    grant = lease(site)
    site.bench.drive(site.open().acquire(grant))
    site.bench.release(grant)
    assert site.left == []


def test_a_failed_server_gives_way_to_a_healthy_one_of_its_name(site: Site):
    grant = lease(site)
    site.bench.drive(site.open().begin(grant))
    first = server_of(site, grant)
    first.shown = replace(first.shown, status="ERROR", fault="Build of instance aborted")
    with pytest.raises(NodeFailed, match="Build of instance aborted"):
        site.bench.drive(site.open().acquire(grant))
    site.bench.release(grant)
    assert site.left == []


@pytest.mark.parametrize(
    "status", ["SHUTOFF", "PAUSED", "RESCUE", "VERIFY_RESIZE", "SHELVED_OFFLOADED", "SOFT_DELETED"]
)
def test_a_server_that_somebody_changed_is_a_failed_machine(status: str):
    site = Site()
    grant = lease(site)
    site.cloud.overruled[grant.name(0)] = lambda shown: replace(shown, status=status)
    with pytest.raises(NodeFailed, match=status):
        site.bench.drive(site.open().acquire(grant))
    site.cloud.overruled.clear()
    site.bench.release(grant)
    assert site.left == []


def test_a_status_that_we_do_not_know_is_an_error_with_its_raw_value():
    site = Site()
    grant = lease(site)
    site.cloud.overruled[grant.name(0)] = lambda shown: replace(shown, status="DREAMING")
    with pytest.raises(NodeFailed, match="DREAMING"):
        site.bench.drive(site.open().acquire(grant))
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.NOT_CLEAN
    assert "'DREAMING' is not in the table" in evidence.last_error
    site.cloud.overruled.clear()
    site.bench.release(grant)
    assert site.left == []


def test_a_server_that_answers_no_ssh_is_a_failed_machine():
    site = Site()
    site.cloud.silent = True
    grant = lease(site)
    with pytest.raises(NodeFailed, match="did not let us in within 10 s") as caught:
        site.bench.drive(site.open().acquire(grant))
    assert "no answer in time" in caught.value.seen
    site.bench.release(grant)
    assert site.left == []


def test_a_full_quota_is_no_capacity_and_room_is_waited_for():
    site = Site()
    site.cloud.quota = 1
    first, second = lease(site), lease(site, wait_s=30.0)
    site.bench.drive(site.open().acquire(first))
    with pytest.raises(NoCapacity, match="Quota exceeded") as caught:
        site.bench.drive(site.open().acquire(lease(site)))
    assert "the quota leaves 0" in caught.value.seen
    steps = site.open().acquire(second)
    site.clock.sleep(next(steps))
    site.bench.release(first)
    assert len(site.bench.drive(steps)) == 1
    site.bench.release(second)
    assert site.left == []


def test_what_its_host_did_not_end_is_not_called_clean():
    """Nova forgets a server whose host is down."""
    site = Site()
    grant = lease(site)
    site.bench.drive(site.open().acquire(grant))
    site.cloud.host_up = False
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.UNPROVEN
    assert "did not report" in evidence.last_error


def test_evidence_says_what_was_seen_of_server_port_and_volume(site: Site):
    grant = lease(site)
    (node,) = site.bench.drive(site.open().acquire(grant))
    (evidence,) = site.bench.release(grant)
    assert evidence.steps[0] == f"server {node.id}: its host deleted the guest and its disk"
    assert sum(step.endswith("deleted") for step in evidence.steps) >= 1
    assert (evidence.provision_state, evidence.node_id) == ("gone", node.id)
    assert evidence.cleaned_at
    seen = site.open().inspect(Held(name=grant.name(0), node_id=node.id, deployed=True))
    assert (seen.standing, seen.outcome) == (Standing.ENDED, Outcome.CLEANED)


def test_the_reaper_finds_server_then_children_and_leaves_a_strangers(site: Site):
    stranger = lease(site)
    take_away = site.plant(stranger)
    grant = lease(site)
    site.bench.drive(site.open().acquire(grant))
    reaper = site.open(by="reaper")
    deployment = str(site.settings.deployment_id)
    assert due_for_return(reaper.list_owned(), deployment_id=deployment, now=site.clock.now(), skew_s=1) == []
    site.clock.sleep(70)
    site.open().renew(grant)
    assert due_for_return(reaper.list_owned(), deployment_id=deployment, now=site.clock.now(), skew_s=1) == []
    site.clock.sleep(70)
    due = due_for_return(reaper.list_owned(), deployment_id=deployment, now=site.clock.now(), skew_s=1)
    assert [(item.kind, reason) for item, reason in due] == [("server", EndReason.NOT_RENEWED)]
    returning = reaper.returning(due[0][0].held, reason=due[0][1], entitled=lambda _n, _m: True, run_key="x")
    while (evidence := returning.step()) is None:
        site.clock.sleep(0.5)
    assert evidence.outcome is Outcome.CLEANED
    assert site.bench.owned(grant) == {}
    assert due_for_return(reaper.list_owned(), deployment_id=deployment, now=site.clock.now(), skew_s=1) == []
    assert take_away()


def test_a_port_that_a_dead_run_left_is_returned_by_itself():
    site = Site()
    grant = lease(site)
    site.cloud.faults.fail_at("create_server", 1, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        site.bench.drive(site.open().acquire(grant))
    (item,) = site.open().list_owned()
    assert (item.kind, item.parent) == ("port", "")
    returning = site.open(by="reaper").returning(
        item.held, reason=EndReason.NOT_RENEWED, entitled=lambda _n, _m: True, run_key="x"
    )
    while (evidence := returning.step()) is None:
        site.clock.sleep(0.5)
    assert evidence.resource == f"{grant.name(0)}-port"
    assert site.left == []


def test_a_part_that_is_gone_is_not_made_again_beside_what_is_in_use():
    site = Site()
    grant = lease(site, nodes=2)
    nodes = site.bench.drive(site.open().acquire(grant))
    site.api.delete_server(nodes[1].id)
    site.clock.sleep(2)
    assert site.open().renew(grant) == 1
    with pytest.raises(LeaseLost):
        site.bench.drive(site.open().acquire(grant, deployed=set(grant.names)))
    with pytest.raises(NodeFailed, match="part of generation 1"):
        site.bench.drive(site.open().acquire(grant, deployed={grant.name(0)}))
    site.bench.release(grant)
    assert site.left == []


def test_a_flavor_that_cannot_be_used_is_refused_before_anything_is_made():
    site = Site(flavors={"gpu": {"delivery": "passthrough", "accelerators": 8}, "bare": {}})
    for name, said in (("gpu", "1 a server, expected 8"), ("small", "nova.flavors of the settings: bare, gpu")):
        with pytest.raises(FlavorRefused, match=said):
            site.open().quote(lease(site, resource_class=name).request)
        with pytest.raises(FlavorRefused, match=said):
            site.open().acquire(lease(site, resource_class=name))
    assert site.left == []


def test_a_quote_says_what_the_flavor_gives_and_how_the_room_is_known():
    site = Site()
    quote = site.open().quote(lease(site).request)
    assert (quote.free, quote.notes) == (3, ("gpu: 1 x accelerators by passthrough", "the hosts have room for 3"))
    site.cloud.operator = False
    quote = site.open().quote(lease(site).request)
    assert quote.free == 4
    assert quote.notes[1].startswith("the quota leaves 4; which hosts are free is not known")
    site.cloud.quota = None
    assert site.open().quote(lease(site).request).free == 16


def test_extending_is_seen_by_whoever_judges_the_lease(site: Site):
    grant = lease(site)
    site.bench.drive(site.open().acquire(grant))
    later = grant.request.deadline + timedelta(hours=1)
    site.open().extend(replace(grant, request=replace(grant.request, deadline=later)))
    assert {item.marker.deadline for item in site.open().list_owned()} == {later}
    site.bench.release(grant)


def test_a_shared_poller_sees_every_server_with_the_times_of_its_record(site: Site):
    grant = lease(site)
    steps = site.open().acquire(grant)
    phases: list[Phase] = []
    try:
        while True:
            pause = next(steps)
            sights = site.open().sights()
            if grant.name(0) in sights:
                phases.append(sights[grant.name(0)].phase)
            if isinstance(pause, Watched):
                assert (pause.provider, pause.keys) == ("nova", {grant.name(0)})
            site.clock.sleep(pause)
    except StopIteration as done:
        (node,) = done.value
    sight = site.open().sights()[grant.name(0)]
    assert sorted(set(phases), key=phases.index) == [Phase.COMING]
    assert (sight.phase, sight.node_id) == (Phase.READY, node.id)
    assert sight.renewed_until is not None
    site.clock.sleep(3)
    site.open().renew(grant)
    renewed = site.open().sights()[node.id].renewed_until
    assert renewed is not None
    assert renewed > sight.renewed_until
    site.bench.release(grant)


def test_who_names_machines_is_refused_at_once():
    site = Site()
    wanted = replace(site.bench.grant().request, nodes=1, machines=("host-1",))
    with pytest.raises(FlavorRefused, match="cannot be asked for by name") as caught:
        site.open().quote(wanted)
    assert "host-1" in caught.value.seen


def test_the_doctor_says_what_there_is_and_leaves_nothing():
    site = Site(flavors={"gpu": {"delivery": "passthrough"}})
    assert site.open().examine() == (
        "0 servers there; gpu (1 x accelerators by passthrough): the hosts have room for 3"
    )
    assert site.left == []


def test_the_doctor_names_every_flavor_and_network_that_does_not_do():
    with pytest.raises(FlavorRefused) as caught:
        Site(flavors={"gpu": {"delivery": "vgpu"}, "bare": {"delivery": "mig"}, "gone": {}}).open().examine()
    assert "3 of the flavors" in caught.value.what
    assert all(name in caught.value.seen for name in ("gpu: resources:VGPU", "bare: ", "gone: Nova shows"))
    with pytest.raises(SettingsError, match="nowhere"):
        Site(networks=("nowhere",)).open().examine()


def test_a_port_that_two_servers_were_made_with_stays_with_the_one_that_is_kept():
    """Two processes of one run may pick the same free port: one of their servers fails."""
    site = Site()
    grant = lease(site)
    (node,) = site.bench.drive(site.open().acquire(grant))
    first = server_of(site, grant)
    site.clock.sleep(1)
    site.cloud.servers["twin"] = replace(
        first, shown=replace(first.shown, id="twin", status="ERROR", created_at="2026-01-01T09:00:00", launched=False)
    )
    site.cloud.history["twin"] = []
    assert site.bench.drive(site.open().acquire(grant)) == (node,)
    assert list(site.cloud.servers) == [node.id]
    assert len(site.cloud.ports) == 1
    site.bench.release(grant)
    assert site.left == []


def test_the_end_of_a_machine_of_ironic_is_not_proven_by_nova():
    site = Site()
    grant = lease(site)
    site.bench.drive(site.open().acquire(grant))
    found = server_of(site, grant)
    found.shown = replace(found.shown, bare_metal=True)
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.UNPROVEN
    assert "Ironic, which does not show its cleaning" in evidence.last_error


def test_a_lease_goes_on_though_its_flavor_was_changed():
    site = Site(flavors={"gpu": {"accelerators": 1}})
    grant = lease(site)
    (node,) = site.bench.drive(site.open().acquire(grant))
    site.cloud.flavors[0] = replace(GPU, specs={})
    assert [again.id for again in site.bench.drive(site.open().acquire(grant))] == [node.id]
    with pytest.raises(FlavorRefused):
        site.open().acquire(lease(site))
    site.bench.release(grant)
