"""Servers with a card that the real Cyborg hands out: leased, refused, given back; and a card that Nova forgot."""

import multiprocessing
import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from mlops_sdk.capacity.device_profiles import SPEC
from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.providers.nova import NovaLeases
from mlops_sdk.capacity.providers.nova_api import ServerOrder
from mlops_sdk.capacity.providers.nova_http import NovaHttp
from mlops_sdk.capacity.reaper import Reaper
from mlops_sdk.client import Client
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import KeystoneSettings, NovaSettings, Settings
from mlops_sdk.errors import AccessDenied, FlavorRefused, NodeFailed, RemoteError
from mlops_sdk.identity.credential import CredentialBroker, CredentialRequest
from mlops_sdk.identity.keystone import KeystoneCredentials
from mlops_sdk.local import control
from mlops_sdk.run import Run
from support import eventually
from support_compute import ComputeHandle, take_back_servers

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]

GPU, WRONG = "gpu.a30.cyborg", "test.cyborg"
CARDS = 2  # of the stack's host
EXPECTED: dict[str, dict[str, Any]] = {
    GPU: {"delivery": "cyborg", "accelerators": 1, "card": "A30", "pinned": True},
    WRONG: {"delivery": "cyborg"},
}


class Site:
    """A deployment of its own on the stack's cloud, without Ironic."""

    def __init__(self, compute: ComputeHandle, *, flavors: dict[str, dict[str, Any]] | None = None) -> None:
        self.compute = compute
        given = compute.settings.nova
        assert given is not None
        self.nova = NovaSettings.model_validate({**given.model_dump(), "flavors": flavors or EXPECTED})
        self.settings = self._of(compute.settings)
        self.api = NovaHttp(Cloud(self.settings.keystone))
        self.client = Client(self.settings)

    def _of(self, base: Settings, **nova: Any) -> Settings:
        lease = base.lease.model_copy(update={"renew_for_s": 8.0, "metrics_file": ""})
        changes = {"nova": self.nova.model_copy(update=nova), "ironic": False, "lease": lease}
        return base.model_copy(update=changes)

    @property
    def reaper(self) -> Reaper:
        base = self.compute.reaper_settings
        assert base.nova is not None
        assert base.nova.service_login is not None
        return Reaper.connect(self._of(base, service_login=base.nova.service_login))

    def provider(self, *, login: KeystoneSettings | None = None) -> NovaLeases:
        found = self.client.services.provider("nova", login=login)
        assert isinstance(found, NovaLeases)
        return found

    def request(self, flavor: str = GPU, **changes: Any) -> LeaseRequest:
        deadline = self.client.services.now() + timedelta(minutes=20)
        values = {"nodes": 1, "resource_class": flavor, "deadline": deadline, "provider": "nova", "wait_s": 30}
        return LeaseRequest(**{**values, **changes})

    def run(self, what: str) -> Run:
        return self.client.start_run(name=f"{what}-{uuid.uuid4()}")

    @property
    def left(self) -> list[str]:
        """Servers, ports, volumes and accelerator requests of the project."""
        things = [*self.api.list_servers(), *self.api.list_ports(), *self.api.list_volumes()]
        return [f"{type(thing).__name__} {thing.name}" for thing in things] + [str(each) for each in self.bound]

    @property
    def bound(self) -> tuple[Any, ...]:
        found = self.api.accelerator_requests()
        assert found is not None
        return found


@pytest.fixture
def site(compute: ComputeHandle) -> Iterator[Site]:
    found = Site(compute)
    yield found
    take_back_servers(compute.operator())
    login = compute.reaper_settings.nova.service_login if compute.reaper_settings.nova is not None else None
    assert login is not None
    for each in found.bound:
        if each.server:
            NovaHttp(Cloud(found.settings.keystone), Cloud(login)).free_accelerators(each.server)


@pytest.fixture
def wrong(compute: ComputeHandle) -> Iterator[Any]:
    """A flavor that a test fills in; removed at the end."""
    operator = compute.operator()
    flavor = operator.compute.create_flavor(name=WRONG, vcpus=1, ram=1024, disk=1)
    yield lambda specs: operator.compute.create_flavor_extra_specs(flavor, specs)
    operator.compute.delete_flavor(flavor)


def test_a_lease_has_a_card_of_cyborg_until_it_is_given_back(site: Site):
    quote = site.client.quote(site.request())
    told = "1 x A30 by cyborg, device profile a30 (PGPU=1 CUSTOM_GPU_A30=required)"
    assert quote.notes[0] == f"{GPU}: {told}"
    assert any("NUMA" in note for note in quote.notes)
    with site.run("card") as run:
        (node,) = run.lease(site.request(traits=("CUSTOM_GPU_A30",))).nodes
        assert (node.gpus, node.traits) == (1, ("CUSTOM_GPU_A30",))
        (card,) = site.bound
        assert (card.state, card.server, card.profile) == ("Bound", node.id, "a30")
        assert card.device in {"0000:1b:00.0", "0000:9b:00.0"}
    proof = run.prove()
    assert proof.complete, proof.missing
    assert f"Cyborg has nothing bound to server {node.id} any more (a30)" in steps(site, run)
    assert site.left == []


def test_a_quote_of_an_operator_counts_the_cards(site: Site):
    admin = site.compute.admin
    changes = {"username": admin["admin_username"], "password": SecretStr(admin["admin_password"])}
    login = site.settings.keystone.model_copy(update={**changes, "project_name": "admin"})
    quote = site.provider(login=login).quote(site.request())
    assert (quote.free, quote.notes[1]) == (CARDS, f"the hosts have room for {CARDS}")


def test_a_server_that_its_host_cannot_make_leaves_no_card(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mlops_sdk.services.NovaHttp", OfServersThatCannotBeMade)
    with pytest.raises(NodeFailed, match="the test wants it so"), site.run("unmade") as run:
        run.lease(site.request())
    monkeypatch.undo()
    assert any(step.startswith("Cyborg has nothing bound to server") for step in steps(site, run))
    assert site.left == []


def test_what_a_profile_does_not_give_is_refused_before_anything_is_made(site: Site, wrong: Any):
    wrong({SPEC: "nobodys"})
    with pytest.raises(FlavorRefused) as caught, site.run("refused") as run:
        run.lease(site.request(WRONG))
    assert "'nobodys': Cyborg has no device profile of this name; it has a30" in caught.value.seen
    assert "openstack accelerator device profile create nobodys" in caught.value.next_step
    wrong({SPEC: "a30", "resources:PGPU": "1"})
    with pytest.raises(FlavorRefused, match="asks for PGPU already"):
        site.client.quote(site.request(WRONG))
    other = Site(site.compute, flavors={GPU: {"accelerators": 2, "card": "H200"}})
    with pytest.raises(FlavorRefused) as caught:
        other.client.quote(other.request())
    assert "1 a server, expected 2; trait:CUSTOM_GPU_H200: missing in device profile 'a30'" in caught.value.seen
    assert site.left == []


def test_a_run_does_it_with_its_own_credential_and_may_not_touch_a_card(site: Site):
    broker = CredentialBroker(KeystoneCredentials(Cloud(site.settings.keystone)), site.settings.broker_key)
    now = site.api.now()
    wanted = CredentialRequest(
        run_id=uuid.uuid4(),
        deployment_id=site.settings.deployment_id,
        generation=1,
        deadline=now + timedelta(minutes=10),
        grace_s=60,
        provider="nova",
    )
    login = broker.mint(wanted, now=now).login(site.settings.keystone)
    try:
        assert "device profile a30 (PGPU=1" in site.provider(login=login).quote(site.request()).notes[0]
        assert NovaHttp(Cloud(login)).accelerator_requests() == ()
        with pytest.raises(AccessDenied):
            Cloud(login).request("accelerator", "POST", "/v2/accelerator_requests", body={"device_profile_name": "a30"})
    finally:
        broker.revoke(wanted.name)


def test_a_card_that_nova_left_bound_is_told_by_the_run_and_freed_by_the_reaper(site: Site):
    """Nova does not look whether Cyborg let go: the card is lost to whoever Placement gives it to next."""
    with site.run("forgotten") as run:
        (node,) = run.lease(site.request()).nodes
        with control.held(site.compute.layout, "cyborg-api"):
            site.api.delete_server(node.id)
            eventually(lambda: site.api.get_server(node.id) is None, within_s=60, what="Nova forgets it")
        eventually(lambda: answers(site), within_s=60, what="Cyborg is back")
    (card,) = site.bound
    assert (card.state, card.server) == ("Bound", node.id)
    proof = run.prove()
    assert not proof.complete
    assert "accelerator request" in str(proof.missing), proof.missing
    ours, delete = Cloud(site.settings.keystone), {"instance": node.id}
    with pytest.raises(AccessDenied, match="service token"):
        ours.request("accelerator", "DELETE", "/v2/accelerator_requests", params=delete)
    reaper, said = site.reaper, []

    def is_freed() -> bool:
        report = reaper.reap_once()
        said.extend(report.evidence)
        return site.bound == ()

    eventually(is_freed, within_s=60, what="the reaper frees the card")
    eventually(lambda: said or said.extend(reaper.reap_once().evidence), within_s=30, what="and writes it down")
    assert [(item.outcome, item.released_by) for item in said] == [(Outcome.CLEANED, "reaper")]
    assert f"accelerator requests of server {node.id} deleted, which Nova had left bound to it" in said[0].steps
    eventually(lambda: is_proven(site, reaper, run), within_s=40, what="its other claims expire")
    assert site.left == []


def test_who_gets_a_card_that_is_still_bound_to_another_is_told_so(site: Site):
    """Placement counts it as free. Nova takes its own request back when the binding fails: nothing is left of it."""
    with site.run("all cards") as run:
        nodes = run.lease(site.request(nodes=CARDS)).nodes
        with control.held(site.compute.layout, "cyborg-api"):
            for node in nodes:
                site.api.delete_server(node.id)
            for node in nodes:
                eventually(lambda node=node: site.api.get_server(node.id) is None, within_s=60, what="it is forgotten")
        eventually(lambda: answers(site), within_s=60, what="Cyborg is back")
        with (
            pytest.raises(NodeFailed, match="Failed to bind accelerator requests") as caught,
            site.run("next") as next_run,
        ):
            next_run.lease(site.request())
        assert "`mlops doctor` names it" in caught.value.next_step
        said = Site(site.compute, flavors={GPU: EXPECTED[GPU]}).provider().examine()
        assert all(f"accelerator request {each.id}" in said for each in site.bound)
        assert {each.server for each in site.bound} == {node.id for node in nodes}


class OfServersThatCannotBeMade(NovaHttp):
    """Their host fails when their cards are bound."""

    def create_server(self, order: ServerOrder) -> str:
        return super().create_server(replace(order, metadata={**order.metadata, "fault": "spawn"}))


class DiesBeforeTheReply(NovaHttp):
    """The process is killed when Nova has the request and nobody has heard of it."""

    def create_server(self, order: ServerOrder) -> str:
        super().create_server(order)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_kill_between_request_and_reply_leaves_nothing_after_the_reaper(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mlops_sdk.services.NovaHttp", DiesBeforeTheReply)
    process = multiprocessing.get_context("fork").Process(target=lambda: site.run("dead").lease(site.request()))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.undo()
    eventually(lambda: len(site.bound) == 1, within_s=60, what="its card is bound")
    reaper = site.reaper
    eventually(lambda: "server" in due(reaper), within_s=60, what="nobody renews it")
    server = site.bound[0].server
    report = reaper.reap_once()
    assert report.errors == ()
    (evidence,) = [item for item in report.evidence if item.node_id == server]
    assert evidence.outcome is Outcome.CLEANED
    assert f"Cyborg has nothing bound to server {server} any more (a30)" in evidence.steps
    assert site.left == []


def test_requests_that_belong_to_no_server_are_told_and_left_alone(site: Site):
    """What Nova leaves that dies before it binds them; whose they are nobody can tell."""
    site, user = Site(site.compute, flavors={GPU: EXPECTED[GPU]}), site.compute.user()
    (made,) = user.accelerator.post("/accelerator_requests", json={"device_profile_name": "a30"}).json()["arqs"]
    try:
        assert made["state"] == "Initial"
        assert f"openstack accelerator arq delete {made['uuid']}" in site.provider().examine()
        assert set(due(site.reaper)) <= {"fence"}
        site.reaper.reap_once()
        assert [each.id for each in site.bound] == [made["uuid"]]
    finally:
        user.accelerator.delete("/accelerator_requests", params={"arqs": made["uuid"]})
    assert site.left == []


def answers(site: Site) -> bool:
    """Cyborg does."""
    try:
        return site.api.accelerator_requests() is not None
    except RemoteError:
        return False


def due(reaper: Reaper) -> list[str]:
    """Kinds of what the reaper would return now; claims of earlier tests may be among it."""
    return [each.kind for each in reaper.reap_once(dry_run=True).due]


def is_proven(site: Site, reaper: Reaper, run: Run) -> bool:
    """Everything of a run was given back, and nothing about it is under way."""
    reaper.reap_once()
    return site.client.attach(run.key).prove().complete


def steps(site: Site, run: Run) -> list[str]:
    """What was done to give a run's machines back."""
    found = site.client.attach(run.key).history()
    return [
        step
        for one in found.generations.values()
        for piece in one.pieces.values()
        if piece.evidence
        for step in piece.evidence.steps
    ]
