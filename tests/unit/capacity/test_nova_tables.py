"""Nova's statuses, refusals, markers, and how much room there is."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.flavors import Flavor, check_flavor
from mlops_sdk.capacity.lease import Marker, Priority
from mlops_sdk.capacity.providers.nova_api import Limits, ServerOrder, Stock
from mlops_sdk.capacity.providers.nova_marker import from_line, from_metadata, to_line, to_metadata
from mlops_sdk.capacity.providers.nova_read import flavor_of, left_of, port_of, server_of, stock_of, volume_of
from mlops_sdk.capacity.providers.nova_states import (
    ACQUIRE,
    RETURN,
    AcquireStep,
    Refusal,
    ReturnStep,
    acquire_step,
    chosen,
    refusal_of,
    return_step,
    volume_step,
)
from mlops_sdk.capacity.providers.nova_supply import fits, room_for
from mlops_sdk.capacity.providers.nova_view import Action, Port, Server, Volume, in_force, judge, owned, records
from mlops_sdk.identity.credential import run_access_rules
from mlops_sdk.names import resource_name

# nova/api/openstack/common.py of 34.0, and what a cell that is away is shown as
STATUSES = [
    "ACTIVE",
    "BUILD",
    "DELETED",
    "ERROR",
    "HARD_REBOOT",
    "MIGRATING",
    "PASSWORD",
    "PAUSED",
    "REBOOT",
    "REBUILD",
    "RESCUE",
    "RESIZE",
    "REVERT_RESIZE",
    "SHELVED",
    "SHELVED_OFFLOADED",
    "SHUTOFF",
    "SOFT_DELETED",
    "SUSPENDED",
    "UNKNOWN",
    "VERIFY_RESIZE",
]
MOMENTS = st.integers(0, 2**52).map(lambda micros: datetime(1990, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros))
MARKERS = st.builds(
    Marker,
    run_id=st.uuids().map(str),
    deployment_id=st.uuids().map(str),
    generation=st.integers(1, 999_999),
    index=st.integers(0, 4095),
    nodes=st.integers(1, 4096),
    owner=st.text(max_size=30),
    deadline=MOMENTS,
    renewed_until=MOMENTS,
    priority=st.sampled_from(Priority),
    preemptible=st.booleans(),
)
LAST = Marker(
    run_id=str(UUID(int=2**128 - 1)),
    deployment_id=str(UUID(int=2**128 - 1)),
    generation=999_999,
    index=4095,
    nodes=4096,
    owner="ä ö" * 200,
    deadline=datetime(2100, 1, 1, tzinfo=UTC),
    renewed_until=datetime(2100, 1, 1, tzinfo=UTC),
    preemptible=True,
)


@given(MARKERS)
def test_a_marker_survives_the_metadata_of_a_server_and_the_line_of_a_port(marker: Marker):
    metadata = to_metadata(marker)
    assert from_metadata({**metadata, "somebody": "else"}) == marker
    assert all(re.fullmatch(r"[a-zA-Z0-9-_:. ]{1,255}", key) and len(value) <= 255 for key, value in metadata.items())
    line = to_line(marker)
    found = from_line(line)
    assert len(line) <= 255
    assert found is not None
    assert marker.owner.startswith(found.owner)
    if len(marker.owner) <= 8:  # at most ten characters each
        assert found == marker


def test_the_longest_marker_fits_and_only_its_owner_is_cut():
    found = from_line(to_line(LAST))
    assert found is not None
    assert len(to_line(LAST)) <= 255
    assert LAST.owner.startswith(found.owner)
    assert (found.run_id, found.deadline, found.preemptible) == (LAST.run_id, LAST.deadline, True)


@pytest.mark.parametrize("line", ["", "a port of mine", "mlops/1 x y", "mlops/1 " + "z " * 9 + "z"])
def test_what_is_not_ours_is_no_marker(line: str):
    assert from_line(line) is None
    assert from_metadata({"mlops.run_id": line, "other": line}) is None


def test_every_status_has_a_next_step_both_ways():
    assert sorted(ACQUIRE) == sorted(RETURN) == STATUSES


@pytest.mark.parametrize("status", STATUSES)
def test_only_a_server_that_runs_is_a_machine_and_every_one_can_be_given_back(status: str):
    shown = Server(id="1", name="n", status=status)
    ready = acquire_step(shown) is AcquireStep.READY
    assert ready == (status in {"ACTIVE", "PASSWORD"})
    assert return_step(shown) in {ReturnStep.DELETE, ReturnStep.FORCE, ReturnStep.WAIT, ReturnStep.UNKNOWN}
    ending = Server(id="1", name="n", status=status, task="deleting")
    assert acquire_step(ending) is AcquireStep.NEXT_GENERATION
    assert return_step(ending) is ReturnStep.WAIT


def test_a_want_of_room_is_told_from_a_machine_that_failed():
    def step(fault: str, *, launched: bool = False) -> AcquireStep:
        return acquire_step(Server(id="1", name="n", status="ERROR", fault=fault, launched=launched))

    assert step("No valid host was found. There are not enough hosts available.") is AcquireStep.NO_ROOM
    assert step("Exceeded maximum number of retries. Exhausted all hosts") is AcquireStep.NO_ROOM
    assert step("Build of instance 1 aborted: Volume 2 did not finish being created") is AcquireStep.NEXT_GENERATION
    assert step("No valid host was found.", launched=True) is AcquireStep.NEXT_GENERATION  # of a migration


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        (403, "Quota exceeded for instances: Requested 1, but already used 10 of 10 instances", Refusal.FULL),
        (403, "Maximum number of ports exceeded", Refusal.FULL),
        (403, "Policy doesn't allow os_compute_api:servers:create to be performed.", Refusal.WRONG),
        (409, "Quota exceeded for resources: ['port'].", Refusal.FULL),
        (409, "Port 1 is still in use.", Refusal.AGAIN),
        (
            413,
            "VolumeLimitExceeded: Maximum number of volumes allowed (10) exceeded for quota 'volumes'.",
            Refusal.FULL,
        ),
        (413, "This request was rate-limited.", Refusal.AGAIN),
        (429, "Too Many Requests", Refusal.AGAIN),
        (400, "Port id 9b3f8d8b could not be found.", Refusal.AGAIN),
        (400, "Block Device Mapping is Invalid: failed to get volume 9b3f8d8b.", Refusal.AGAIN),
        (400, "Invalid volume: Volume 1 status must be available or downloading to reserve, but is", Refusal.AGAIN),
        (400, "This flavor does not support the image; it could not be found.", Refusal.WRONG),
        (400, "Flavor's disk is too small for requested image.", Refusal.WRONG),
    ],
)
def test_a_full_quota_a_conflict_and_a_mistake_are_told_apart(status: int, words: str, kind: Refusal):
    assert refusal_of(status, words) is kind


def test_everybody_chooses_the_oldest_healthy_server():
    def made(server_id: str, created_at: str, status: str = "BUILD") -> Server:
        return Server(id=server_id, name="n", status=status, created_at=created_at)

    servers = [made("b", "2"), made("a", "2"), made("c", "1", "ERROR"), made("d", "3", "ACTIVE")]
    assert [found.id for found in (chosen(servers), chosen(reversed(servers))) if found] == ["a", "a"]
    assert chosen([]) is None
    (left,) = [servers[2]]
    assert chosen([left]) is left


def test_volumes_wait_for_their_server_and_strange_ones_are_shown():
    statuses = ("available", "in-use", "error_deleting", "odd")
    steps = [volume_step(Volume(id="1", name="n", status=status)) for status in statuses]
    assert steps == [ReturnStep.DELETE, ReturnStep.WAIT, ReturnStep.STUCK, ReturnStep.UNKNOWN]


def marker_of(index: int, **changes: object) -> Marker:
    values = {
        "run_id": str(UUID(int=1)),
        "deployment_id": str(UUID(int=7)),
        "generation": 1,
        "index": index,
        "nodes": 2,
        "owner": "ada",
        "deadline": datetime(2026, 1, 2, tzinfo=UTC),
        "renewed_until": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Marker(**{**values, **changes})  # type: ignore[arg-type]


def test_the_port_is_the_record_and_children_are_listed_below_their_server():
    name = resource_name(UUID(int=1), 1, 0)
    later = marker_of(0, renewed_until=datetime(2026, 1, 1, 5, tzinfo=UTC))
    ports = [
        Port(id="p1", name=name, line=to_line(marker_of(0))),
        Port(id="p2", name=name, line=to_line(later), server="s1"),
        Port(id="p3", name=name, line="a stranger's", server="s9"),
        Port(id="p4", name=resource_name(UUID(int=1), 1, 1), line=to_line(marker_of(1))),
        Port(id="p5", name="mine", line=to_line(marker_of(0))),
    ]
    server = Server(id="s1", name=name, status="ACTIVE", metadata=to_metadata(marker_of(0)))
    volume = Volume(id="v1", name=name, status="in-use", line=to_line(marker_of(0)), server="s1")
    found = {item.id: item for item in owned(str(UUID(int=7)), [server], ports, [volume])}
    assert {key: item.parent for key, item in found.items()} == {"s1": "", "p1": "s1", "p2": "s1", "v1": "s1", "p4": ""}
    assert {found[key].marker.renewed_until for key in ("s1", "p1", "p2", "v1")} == {later.renewed_until}
    assert list(owned(str(UUID(int=8)), [server], ports, [volume])) == []
    assert in_force(name, marker_of(0, generation=2), records(ports)) == marker_of(0, generation=2)


def events(*pairs: tuple[str, str]) -> Iterator[Action]:
    yield Action(action="create", event="", result="")
    for event, result in pairs:
        yield Action(action="x", event=event, result=result, finished_at="2026-01-01T00:00:00")


BUILT = ("compute__do_build_and_run_instance", "Success")


@pytest.mark.parametrize(
    ("known", "deployed", "outcome"),
    [
        (events(BUILT, ("compute_terminate_instance", "Success")), True, Outcome.CLEANED),
        (events(BUILT, ("compute_terminate_instance", "Error")), True, Outcome.UNPROVEN),
        (events(BUILT), True, Outcome.UNPROVEN),
        (events(("conductor_schedule_and_build_instances", "Error")), True, Outcome.NEVER_DEPLOYED),
        (None, True, Outcome.UNPROVEN),
        (None, False, Outcome.NEVER_DEPLOYED),
    ],
)
def test_clean_is_what_its_host_reported(known: Iterator[Action] | None, deployed: bool, outcome: Outcome):
    assert judge(known, deployed=deployed)[0] is outcome


def test_room_is_what_one_host_has_for_all_of_a_server():
    stock = [
        Stock(root="a", capacity={"VCPU": 16, "MEMORY_MB": 4096}, used={"VCPU": 8, "MEMORY_MB": 0}),
        Stock(root="a", capacity={"VGPU": 4}, used={"VGPU": 3}),
        Stock(root="b", capacity={"VCPU": 99, "MEMORY_MB": 9999}, used={}),
    ]
    assert fits({"": {"VCPU": 4, "MEMORY_MB": 1024}}, stock) == 2 + 9
    assert fits({"": {"VCPU": 4}, "1": {"VGPU": 1}}, stock) == 1
    assert fits({"": {"VCPU": 4}, "1": {"VGPU": 1}, "2": {"VGPU": 1}}, stock) == 0
    assert fits({"": {}}, stock) == 0


@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(1, 40),
    st.integers(1, 64),
    st.one_of(st.none(), st.integers(0, 40)),
)
def test_room_is_never_more_than_any_limit(cores: int, held: int, most: int, vcpus: int, servers: int | None):
    flavor = Flavor(id="1", name="f", vcpus=vcpus, ram_mb=1, disk_gb=0)
    limits = Limits(cores=cores, servers=servers)
    room = room_for(flavor, check_flavor(flavor), limits=limits, stock=None, held=held, most=most)
    assert 0 <= room.servers <= min(cores // vcpus, max(0, most - held))
    assert servers is None or room.servers <= servers


def test_replies_are_read_as_the_services_write_them():
    server = server_of(
        {
            "id": "1",
            "name": "n",
            "status": "ERROR",
            "OS-EXT-STS:task_state": None,
            "created": "2026-01-01T00:00:00Z",
            "metadata": {"a": "b"},
            "flavor": {"original_name": "gpu"},
            "hostId": "",
            "OS-SRV-USG:launched_at": None,
            "fault": {"code": 500, "message": "No valid host was found."},
            "addresses": {"net": [{"addr": "192.0.2.1"}]},
        }
    )
    assert (server.flavor, server.fault, server.placed, server.addresses) == (
        "gpu",
        "No valid host was found.",
        False,
        ("192.0.2.1",),
    )
    assert server_of({"id": "2", "status": "UNKNOWN", "created": "x"}).name == ""
    port = port_of({"id": "1", "fixed_ips": [{"ip_address": "192.0.2.1"}], "device_id": "s"})
    assert (port.addresses, port.server) == (("192.0.2.1",), "s")
    volume = volume_of(
        {"id": "1", "status": "in-use", "attachments": [{"server_id": "s"}], "metadata": {"mlops.role": "data"}}
    )
    assert (volume.server, volume.role) == ("s", "data")
    assert flavor_of({"id": "1", "name": "f", "vcpus": 1, "ram": 2, "disk": 3}).specs is None
    assert left_of({"maxTotalCores": -1, "totalCoresUsed": 4}, "maxTotalCores", "totalCoresUsed") is None
    assert left_of({"maxTotalCores": 8, "totalCoresUsed": 5}, "maxTotalCores", "totalCoresUsed") == 3
    summaries = {
        "a": {"resources": {"VCPU": {"capacity": 8, "used": 2}}, "traits": [], "root_provider_uuid": "a"},
        "b": {"resources": {"VGPU": {"capacity": 8, "used": 2}}, "traits": ["CUSTOM_X"], "root_provider_uuid": "a"},
        "c": {"resources": {"VCPU": {"capacity": 8, "used": 2}}, "traits": [], "root_provider_uuid": "c"},
    }
    assert {stock.root for stock in stock_of({"provider_summaries": summaries}, ["CUSTOM_X"])} == {"a"}


def test_an_order_shows_no_private_key():
    order = ServerOrder(name="n", flavor="f", image="i", ports=(), metadata={}, user_data="PRIVATE KEY")
    assert "PRIVATE" not in repr(order)


def test_the_permissions_page_has_a_runs_rules_to_the_letter():
    page = (Path(__file__).parents[3] / "docs" / "permissions.md").read_text()
    part = page.split("<!-- nova rules -->")[1].split("<!-- /nova rules -->")[0]
    rows = [tuple(cell.strip(" `") for cell in line.strip("|").split("|")) for line in part.strip().splitlines()[2:]]
    rules = run_access_rules(UUID(int=7), 3, "nova")
    assert rows == [(rule.service, rule.method, rule.path) for rule in rules]
