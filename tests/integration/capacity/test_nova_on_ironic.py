"""Whole machines through Nova: real Nova, Placement, Neutron, Glance and Keystone in front of the real Ironic."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from openstack.exceptions import BadRequestException, ConflictException
from pydantic import SecretStr

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.evidence import NodeEvidence, Outcome
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.lease import EndReason, LeaseRequest
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.owned import Held, due_for_return
from mlops_sdk.capacity.provider import Grant, Party
from mlops_sdk.capacity.providers.ironic import IronicLeases
from mlops_sdk.capacity.providers.ironic_api import IronicApi
from mlops_sdk.capacity.providers.nova import NovaLeases
from mlops_sdk.capacity.providers.nova_http import NovaHttp
from mlops_sdk.client import Client
from mlops_sdk.clock import SystemClock
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import KeystoneSettings, NovaSettings
from mlops_sdk.errors import AccessDenied, FlavorRefused, MlopsError, NoCapacity
from mlops_sdk.identity.credential import CredentialBroker, CredentialRequest
from mlops_sdk.identity.keystone import KeystoneCredentials
from mlops_sdk.identity.ssh_keys import client_key
from mlops_sdk.local import control
from mlops_sdk.local.flavors import METAL_FLAVOR, METAL_RESOURCE
from mlops_sdk.local.inventory import METAL_CLASS
from mlops_sdk.local.services import metal
from mlops_sdk.names import run_id_for
from mlops_sdk.remote.ssh import Host, run_once
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.testing.provider_contract import CHECKS, Bench
from support import eventually, operator_of
from support_compute import ComputeHandle, compute_stack, create, settled, take_back_servers

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]

CLOCK = SystemClock()
OURS, NOBODYS = "metal-01", "metal-02"  # the second one belongs to no project
EXPECTED = {METAL_FLAVOR: {"delivery": "bare_metal", "accelerators": 8, "card": "H200"}}


CHECKS_OF_ONE = [
    check
    for check in CHECKS
    if not check.__name__.startswith(("a_stranger", "too_few", "a_crash"))  # these need more machines, or an hour
]
_HOMEWARD = {
    **dict.fromkeys(("active", "deploy failed", "error"), "deleted"),
    "clean failed": "manage",
    "manageable": "provide",
}


class Killed(BaseException):
    """As `kill -9` at that point."""


class Site:
    """A deployment of its own on a stack whose Nova offers machines of its Ironic."""

    def __init__(self, handle: ComputeHandle) -> None:
        self.handle = handle
        self.operator = operator_of(handle.admin)
        self.s3 = MemoryS3()
        self.deployment = run_id_for(handle.settings.deployment_id, "metal")
        nova = NovaSettings(networks=(handle.offers["network"],), image=handle.offers["image"], flavors=EXPECTED)
        lease = handle.settings.lease.model_copy(update={"renew_for_s": 8.0, "poll_s": 0.5, "clean_timeout_s": 90.0})
        changes = {"nova": nova, "deployment_id": self.deployment, "lease": lease}
        self.settings = handle.settings.model_copy(update=changes)
        self.api = NovaHttp(Cloud(self.settings.keystone))

    def party(self, by: Any, boundary: Boundary) -> Party:
        fence = Fence(memory_store(self.s3), now=self.api.now, ttl_s=6.0)
        return Party(settings=self.settings, fence=fence, clock=CLOCK, by=by, boundary=boundary)

    def open(
        self, boundary: Boundary = no_boundary, *, by: Any = "run", login: KeystoneSettings | None = None
    ) -> NovaLeases:
        api = NovaHttp(Cloud(login or self.settings.keystone))
        return NovaLeases(api, self.party(by, boundary))

    def ironic(self, by: Any = "run") -> IronicLeases:
        api = IronicApi(Cloud(self.settings.keystone))
        return IronicLeases(api, self.party(by, no_boundary), ours=api)

    @property
    def bench(self) -> Bench:
        return Bench(
            open=self.open, clock=CLOCK, deployment_id=self.deployment, resource_class=METAL_FLAVOR, plant=_nothing
        )

    def grant(self, **changes: Any) -> Grant:
        return self.bench.grant(**{"nodes": 1, **changes})

    def node(self, name: str) -> Any:
        """As who owns the cloud sees it."""
        return self.operator.baremetal.get_node(name)

    def patch(self, name: str, path: str, value: Any) -> None:
        def patched() -> bool:
            try:
                self.operator.baremetal.patch_node(name, [{"op": "add", "path": path, "value": value}])
            except (ConflictException, BadRequestException):
                return False
            return True

        eventually(patched, within_s=60, what=f"{name} takes {path}")

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Within the block, Nova offers the other machine only."""
        self.operator.baremetal.set_node_maintenance(name, "of a test")
        self.wait_for_offer(1)
        try:
            yield
        finally:
            self.operator.baremetal.unset_node_maintenance(name)

    def offered(self) -> int:
        """How many of them Placement would give now."""
        reply = self.handle.operator().session.get(
            f"/allocation_candidates?resources={METAL_RESOURCE}:1",
            endpoint_filter={"service_type": "placement"},
            headers={"OpenStack-API-Version": "placement 1.36"},
        )
        return len(reply.json()["allocation_requests"])

    def wait_for_offer(self, machines: int) -> None:
        eventually(lambda: self.offered() == machines, within_s=60, what=f"Nova offers {machines} of the machines")

    @property
    def left(self) -> list[str]:
        """Servers, ports, and machines that are not where they were."""
        things = [*self.api.list_servers(), *self.api.list_ports()]
        nodes = [node for node in self.operator.baremetal.nodes(details=True) if node.instance_id]
        return [str(thing) for thing in things] + [node.name for node in nodes]

    def reap(self) -> tuple[NodeEvidence, ...]:
        """What the reaper does with all that is overdue, until nothing is."""
        reaper = self.open(by="reaper", login=self.handle.reaper_settings.keystone)
        found: list[NodeEvidence] = []

        def nothing_is_left() -> bool:
            owned = list(reaper.list_owned())
            for item, reason in due_for_return(owned, deployment_id=str(self.deployment), now=reaper.now(), skew_s=1):
                returning = reaper.returning(item.held, reason=reason, entitled=lambda _n, _m: True, run_key="x")
                while (evidence := returning.step()) is None:
                    CLOCK.sleep(0.3)
                found.append(evidence)
            return not owned

        eventually(nothing_is_left, within_s=90, what="the reaper finds nothing any more")
        return tuple(found)


def _nothing(_grant: Grant) -> Callable[[], bool]:
    return lambda: True


@pytest.fixture(scope="module")
def handle() -> Iterator[ComputeHandle]:
    """An embedded stack with Nova, and Ironic with the two machines that Nova offers."""
    with compute_stack(Path(__file__).parents[3] / ".mlops" / "stacks" / "metal", only=("metal",)) as found:
        yield found


@pytest.fixture
def site(handle: ComputeHandle) -> Iterator[Site]:
    """Both machines are there before and after; what a test did to them is undone."""
    found = Site(handle)
    mend(found)
    yield found
    mend(found)


def mend(site: Site) -> None:
    """Take away faults, servers and allocations, and bring both machines back to where they belong."""
    api = site.operator.baremetal
    for name in (OURS, NOBODYS):
        if "fault" in site.node(name).extra:
            site.patch(name, "/extra/fault", {})
    take_back_servers(site.handle.operator())

    def is_at_home(node: Any) -> bool:
        try:
            if node.is_maintenance:
                api.unset_node_maintenance(node)
            elif target := _HOMEWARD.get(node.provision_state):
                api.set_node_provision_state(node, target)
        except (BadRequestException, ConflictException):
            return False  # on its way: look again
        return node.provision_state == "available" and not node.instance_id and not node.is_maintenance

    def at_home() -> bool:
        return all([is_at_home(node) for node in api.nodes(details=True)])  # noqa: C419 - all are sent home at once

    eventually(at_home, within_s=120, what="both machines are available")
    for allocation in api.allocations():
        api.delete_allocation(allocation, ignore_missing=True)
    site.wait_for_offer(2)


def dying(at: str, *, after: bool = True) -> Boundary:
    """Whoever acts is killed around this call."""

    @contextmanager
    def boundary(what: str, *_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        if what == at and not after:
            raise Killed(what)
        yield {}
        if what == at:
            raise Killed(what)

    return boundary


def log_in(grant: Grant, node: Node, argv: list[str]) -> str:
    key = client_key(grant.broker_key.get_secret_value(), grant.run_id, grant.generation)
    host = Host(
        name=node.name, address=node.address, host_public_key=node.host_public_key, client_private_key=key.private
    )
    return run_once(host, argv, timeout_s=10)


def live(site: Site, grant: Grant, boundary: Boundary) -> None:
    """Lease and give back."""
    provider = site.open(boundary)
    site.bench.drive(provider.acquire(grant))
    site.bench.release(grant, provider)


@pytest.mark.parametrize("check", CHECKS_OF_ONE, ids=lambda check: check.__name__)
def test_leases_of_whole_machines_keep_the_contract(site: Site, check: Callable[[Bench], None]):
    """What of it can be kept with one machine; `test_nova_as_a_provider` keeps all of it on virtual ones."""
    with site.without(NOBODYS):
        check(replace(site.bench, nodes=1))
    assert site.left == []


def test_a_whole_machine_is_leased_through_nova_and_back_when_ironic_has_cleaned_it(site: Site):
    admin = site.handle.admin
    login = site.settings.keystone.model_copy(
        update={
            "username": admin["admin_username"],
            "password": SecretStr(admin["admin_password"]),
            "project_name": "admin",
        }
    )
    quote = site.open(login=login).quote(site.grant().request)
    assert (quote.free, quote.notes[0]) == (2, f"{METAL_FLAVOR}: bare metal of class {METAL_RESOURCE}")
    grant = site.grant()
    with site.without(NOBODYS):
        (node,) = site.bench.drive(site.open().acquire(grant))
        assert (node.gpus, node.resource_class) == (8, METAL_FLAVOR)
        assert "CUSTOM_GPU_H200" in node.traits
        assert log_in(grant, node, ["hostname"]).strip() == node.name
        log_in(grant, node, ["sh", "-c", "echo secret > /scratch/weights"])
        machine = site.node(OURS)
        assert (machine.provision_state, machine.instance_id) == ("active", node.id)
        assert site.offered() == 0
        (port,) = site.api.list_ports([grant.name(0)])
        assert port.metal is not None
        assert port.metal.node_id == machine.id
        assert site.open().renew(grant) == 1
        (renewed,) = site.api.list_ports([grant.name(0)])
        assert renewed.metal == port.metal
        (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.CLEANED
    assert f"machine {OURS}: available" in evidence.steps[0]
    assert "erase_scratch" in evidence.steps[0]
    assert evidence.cleaned_at
    machine = site.node(OURS)
    assert (machine.provision_state, machine.power_state) == ("available", "power off")
    assert machine.extra["cleaned"]["erased_entries"] == 1
    assert site.left == []
    site.wait_for_offer(2)


def test_a_run_reads_the_end_of_its_machine_with_its_own_credential(site: Site):
    """Of Ironic it may read machines, and nothing else."""
    broker = CredentialBroker(KeystoneCredentials(Cloud(site.settings.keystone)), site.settings.broker_key)
    grant, now = site.grant(), site.api.now()
    wanted = CredentialRequest(
        run_id=grant.run_id,
        deployment_id=site.deployment,
        generation=1,
        deadline=now + timedelta(minutes=10),
        grace_s=60,
        provider="nova",
    )
    login = broker.mint(wanted, now=now).login(site.settings.keystone)
    try:
        with site.without(NOBODYS):
            site.bench.drive(site.open(login=login).acquire(grant))
            machine = site.node(OURS)
            with pytest.raises(AccessDenied):
                IronicApi(Cloud(login)).tear_down(machine.id)
            (evidence,) = site.bench.release(grant, site.open(login=login))
        assert evidence.outcome is Outcome.CLEANED
        assert site.left == []
    finally:
        broker.revoke(wanted.name)


def test_a_run_on_a_whole_machine_is_proven_to_be_back_by_what_ironic_did(site: Site):
    settings = site.handle.settings.model_copy(update={"nova": site.settings.nova})
    client = Client(settings)
    deadline = client.services.now() + timedelta(minutes=20)
    request = LeaseRequest(nodes=1, resource_class=METAL_FLAVOR, deadline=deadline, provider="nova", wait_s=30)
    with site.without(NOBODYS):
        with client.start_run(name=f"metal-{uuid.uuid4()}") as run:
            lease = run.lease(request)
            assert [node.gpus for node in lease.nodes] == [8]
        proof = run.prove()
    assert proof.complete, proof.missing
    (words,) = [item.evidence for item in proof.items if item.kind.value == "machine"]
    assert f"machine {OURS}: available: " in words
    assert "erase_scratch" in words
    assert site.left == []


def test_of_a_machine_that_ironic_does_not_show_us_the_end_is_said_to_be_unproven(site: Site):
    """While it is deployed we see it, as lessee of it; its cleaning is its owner's business."""
    grant = site.grant()
    with site.without(OURS):
        (node,) = site.bench.drive(site.open().acquire(grant))
        assert site.node(NOBODYS).instance_id == node.id
        (port,) = site.api.list_ports([grant.name(0)])
        assert port.metal is not None
        assert port.metal.node_id == site.node(NOBODYS).id
        (evidence,) = site.bench.release(grant)
    assert (evidence.outcome, evidence.clean) == (Outcome.UNPROVEN, False)
    assert "Ironic, which does not show its cleaning to this login" in evidence.last_error
    assert site.left == []


@pytest.mark.parametrize("at", ["port.create", "allocation.create", "machine.tear_down", "port.delete"])
def test_of_a_run_that_dies_at_any_point_the_reaper_leaves_nothing(site: Site, at: str):
    grant = site.grant()
    with site.without(NOBODYS):
        with pytest.raises(Killed):
            live(site, grant, dying(at))
        evidence = site.reap()
    assert site.left == []
    outcomes = {each.resource: each.outcome for each in evidence}
    if at in {"allocation.create", "machine.tear_down"}:  # the machine's end is proven by the note in the port
        assert Outcome.CLEANED in outcomes.values()
    assert all(each.clean for each in evidence)
    assert site.node(OURS).provision_state == "available"


def test_machines_that_cannot_be_deployed_are_no_capacity_and_are_back(site: Site):
    """Nova tries the other one, and then has none."""
    for name in (OURS, NOBODYS):
        site.patch(name, "/extra/fault", {"deploy": "fail"})
    with pytest.raises(NoCapacity, match="Exhausted all hosts"):
        site.bench.drive(site.open().acquire(site.grant()))
    assert site.left == []

    def are_back() -> bool:
        return all(site.node(name).provision_state == "available" for name in (OURS, NOBODYS))

    eventually(are_back, within_s=60, what="Nova gave both back, and Ironic cleaned them")


@pytest.mark.parametrize(("fault", "state"), [("clean", "clean failed"), ("tear_down", "error")])
def test_a_machine_that_does_not_come_back_is_not_clean_whatever_nova_says(site: Site, fault: str, state: str):
    """Nova forgets the server and reports that its host ended it, also when Ironic could not."""
    grant = site.grant()
    with site.without(NOBODYS):
        (node,) = site.bench.drive(site.open().acquire(grant))
        site.patch(OURS, "/extra/fault", {fault: "fail"})
        (evidence,) = site.bench.release(grant)
        assert evidence.outcome is Outcome.NOT_CLEAN
        assert state in evidence.last_error
        assert "injected fault" in evidence.last_error
        assert site.left == []
        assert site.node(OURS).provision_state == state
        ended = [action.result for action in site.api.actions(node.id) or () if "terminate" in action.event]
        assert ended == ["Success"]
        assert site.offered() == 0


def test_a_machine_that_nova_forgot_while_its_host_was_down_is_ended_by_the_reaper(site: Site):
    """Nova deletes a server whose host is away from its own books only, and never comes back to the machine."""
    grant, services = site.grant(), site.handle.operator().compute
    site.settings = site.settings.model_copy(
        update={"lease": site.settings.lease.model_copy(update={"clean_timeout_s": 15.0})}
    )

    def is_away() -> bool:
        return all(each.state == "down" for each in services.services() if each.host == metal.HOST)

    with site.without(NOBODYS):
        (node,) = site.bench.drive(site.open().acquire(grant))
        with control.held(site.handle.layout, metal.NAME):
            eventually(is_away, within_s=120, what="Nova sees that the host is away")
            (evidence,) = site.bench.release(grant)
            assert evidence.outcome is Outcome.PENDING
            assert "which Nova has forgotten" in evidence.last_error
            assert site.api.get_server(node.id) is None
            assert log_in(grant, node, ["hostname"]).strip() == node.name  # it goes on running
        assert site.node(OURS).instance_id == node.id
        (ended,) = site.reap()
    assert ended.outcome is Outcome.CLEANED
    assert site.left == []


def test_what_nova_has_the_provider_of_ironic_leaves_alone(site: Site):
    grant = site.grant()
    with site.without(NOBODYS):
        (node,) = site.bench.drive(site.open().acquire(grant))
        before = site.node(OURS)
        ironic = site.ironic()
        wanted = site.grant(provider="ironic", resource_class=METAL_CLASS)
        quote = ironic.quote(wanted.request)
        assert (quote.free, quote.busy) == (0, 1)
        with pytest.raises(NoCapacity):
            site.bench.drive(ironic.acquire(wanted))
        (seen,) = [machine for machine in ironic.pool() if machine.name == OURS]
        assert (seen.held_by, seen.free, seen.marker) == ("somebody else", False, None)
        assert not ironic.take_out(before.id, "of a test")
        with pytest.raises(MlopsError, match="it is in use"):
            ironic.clean(OURS)
        assert list(site.ironic("reaper").list_owned()) == []
        held = Held(name=grant.name(0), allocation_id=before.id, node_id=before.id, deployed=True)
        returning = site.ironic("reaper").returning(
            held, reason=EndReason.NOT_RENEWED, entitled=lambda _n, _m: True, run_key="x"
        )
        assert returning.step() is not None
        after = site.node(OURS)
        assert (after.instance_id, after.provision_state, after.is_maintenance) == (node.id, "active", False)
        assert log_in(grant, node, ["hostname"]).strip() == node.name
        site.bench.release(grant)
    assert site.left == []


def test_what_is_leased_from_ironic_nova_does_not_give_out(site: Site):
    ironic, held = site.ironic(), site.grant(provider="ironic", resource_class=METAL_CLASS)
    with site.without(NOBODYS):
        (machine,) = site.bench.drive(ironic.acquire(held))
        with pytest.raises(NoCapacity, match=r"No valid host|Exhausted all hosts"):
            site.bench.drive(site.open().acquire(site.grant()))
        assert site.node(OURS).id == machine.id
        assert log_in(held, machine, ["true"]) == ""
        (evidence,) = site.bench.release(held, ironic)
        assert evidence.outcome is Outcome.CLEANED
    assert site.left == []
    site.wait_for_offer(2)


def test_a_colleagues_whole_machine_is_left_alone_by_the_reaper(site: Site):
    """In our project, under a name like ours, without our marker."""
    cloud = site.handle.user()
    with site.without(NOBODYS):
        server = settled(cloud, create(cloud, site.handle.offers, name="ml-aaaaaaaaaaaa-g1-0", flavor=METAL_FLAVOR))
        assert server.status == "ACTIVE"
        reaper = site.open(by="reaper", login=site.handle.reaper_settings.keystone)
        assert list(reaper.list_owned()) == []
        assert site.node(OURS).instance_id == server.id


def test_a_flavor_that_says_too_little_is_refused_before_anything_is_made(site: Site):
    operator = site.handle.operator().compute
    flavor = operator.find_flavor(METAL_FLAVOR)
    operator.delete_flavor_extra_specs_property(flavor, "resources:MEMORY_MB")
    try:
        with pytest.raises(FlavorRefused, match="resources:MEMORY_MB"):
            site.open().quote(site.grant().request)
    finally:
        operator.create_flavor_extra_specs(flavor, {"resources:MEMORY_MB": "0"})
    assert site.left == []
