"""Servers of Nova that are whole machines of Ironic: what is noted of the machine, and how its end is judged."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mlops_sdk.capacity.evidence import Cleaning, Outcome
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.flavors import Expected, Flavor, check_flavor
from mlops_sdk.capacity.lease import EndReason, Marker
from mlops_sdk.capacity.owned import Held
from mlops_sdk.capacity.provider import Grant, Party
from mlops_sdk.capacity.providers.ironic_states import STATES
from mlops_sdk.capacity.providers.ironic_view import Machine
from mlops_sdk.capacity.providers.nova import NovaLeases
from mlops_sdk.capacity.providers.nova_marker import LONGEST, Metal, from_line, metal_of_line, noted, to_line
from mlops_sdk.capacity.providers.nova_metal import by_novas_word, judge_metal
from mlops_sdk.config import NovaSettings
from mlops_sdk.errors import NotFenced, ServiceUnavailable
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.faults import Crash
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.testing.nova import FakeCompute, FakeDoor, FakeNova
from mlops_sdk.testing.provider_contract import Bench
from mlops_sdk.testing.settings import fake_settings

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
NODE = str(uuid.UUID(int=7))
SERVER = str(uuid.UUID(int=8))
METAL = Metal(node_id=NODE, server_id=SERVER, noted_at=NOW)
WHOLE = Flavor(
    id="f1",
    name="whole",
    vcpus=8,
    ram_mb=1024,
    disk_gb=10,
    specs={
        "resources:CUSTOM_METAL": "1",
        "resources:VCPU": "0",
        "resources:MEMORY_MB": "0",
        "resources:DISK_GB": "0",
    },
)
VIRTUAL = Flavor(id="f2", name="virtual", vcpus=8, ram_mb=1024, disk_gb=10, specs={})
FLAVORS = {"whole": {"delivery": "bare_metal", "accelerators": 8}, "virtual": {"delivery": "none"}}


def marker(owner: str = "somebody") -> Marker:
    return Marker(
        run_id=str(uuid.UUID(int=1)),
        deployment_id=str(uuid.UUID(int=2)),
        generation=1,
        index=0,
        nodes=1,
        owner=owner,
        deadline=NOW,
        renewed_until=NOW,
    )


def machine(state: str = "available", **changes: Any) -> Machine:
    return Machine(**{"id": NODE, "name": "metal-01", "provision_state": state, **changes})


def cleaned(after_s: float = 60, *steps: str) -> Cleaning:
    return Cleaning(finished_at=NOW + timedelta(seconds=after_s), steps=steps or ("erase_devices",))


class Site:
    """A deployment on a fake Nova that gives out machines of a fake Ironic."""

    def __init__(self, **nova: Any) -> None:
        self.clock = FakeClock()
        self.cloud = FakeNova(clock=self.clock, flavors=[WHOLE, VIRTUAL])
        self.cloud.metal.add(NODE)
        self.api = FakeCompute(self.cloud)
        self.s3 = MemoryS3()
        self.settings = fake_settings().model_copy(
            update={"nova": NovaSettings(**{"networks": ("net",), "image": "image", "flavors": FLAVORS, **nova})}
        )

    def open(self, *_: Any, by: Any = "run") -> NovaLeases:
        fence = Fence(memory_store(self.s3), now=self.clock.now, ttl_s=60)
        party = Party(settings=self.settings, fence=fence, clock=self.clock, by=by)
        return NovaLeases(self.api, party, FakeDoor(self.cloud))

    @property
    def bench(self) -> Bench:
        return Bench(
            open=self.open,
            clock=self.clock,
            deployment_id=self.settings.deployment_id,
            resource_class="whole",
            plant=lambda _: lambda: True,
        )

    def leased(self, **changes: Any) -> Grant:
        grant = self.bench.grant(**{"nodes": 1, **changes})
        self.nodes = self.bench.drive(self.open().acquire(grant))
        return grant

    @property
    def port(self) -> Any:
        (port,) = self.cloud.ports.values()
        return port


def test_a_record_tells_which_machine_and_since_when_and_old_records_tell_of_none():
    for metal in (Metal(), METAL):
        line = to_line(marker(), metal)
        assert metal_of_line(line) == metal
        assert from_line(line) == marker()
    assert metal_of_line(to_line(marker())) is None
    assert metal_of_line("by hand") is None
    assert metal_of_line(f"{to_line(marker())} nonsense") == Metal()
    long = to_line(marker(owner="ä" * 300), METAL)
    assert len(long) <= LONGEST
    assert metal_of_line(long) == METAL
    assert noted(METAL, NODE, SERVER, NOW + timedelta(hours=1)) == METAL
    assert noted(None, NODE, SERVER, NOW) == noted(Metal(), NODE, SERVER, NOW) == METAL
    assert noted(METAL, NODE, NODE, NOW) != METAL


@pytest.mark.parametrize(
    ("seen", "cleaning", "outcome"),
    [
        (machine(), cleaned(), Outcome.CLEANED),
        (machine(), cleaned(-60), Outcome.UNPROVEN),  # of before our use
        (machine(), cleaned(60, "update_firmware"), Outcome.UNPROVEN),
        (machine(), None, Outcome.UNPROVEN),
        (machine("active", instance_id=SERVER), cleaned(), Outcome.PENDING),
        (machine("deploying", instance_id="theirs"), cleaned(), Outcome.CLEANED),  # the next one has it
        (machine("active", instance_id="theirs"), None, Outcome.UNPROVEN),
        (machine("cleaning"), None, Outcome.PENDING),
        (machine("deleting"), None, Outcome.PENDING),
        (machine("clean failed", maintenance=True, fault="clean failure"), None, Outcome.NOT_CLEAN),
        (machine("error", last_error="the tear-down failed"), cleaned(-60), Outcome.NOT_CLEAN),
        (machine("manageable"), cleaned(-60), Outcome.NOT_CLEAN),
        (machine("of a later version"), None, Outcome.NOT_CLEAN),
        (None, None, Outcome.UNPROVEN),
    ],
)
def test_how_a_machine_ended_ironic_says(seen: Machine | None, cleaning: Cleaning | None, outcome: Outcome):
    end = judge_metal(METAL, seen, cleaning, skew_s=1)
    assert end.forgotten is (seen is not None and seen.instance_id == SERVER)
    assert end.outcome is outcome
    assert (end.cleaning is not None) is (outcome is Outcome.CLEANED)
    if seen is not None and seen.last_error:
        assert seen.last_error in end.words


@pytest.mark.parametrize("state", sorted(STATES))
def test_no_state_of_a_machine_is_taken_for_clean_without_a_cleaning(state: str):
    assert judge_metal(METAL, machine(state), None, skew_s=1).outcome is not Outcome.CLEANED


def test_novas_word_alone_proves_nothing_where_it_may_have_been_a_whole_machine():
    assert by_novas_word(Outcome.CLEANED, "said", may_be_metal=False) == (Outcome.CLEANED, "said")
    assert by_novas_word(Outcome.NEVER_DEPLOYED, "said", may_be_metal=True) == (Outcome.NEVER_DEPLOYED, "said")
    outcome, words = by_novas_word(Outcome.CLEANED, "said", may_be_metal=True)
    assert outcome is Outcome.UNPROVEN
    assert words.startswith("said; ")


def test_a_flavor_of_whole_machines_has_as_many_accelerators_as_the_settings_say():
    assert check_flavor(WHOLE).accelerators == 0
    assert check_flavor(WHOLE, expected=Expected(accelerators=8)).accelerators == 8


def test_a_whole_machine_is_noted_in_its_record_and_given_back_when_it_is_clean():
    site = Site()
    grant = site.leased()
    assert site.nodes[0].gpus == 8
    assert site.port.metal.node_id == NODE
    site.open().renew(grant)
    assert site.port.metal.node_id == NODE
    began = site.clock.monotonic()
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.CLEANED
    assert evidence.steps[0] == "machine metal-01: available: erase_devices"
    assert evidence.cleaned_at
    assert site.clock.monotonic() - began >= 5.0
    assert site.cloud.ports == site.cloud.servers == {}


def test_the_record_stays_until_the_machine_is_clean():
    site = Site()
    grant = site.leased()
    held = Held(name=grant.name(0))
    returning = site.open().returning(held, reason=EndReason.FINISHED, entitled=grant.owns, run_key="x")
    while site.cloud.metal.nodes[NODE].provision_state != "cleaning":
        returning.step()
        site.clock.sleep(0.2)
    assert returning.step() is None
    assert site.cloud.servers == {}
    assert site.port.metal.node_id == NODE


def test_who_dies_while_the_machine_is_cleaned_leaves_the_next_one_a_record_to_prove_it_by():
    site = Site()
    grant = site.leased()
    site.cloud.faults.fail_at("machine", 1, error=Crash())
    with pytest.raises(Crash):
        site.bench.release(grant)
    site.cloud.faults.clear()
    assert site.cloud.servers == {}
    site.clock.sleep(10)
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.CLEANED
    assert "erase_devices" in evidence.steps[0]


@pytest.mark.parametrize("ends_in", ["clean failed", "error"])
def test_a_machine_that_ironic_could_not_clean_or_tear_down_is_not_clean_though_nova_says_so(ends_in: str):
    site = Site()
    grant = site.leased()
    site.cloud.metal.ends_in = ends_in
    (evidence,) = site.bench.release(grant)
    assert (evidence.outcome, evidence.provision_state) == (Outcome.NOT_CLEAN, "gone")
    assert ends_in in evidence.last_error
    assert site.cloud.ports == {}


@pytest.mark.parametrize("hidden_from", ["the beginning", "the end"])
def test_what_ironic_does_not_show_is_said_to_be_unproven(hidden_from: str):
    site = Site()
    site.cloud.metal.visible = hidden_from == "the end"
    grant = site.leased()
    assert (site.port.metal.node_id == NODE) is site.cloud.metal.visible
    site.cloud.metal.visible = False
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.UNPROVEN
    assert "does not show its cleaning to this login" in evidence.last_error
    assert site.cloud.ports == {}


@pytest.mark.parametrize(("ends_in", "fenced"), [("available", True), ("clean failed", True), ("error", False)])
def test_a_lost_machine_is_cut_off_when_ironic_has_torn_it_down_and_not_by_novas_word(ends_in: str, fenced: bool):
    site = Site()
    grant = site.leased()
    site.cloud.metal.ends_in = ends_in
    steps = site.open().cut_off(Held(name=grant.name(0)), entitled=grant.owns)
    if not fenced:
        with pytest.raises(NotFenced, match="error"):
            site.bench.drive(steps)
        return
    site.bench.drive(steps)
    assert site.cloud.servers == {}
    assert site.cloud.metal.nodes[NODE].provision_state == "cleaning"
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is (Outcome.CLEANED if ends_in == "available" else Outcome.NOT_CLEAN)


@pytest.mark.parametrize("foreign", [False, True])
def test_a_machine_that_nova_forgot_while_its_host_was_down_is_ended_by_the_reaper(foreign: bool):
    """Not by the run, whose login may only look there; and never while another server is on it."""
    site = Site()
    site.settings = site.settings.model_copy(
        update={"lease": site.settings.lease.model_copy(update={"clean_timeout_s": 30.0})}
    )
    grant = site.leased()
    site.cloud.host_up, site.cloud.metal.foreign = False, foreign
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.PENDING
    assert "which Nova has forgotten" in evidence.last_error
    assert site.cloud.metal.nodes[NODE].provision_state == "active"
    (left,) = site.open(by="reaper").list_owned()
    returning = site.open(by="reaper").returning(
        left.held, reason=EndReason.NOT_RENEWED, entitled=lambda _n, _m: True, run_key="x"
    )
    for _ in range(30):
        if (ended := returning.step()) is not None:
            break
        site.clock.sleep(5)
    if foreign:
        assert ended is None
        assert site.cloud.metal.nodes[NODE].instance_id == site.nodes[0].id
        assert "an owner's member only" in returning.evidence(Outcome.PENDING).last_error
        assert len(site.cloud.ports) == 1
    else:
        assert ended is not None
        assert ended.outcome is Outcome.CLEANED
        assert site.cloud.ports == {}


def test_a_lease_begins_and_ends_though_ironic_does_not_answer_when_its_machine_is_to_be_noted():
    site = Site()
    away = ServiceUnavailable("no answer", seen="", next_step="")
    for call in range(1, 40):
        site.cloud.faults.fail_at("machine_under", call, error=away)
    grant = site.leased()
    assert site.port.metal == Metal()
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.UNPROVEN
    assert site.cloud.servers == site.cloud.ports == {}


def test_a_cleaning_that_erases_nothing_proves_nothing():
    site = Site()
    grant = site.leased()
    site.cloud.metal.erases = False
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.UNPROVEN
    assert "no cleaning on record that erased its disks" in evidence.last_error


def test_a_server_that_never_got_a_machine_needs_no_cleaning():
    site = Site()
    site.cloud.room = 0
    grant = site.bench.grant(nodes=1)
    next(site.open().begin(grant))
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.NEVER_DEPLOYED


def test_of_a_virtual_server_nothing_is_asked_of_ironic():
    site = Site()
    grant = site.leased(resource_class="virtual")
    assert site.port.metal is None
    (evidence,) = site.bench.release(grant)
    assert evidence.outcome is Outcome.CLEANED
    assert {"machine", "machine_under"}.isdisjoint(site.cloud.faults.calls)


def test_what_nobody_noted_before_all_was_gone_is_unproven_where_it_may_have_been_a_whole_machine():
    site = Site()
    grant = site.leased()
    held = Held(name=grant.name(0), node_id=site.nodes[0].id, deployed=True)
    site.bench.release(grant)
    seen = site.open().inspect(held)
    assert seen.outcome is Outcome.UNPROVEN
    assert "whether that was a machine of Ironic" in seen.machine_words
