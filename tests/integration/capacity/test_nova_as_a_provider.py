"""The contract of providers, and what is Nova's own, on real Nova, Neutron, Cinder, Glance and Placement."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.lease import EndReason, LeaseRequest
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.owned import Held, Owned, Standing, due_for_return
from mlops_sdk.capacity.provider import Grant, Party, Provider
from mlops_sdk.capacity.providers.nova import NovaLeases
from mlops_sdk.capacity.providers.nova_api import ServerOrder
from mlops_sdk.capacity.providers.nova_http import NovaHttp
from mlops_sdk.capacity.providers.nova_marker import to_line, to_metadata
from mlops_sdk.capacity.reaper import Due, Reaper
from mlops_sdk.client import Client
from mlops_sdk.clock import SystemClock
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import KeystoneSettings, NovaSettings, Settings
from mlops_sdk.errors import FlavorRefused, NoCapacity, NodeFailed
from mlops_sdk.identity.credential import CredentialBroker, CredentialRequest
from mlops_sdk.identity.keystone import KeystoneCredentials
from mlops_sdk.identity.ssh_keys import client_key
from mlops_sdk.names import run_id_for
from mlops_sdk.remote.ssh import Host, run_once
from mlops_sdk.run import Run
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.testing.provider_contract import CHECKS, Bench
from support import eventually
from support_compute import ComputeHandle, take_back_servers

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]

CLOCK = SystemClock()
CARDS = 4  # of the stack's host, for passthrough
PASSTHROUGH, SMALL, MIG = "gpu.a100.pt", "cpu.small", "gpu.a100.mig"
EXPECTED = {
    PASSTHROUGH: {
        "delivery": "passthrough",
        "accelerators": 1,
        "numa_affinity": "required",
        "pinned": True,
        "placement_class": "CUSTOM_GPU_A100_80GB",
    },
    MIG: {"delivery": "mig", "accelerators": 1, "card": "A100 80GB", "pinned": True},
    SMALL: {"delivery": "none"},
}


class Site:
    """A deployment of its own on the stack's cloud."""

    def __init__(self, compute: ComputeHandle, **nova: Any) -> None:
        self.compute = compute
        self.s3 = MemoryS3()
        self.deployment = run_id_for(compute.settings.deployment_id, "nova contract")
        values = {"networks": (compute.offers["network"],), "image": compute.offers["image"], "flavors": EXPECTED}
        self.nova = NovaSettings(**{**values, **nova})
        lease = compute.settings.lease.model_copy(update={"renew_for_s": 6.0, "poll_s": 0.5, "ssh_timeout_s": 30.0})
        changes = {"nova": self.nova, "deployment_id": self.deployment, "lease": lease}
        self.settings = compute.settings.model_copy(update=changes)
        self.api = NovaHttp(Cloud(self.settings.keystone))

    def open(
        self,
        boundary: Boundary = no_boundary,
        *,
        by: Any = "run",
        login: KeystoneSettings | None = None,
        api: type[NovaHttp] = NovaHttp,
    ) -> NovaLeases:
        fence = Fence(memory_store(self.s3), now=self.api.now, ttl_s=6.0)
        party = Party(settings=self.settings, fence=fence, clock=CLOCK, by=by, boundary=boundary)
        return NovaLeases(api(Cloud(login or self.settings.keystone)), party)

    @property
    def bench(self) -> Bench:
        def open_provider(boundary: Boundary = no_boundary) -> Provider:
            return self.open(boundary)

        return Bench(
            open=open_provider,
            clock=CLOCK,
            deployment_id=self.deployment,
            resource_class=SMALL,
            plant=self.plant,
            nodes=2,
        )

    def plant(self, grant: Grant) -> Callable[[], bool]:
        """A server of another run under this grant's name, with a port of its own."""
        name, network = grant.name(0), self.api.find_network(self.nova.networks[0])
        marker = self.bench.grant().marker(0, now=self.api.now(), renew_for_s=60)
        flavor = next(found.id for found in self.api.list_flavors() if found.name == SMALL)
        port = self.api.create_port(name=name, network=network, line=to_line(marker), groups=())
        order = ServerOrder(
            name=name,
            flavor=flavor,
            image=self.api.find_image(self.nova.image),
            ports=(port.id,),
            metadata=to_metadata(marker),
        )
        server_id = self.api.create_server(order)

        def is_active() -> bool:
            found = self.api.get_server(server_id)
            return found is not None and found.status == "ACTIVE"

        eventually(is_active, within_s=60, what="the stranger's server runs")

        def take_away() -> bool:
            found = self.api.get_server(server_id)
            ports = [each.line for each in self.api.list_ports([name])]
            untouched = found is not None and (found.status, found.task, found.marker) == ("ACTIVE", "", marker)
            self.api.delete_server(server_id)
            eventually(lambda: self.api.get_server(server_id) is None, within_s=60, what="it is gone")
            self.api.delete_port(port.id)
            return untouched and ports == [to_line(marker)]

        return take_away

    @property
    def left(self) -> list[str]:
        """Servers, ports and volumes of the project."""
        things = [*self.api.list_servers(), *self.api.list_ports(), *self.api.list_volumes()]
        return [f"{type(thing).__name__} {thing.name}" for thing in things]


@pytest.fixture
def site(compute: ComputeHandle) -> Iterator[Site]:
    found = Site(compute)
    yield found
    take_back_servers(compute.operator())


class OfServersThatNeverBoot(NovaHttp):
    """The host makes them, and they answer nobody."""

    def create_server(self, order: ServerOrder) -> str:
        return super().create_server(replace(order, metadata={**order.metadata, "fault": "no-boot"}))


def lease(site: Site, flavor: str = SMALL, **changes: Any) -> Grant:
    return site.bench.grant(**{"nodes": 1, "resource_class": flavor, **changes})


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_leases_on_the_real_nova_keep_the_contract(check: Callable[[Bench], None], compute: ComputeHandle):
    site = Site(compute, most_servers=CARDS)
    few = check.__name__ == "too_few_machines_hold_nothing"
    bench = replace(
        site.bench, resource_class=PASSTHROUGH if few else SMALL, nodes=1 if few or "crash" in check.__name__ else 2
    )
    try:
        check(bench)
        assert site.left == []
    finally:
        take_back_servers(compute.operator())


@pytest.mark.parametrize("volumes", [{"data_volume_gib": 1}, {"root_volume_gib": 1, "data_volume_gib": 1}])
def test_a_machine_is_one_that_lets_us_in_and_its_disks_go_with_it(site: Site, volumes: dict[str, int]):
    site = Site(site.compute, **volumes)
    grant = lease(site, MIG)
    (node,) = site.bench.drive(site.open().acquire(grant))
    assert (node.gpus, node.traits, node.resource_class) == (1, ("CUSTOM_GPU_A100_80GB",), MIG)
    assert log_in(grant, node, ["hostname"]).strip() == node.name
    assert [thing.split()[0] for thing in site.left] == ["Server", "Port", *["Volume"] * len(volumes)]
    parents = {item.kind: item.parent for item in site.open().list_owned()}
    assert parents == {"server": "", "port": node.id, "volume": node.id}
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.CLEANED
    assert evidence.steps[0] == f"server {node.id}: its host deleted the guest and its disk"
    assert sum("volume" in step for step in evidence.steps) == len(volumes)
    assert evidence.cleaned_at.endswith("+00:00")
    assert site.left == []
    seen = site.open().inspect(Held(name=grant.name(0), node_id=node.id, deployed=True))
    assert (seen.standing, seen.outcome) == (Standing.ENDED, Outcome.CLEANED)


def test_more_cards_than_there_are_is_no_capacity_in_novas_own_words(site: Site):
    with pytest.raises(NoCapacity, match="No valid host was found") as caught:
        site.bench.drive(site.open().acquire(lease(site, PASSTHROUGH, nodes=CARDS + 1)))
    assert "Placement does not show this login" in caught.value.seen
    assert site.left == []


def test_a_full_quota_is_no_capacity(site: Site):
    nodes = site.compute.offers["instances"]["ml-research"] + 1
    site = Site(site.compute, most_servers=99)
    assert not site.open().quote(lease(site, nodes=nodes).request).available_now
    with pytest.raises(NoCapacity, match="Quota exceeded"):
        site.bench.drive(site.open().acquire(lease(site, nodes=nodes)))
    assert site.left == []


def test_a_quote_of_an_operator_counts_what_placement_has(site: Site):
    admin = site.compute.admin
    login = site.settings.keystone.model_copy(
        update={
            "username": admin["admin_username"],
            "password": SecretStr(admin["admin_password"]),
            "project_name": "admin",
        }
    )
    quote = site.open(login=login).quote(lease(site, PASSTHROUGH).request)
    assert quote.notes == (f"{PASSTHROUGH}: 1 x accelerators by passthrough", f"the hosts have room for {CARDS}")
    assert (quote.free, quote.busy) == (CARDS, 0)
    quote = site.open().quote(lease(site, MIG).request)
    assert quote.notes[0] == f"{MIG}: 1 x A100 80GB 1g.10gb by mig"
    assert "which hosts are free is not known" in quote.notes[1]


def test_a_flavor_that_cannot_be_used_is_refused_before_anything_is_made(site: Site):
    wrong = Site(site.compute, flavors={PASSTHROUGH: {"accelerators": 8, "card": "H200", "numa_nodes": 2}})
    with pytest.raises(FlavorRefused) as caught:
        wrong.open().quote(lease(wrong, PASSTHROUGH).request)
    for said in ("1 a server, expected 8", "trait:CUSTOM_GPU_H200: missing", "hw:numa_nodes: 1"):
        assert said in caught.value.seen
    with pytest.raises(FlavorRefused, match="trait:CUSTOM_NVLINK: missing"):
        site.open().quote(lease(site, MIG, traits=("CUSTOM_NVLINK",)).request)
    assert site.left == []


def test_a_server_that_never_boots_is_a_failed_machine(site: Site):
    site = Site(site.compute)
    site.settings = site.settings.model_copy(
        update={"lease": site.settings.lease.model_copy(update={"ssh_timeout_s": 3.0})}
    )
    grant = lease(site)
    with pytest.raises(NodeFailed, match=r"did not let us in within 3 s") as caught:
        site.bench.drive(site.open(api=OfServersThatNeverBoot).acquire(grant))
    assert "ACTIVE" in caught.value.seen
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.CLEANED
    assert site.left == []


def test_a_server_that_its_host_cannot_end_is_not_clean_until_it_can(site: Site):
    grant = lease(site)
    (node,) = site.bench.drive(site.open().acquire(grant))
    operator = site.compute.operator()
    operator.compute.set_server_metadata(node.id, fault="destroy")
    try:
        (evidence,) = site.bench.release(grant)
        assert (evidence.outcome, evidence.provision_state) == (Outcome.NOT_CLEAN, "ERROR")
        assert site.open().inspect(Held(name=grant.name(0))).standing is Standing.HELD
    finally:  # Nova lets nobody change the metadata of a server in ERROR
        operator.compute.reset_server_state(node.id, "active")
        operator.compute.delete_server_metadata(node.id, keys=["fault"])
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.CLEANED
    assert site.left == []


def test_the_reaper_returns_what_a_dead_run_holds_and_leaves_a_strangers(site: Site):
    take_away = site.plant(lease(site))
    grant = lease(site)
    site.bench.drive(site.open().acquire(grant))
    reaper = site.open(by="reaper", login=site.compute.reaper_settings.keystone)
    found: list[tuple[Owned, EndReason]] = []

    def is_due() -> bool:
        now = reaper.now()
        found[:] = due_for_return(reaper.list_owned(), deployment_id=str(site.deployment), now=now, skew_s=1)
        return bool(found)

    eventually(is_due, within_s=20, what="nobody renews it")
    ((item, reason),) = found
    assert (item.kind, item.name, reason) == ("server", grant.name(0), EndReason.NOT_RENEWED)
    returning = reaper.returning(item.held, reason=reason, entitled=lambda _n, _m: True, run_key="x")
    while (evidence := returning.step()) is None:
        CLOCK.sleep(0.3)
    assert evidence.outcome is Outcome.CLEANED
    assert not is_due()
    assert take_away()
    assert site.left == []


def test_a_run_does_all_of_it_with_its_own_credential(site: Site):
    """Access rules for exactly its calls; with them it can do nothing else."""
    settings = site.settings
    broker = CredentialBroker(KeystoneCredentials(Cloud(settings.keystone)), settings.broker_key)
    now = site.api.now()
    wanted = CredentialRequest(
        run_id=lease(site).run_id,
        deployment_id=site.deployment,
        generation=1,
        deadline=now + timedelta(minutes=10),
        grace_s=60,
        provider="nova",
    )
    login = broker.mint(wanted, now=now).login(settings.keystone)
    try:
        grant = lease(site)
        provider = site.open(login=login)
        (node,) = site.bench.drive(provider.acquire(grant))
        assert provider.renew(grant) == 1
        assert log_in(grant, node, ["true"]) == ""
        (evidence,) = site.bench.release(grant, provider)
        assert evidence.outcome is Outcome.CLEANED
        assert site.left == []
        with pytest.raises(Exception, match="keypairs"):
            Cloud(login).request("compute", "GET", "/v2.1/os-keypairs")
    finally:
        broker.revoke(wanted.name)


def of_runs(site: Site, base: Settings) -> Settings:
    """As a deployment without Ironic has them: a short renewal, so that dead runs are found soon."""
    lease = site.settings.lease.model_copy(update={"renew_for_s": 8.0})
    return base.model_copy(update={"nova": site.nova, "ironic": False, "lease": lease})


def due_of(reaper: Reaper, run: Run) -> list[Due]:
    """What the reaper would take back of a run; what crashed in earlier tests has left claims, which are due, too."""
    return [due for due in reaper.reap_once(dry_run=True).due if run.key in due.resource]


def test_a_run_on_nova_is_attached_to_renewed_and_proven_to_be_back(site: Site):
    client = Client(of_runs(site, site.compute.settings))
    request = LeaseRequest(
        nodes=2, resource_class=MIG, deadline=client.services.now() + timedelta(minutes=20), provider="nova", wait_s=30
    )
    with client.start_run(name=f"nova-{uuid.uuid4()}") as run:
        lease = run.lease(request)
        other = client.attach(run.id)
        assert other.lease().nodes == lease.nodes
        other.close()
        CLOCK.sleep(10)  # longer than one renewal lasts
        reaper = Reaper.connect(of_runs(site, site.compute.reaper_settings))
        assert due_of(reaper, run) == []
    proof = run.prove()
    assert proof.complete, proof.missing
    machines = {item.resource: item.evidence for item in proof.items if item.kind.value == "machine"}
    assert set(machines) == {node.name for node in lease.nodes}
    assert all("its host deleted the guest and its disk" in words for words in machines.values())
    assert site.left == []


def test_one_lost_server_is_ended_by_its_host_before_a_spare_takes_its_place(site: Site):
    client = Client(of_runs(site, site.compute.settings))
    deadline = client.services.now() + timedelta(minutes=20)
    request = LeaseRequest(nodes=2, spares=1, resource_class=SMALL, deadline=deadline, provider="nova", wait_s=30)
    with client.start_run(name=f"spare-{uuid.uuid4()}") as run:
        lease = run.lease(request)
        now = run.replace(lease.nodes[0].name)
        assert now.nodes == (lease.spares[0], lease.nodes[1])
        assert {server.id for server in site.api.list_servers()} == {node.id for node in now.nodes}
    assert run.prove().complete
    assert site.left == []


def test_the_reaper_returns_a_dead_runs_servers_and_writes_it_down(site: Site):
    client = Client(of_runs(site, site.compute.settings))
    request = LeaseRequest(
        nodes=1,
        resource_class=SMALL,
        deadline=client.services.now() + timedelta(minutes=20),
        provider="nova",
        wait_s=30,
    )
    with client.start_run(name=f"dead-{uuid.uuid4()}") as run:
        run.lease(request)
        run.keep()
    reaper = Reaper.connect(of_runs(site, site.compute.reaper_settings))
    eventually(lambda: due_of(reaper, run), within_s=40, what="it is overdue")
    report = reaper.reap_once()
    assert report.errors == ()
    evidence = [item for item in report.evidence if run.key in item.resource]
    assert [(item.outcome, item.released_by) for item in evidence] == [(Outcome.CLEANED, "reaper")]
    assert site.left == []
    reaper.reap_once()  # its credential, when its heartbeat is too old
    assert client.attach(run.key).prove().complete


def test_the_doctor_says_what_there_is(site: Site):
    said = site.open().examine()
    assert f"{MIG} (1 x A100 80GB 1g.10gb by mig)" in said
    assert site.left == []


def log_in(grant: Grant, node: Node, argv: list[str]) -> str:
    key = client_key(grant.broker_key.get_secret_value(), grant.run_id, grant.generation)
    host = Host(
        name=node.name,
        address=node.address,
        host_public_key=node.host_public_key,
        client_private_key=key.private,
        username=node.user,
    )
    return run_once(host, argv, timeout_s=10)
