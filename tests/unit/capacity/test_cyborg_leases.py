"""Servers with a card of Cyborg: checked before they are made, and given back with the card, also when Nova did not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mlops_sdk.capacity.device_profiles import DeviceProfile
from mlops_sdk.capacity.evidence import NodeEvidence, Outcome
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.flavors import Flavor
from mlops_sdk.capacity.lease import EndReason
from mlops_sdk.capacity.owned import Held, Standing
from mlops_sdk.capacity.provider import Grant, Party, Provider
from mlops_sdk.capacity.providers.nova import NovaLeases
from mlops_sdk.capacity.providers.nova_cyborg import AcceleratorRequest, request_of
from mlops_sdk.capacity.providers.nova_view import Server
from mlops_sdk.config import NovaSettings
from mlops_sdk.errors import FlavorRefused, NodeFailed, ServiceUnavailable
from mlops_sdk.names import run_key
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.testing.nova import FakeCompute, FakeDoor, FakeNova
from mlops_sdk.testing.provider_contract import CHECKS, Bench
from mlops_sdk.testing.settings import fake_settings

A30 = DeviceProfile(name="a30", groups=({"resources:PGPU": "1", "trait:CUSTOM_GPU_A30": "required"},) * 2)
SPECS = {"accel:device_profile": "a30"}
GPU = Flavor(id="f1", name="gpu", vcpus=8, ram_mb=1024, disk_gb=10, specs=SPECS)


class Site:
    """A deployment on a fake Nova with a fake Cyborg."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.cloud = FakeNova(clock=self.clock, flavors=[GPU])
        self.cloud.cyborg.profiles = {"a30": A30}
        self.s3 = MemoryS3()
        nova = NovaSettings(networks=("net",), image="image")
        self.settings = fake_settings().model_copy(update={"nova": nova})
        self.fence = Fence(memory_store(self.s3), now=self.clock.now, ttl_s=60)

    def open(self, *arguments: Any, by: Any = "run") -> NovaLeases:
        party = Party(settings=self.settings, fence=self.fence, clock=self.clock, by=by)
        return NovaLeases(FakeCompute(self.cloud), party, FakeDoor(self.cloud))

    @property
    def bench(self) -> Bench:
        def as_provider(*_: Any) -> Provider:
            return self.open()

        def plant(_: Grant) -> Callable[[], bool]:
            return lambda: True

        return Bench(
            open=as_provider,
            clock=self.clock,
            deployment_id=self.settings.deployment_id,
            resource_class="gpu",
            plant=plant,
        )

    def bound(self) -> list[str]:
        return [each.server for each in self.cloud.cyborg.requests.values()]


@pytest.fixture
def site() -> Site:
    return Site()


def returned(site: Site, held: Held, *, by: str) -> NodeEvidence:
    """Every step of a return, at most a minute of them."""
    returning = site.open(by=by).returning(
        held, reason=EndReason.NOT_RENEWED, entitled=lambda *_: True, run_key=run_key(site.bench.grant().run_id)
    )
    for _ in range(60):
        if evidence := returning.step():
            return evidence
        site.clock.sleep(1)
    raise AssertionError("it never ends")


@pytest.mark.parametrize("check", CHECKS[:2], ids=lambda check: check.__name__)
def test_leases_with_cards_keep_the_contract_and_leave_none(check: Callable[[Bench], None], site: Site):
    check(site.bench)
    assert site.bound() == []


def test_a_lease_has_its_cards_and_the_evidence_says_that_they_are_free(site: Site):
    grant = site.bench.grant(nodes=1, traits=("CUSTOM_GPU_A30",))
    quote = site.open().quote(grant.request)
    assert quote.notes[0].startswith("gpu: 2 x A30 by cyborg, device profile a30 (PGPU=1")
    (node,) = site.bench.drive(site.open().acquire(grant))
    assert (node.gpus, node.traits) == (2, ("CUSTOM_GPU_A30",))
    assert site.bound() == [node.id, node.id]
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.CLEANED
    assert f"Cyborg has nothing bound to server {node.id} any more (a30)" in evidence.steps
    assert site.bound() == []


@pytest.mark.parametrize("profiles", [None, {}, {"a30": replace(A30, groups=({"trait:X": "required"},))}])
def test_a_flavor_whose_profile_cannot_be_used_is_refused_before_anything_is_made(
    site: Site, profiles: dict[str, DeviceProfile] | None
):
    site.cloud.cyborg.profiles = profiles
    with pytest.raises(FlavorRefused, match="accel:device_profile"):
        site.bench.drive(site.open().acquire(site.bench.grant(nodes=1)))
    assert not site.cloud.ports
    assert not site.cloud.servers
    assert next(iter(site.open().pool())).resource_class == "gpu", "the pool is shown all the same"


def test_a_card_that_nova_left_bound_is_not_given_back_until_the_reaper_frees_it(site: Site):
    grant = site.bench.grant(nodes=1)
    (node,) = site.bench.drive(site.open().acquire(grant))
    site.cloud.cyborg.away = True
    (evidence,) = site.bench.release(grant)
    site.cloud.cyborg.away = False
    assert evidence.outcome is Outcome.NOT_CLEAN
    assert f"still bound to server {node.id}, which is gone" in evidence.last_error
    assert "nova.service_login" in evidence.last_error
    assert list(site.open().list_owned()) == [], "a card has no room for a marker"
    (claim,) = [each for each in site.fence.claims() if each.resource_id == node.id]
    held = Held(name=grant.name(0), allocation_id=claim.resource_id, node_id=str(claim.details["node_id"]))
    assert site.open().inspect(held).standing is Standing.UNFINISHED
    site.clock.sleep(61)
    site.cloud.cyborg.service = True
    evidence = returned(site, replace(held, deployed=True), by="reaper")
    assert evidence.outcome is Outcome.CLEANED
    assert f"accelerator requests of server {node.id} deleted, which Nova had left bound to it" in evidence.steps
    assert site.bound() == []
    assert site.open().inspect(held).standing is Standing.ENDED
    assert [each.resource_id for each in site.fence.claims() if each.resource_id == node.id] == []


def test_a_card_is_never_taken_from_a_server_that_is_there(site: Site):
    """Whatever a claim says: Nova knows the server, so the card is its."""
    grant = site.bench.grant(nodes=1)
    (node,) = site.bench.drive(site.open().acquire(grant))
    site.cloud.cyborg.service = True
    returning = site.open(by="reaper").returning(
        Held(name="ml-" + "a" * 12 + "-g1-0", allocation_id="", node_id=node.id, deployed=True),
        reason=EndReason.NOT_RENEWED,
        entitled=lambda *_: True,
        run_key="a" * 12,
    )
    assert all(returning.step() is None for _ in range(5))
    assert site.bound() == [node.id, node.id]


def test_the_doctor_names_what_no_server_goes_with(site: Site):
    assert "accelerator request" not in site.open().examine()
    site.cloud.cyborg.requests = {
        "idle": AcceleratorRequest(id="idle", state="Initial", profile="a30"),
        "lost": AcceleratorRequest(
            id="lost", state="Bound", profile="a30", server="nobody", host="h", device="0:1:2.3"
        ),
    }
    said = site.open().examine()
    assert "1 accelerator requests of this project belong to no server" in said
    assert "`openstack accelerator arq delete idle`" in said
    assert "accelerator request lost (a30, Bound, 0:1:2.3 of h) still bound to a server that is gone" in said


def test_while_cyborg_does_not_answer_the_end_is_open(site: Site):
    grant = site.bench.grant(nodes=1)
    (node,) = site.bench.drive(site.open().acquire(grant))
    site.cloud.faults.fail_at("accelerator_requests", 1, error=ServiceUnavailable("accelerator GET failed", seen="503"))
    with pytest.raises(ServiceUnavailable):
        site.bench.release(grant)
    assert node.id in {each.resource_id for each in site.fence.claims()}, "the reaper comes back to it"


def test_whose_card_is_not_free_is_told_where_to_look(site: Site):
    def failed(server: Server) -> Server:
        return replace(server, status="ERROR", fault="Failed to bind accelerator requests: 404")

    grant = site.bench.grant(nodes=1)
    site.cloud.overruled[grant.name(0)] = failed
    with pytest.raises(NodeFailed, match="Failed to bind") as caught:
        site.bench.drive(site.open().acquire(grant))
    assert "`mlops doctor` names it" in caught.value.next_step


def test_requests_are_read_as_cyborg_writes_them():
    raw = {
        "uuid": "8227ce76-1176-49c5-b380-42d63bf8453d",
        "state": "Bound",
        "instance_uuid": "1630a744-fa4f-4ee8-b2fd-07293cc62834",
        "hostname": "gpu-host-1",
        "device_profile_name": "a30",
        "attach_handle_info": {"domain": "0000", "bus": "9b", "device": "00", "function": "0"},
    }
    assert str(request_of(raw)) == (
        "accelerator request 8227ce76-1176-49c5-b380-42d63bf8453d (a30, Bound, 0000:9b:00.0 of gpu-host-1)"
    )
    bare = {"uuid": "1", "state": "Initial", "instance_uuid": None, "hostname": None, "attach_handle_info": None}
    assert request_of(bare) == AcceleratorRequest(id="1", state="Initial")
