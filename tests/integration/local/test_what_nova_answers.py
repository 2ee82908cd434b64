"""What Nova, Neutron and Cinder answer where a lease depends on it: the facts of docs/resources.md, asked of them.

Each of these is also what the provider of servers counts on; a new release that answers differently fails here first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from support import eventually
from support_compute import ComputeHandle, create, gone, settled, take_back_servers

pytestmark = [pytest.mark.stack, pytest.mark.slow]

LONGEST = 255


@dataclass(frozen=True, slots=True)
class Asked:
    """One service, asked as one user."""

    cloud: Any
    service: str
    version: str

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        reply = self.cloud.session.request(
            path,
            method,
            json=body,
            endpoint_filter={"service_type": self.service},
            headers={"OpenStack-API-Version": self.version} if self.version else {},
            raise_exc=False,
        )
        return reply.status_code, reply.json() if reply.content else {}


@pytest.fixture
def cloud(compute: ComputeHandle) -> Iterator[Any]:
    """Our project's user; whatever the test made is taken back."""
    yield compute.user()
    take_back_servers(compute.operator())


@pytest.fixture
def nova(cloud: Any) -> Asked:
    return Asked(cloud, "compute", "compute 2.96")


@pytest.fixture
def neutron(cloud: Any) -> Asked:
    return Asked(cloud, "network", "")


@pytest.fixture
def cinder(cloud: Any) -> Asked:
    return Asked(cloud, "block-storage", "volume 3.70")


@pytest.fixture
def wanted(compute: ComputeHandle, cloud: Any) -> dict[str, Any]:
    """A small server that Nova would make."""
    return {
        "flavorRef": cloud.compute.find_flavor("cpu.small").id,
        "imageRef": cloud.image.find_image(compute.offers["image"]).id,
        "networks": [{"uuid": compute.offers["network_id"]}],
    }


def words(body: dict[str, Any]) -> str:
    """What a service says of its own refusal."""
    (fault,) = body.values()
    return str(fault["message"])


def test_a_name_is_not_unique_and_is_found_by_an_anchored_expression(nova: Asked, wanted: dict[str, Any]) -> None:
    for name in ("ml-x-g1-0", "ml-x-g1-0", "ml-x-g1-01"):
        assert nova("POST", "/servers", {"server": {"name": name, **wanted}})[0] == 202
    assert len(nova("GET", "/servers?name=ml-x-g1-0")[1]["servers"]) == 3
    assert len(nova("GET", "/servers?name=^ml-x-g1-0$")[1]["servers"]) == 2


def test_metadata_is_no_filter_of_a_list(nova: Asked, wanted: dict[str, Any]) -> None:
    nova("POST", "/servers", {"server": {"name": "one", "metadata": {"run": "a"}, **wanted}})
    status, found = nova("GET", '/servers?metadata={"run":"b"}')
    assert status == 200
    assert "one" in [server["name"] for server in found["servers"]]


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({"metadata": {f"k{n}": "v" for n in range(128)}}, 202, ""),
        ({"metadata": {f"k{n}": "v" for n in range(129)}}, 403, "Maximum number of metadata items exceeds 128"),
        ({"metadata": {"k": "v" * LONGEST}}, 202, ""),
        ({"metadata": {"k": "v" * (LONGEST + 1)}}, 400, "Invalid input for field/attribute k"),
        ({"metadata": {"a/b": "v"}}, 400, "does not match any of the regexes"),
        ({"user_data": "A" * 65535}, 400, "Invalid input for field/attribute user_data"),
        ({"flavorRef": "none"}, 400, "Flavor none could not be found"),
        ({"imageRef": "00000000-0000-4000-8000-000000000000"}, 400, "Can not find requested image"),
        ({"networks": [{"uuid": "00000000-0000-4000-8000-000000000000"}]}, 400, "could not be found"),
        ({"availability_zone": "mars"}, 400, "requested availability zone is not available"),
    ],
)
def test_limits_and_wrong_requests_are_refused_at_once(
    nova: Asked, wanted: dict[str, Any], more: dict[str, Any], status: int, said: str
) -> None:
    got, body = nova("POST", "/servers", {"server": {"name": "one", **wanted, **more}})
    assert got == status
    assert not said or said in words(body)


def test_metadata_of_a_server_that_is_built_cannot_be_changed_and_deleting_it_waits_for_the_host(
    compute: ComputeHandle, cloud: Any, nova: Asked
) -> None:
    server = create(cloud, compute.offers, name="slow", flavor="cpu.small", metadata={"fault": "slow"})
    eventually(lambda: cloud.compute.get_server(server.id).task_state == "spawning", within_s=30)
    status, body = nova("POST", f"/servers/{server.id}/metadata", {"metadata": {"a": "1"}})
    assert (status, words(body).partition("instance")[0]) == (409, "Cannot 'update metadata' ")
    assert nova("DELETE", f"/servers/{server.id}")[0] == 204
    assert nova("DELETE", f"/servers/{server.id}")[0] == 204
    now = cloud.compute.get_server(server.id)
    assert (now.status, now.task_state) == ("BUILD", "deleting")
    gone(cloud, server)
    assert nova("DELETE", f"/servers/{server.id}")[0] == 404


def test_what_was_deleted_is_still_told_to_its_owner_who_asks_for_changes(
    compute: ComputeHandle, cloud: Any, nova: Asked
) -> None:
    server = settled(cloud, create(cloud, compute.offers, name="short", flavor="cpu.small"))
    cloud.compute.delete_server(server)
    gone(cloud, server)
    assert server.id not in [one["id"] for one in nova("GET", "/servers?deleted=true")[1]["servers"]]
    found = nova("GET", "/servers/detail?name=^short$&changes-since=2020-01-01T00:00:00Z")[1]["servers"]
    assert (found[0]["id"], found[0]["status"]) == (server.id, "DELETED")
    actions = nova("GET", f"/servers/{server.id}/os-instance-actions")[1]["instanceActions"]
    assert {action["action"] for action in actions} == {"create", "delete"}


def test_a_stranger_sees_and_reaches_nothing(compute: ComputeHandle, cloud: Any) -> None:
    server = settled(cloud, create(cloud, compute.offers, name="ours", flavor="cpu.small"))
    stranger = Asked(compute.stranger(), "compute", "compute 2.96")
    assert stranger("GET", "/servers")[1]["servers"] == []
    assert stranger("GET", f"/servers/{server.id}")[0] == 404
    assert stranger("DELETE", f"/servers/{server.id}")[0] == 404


def test_a_locked_server_is_not_deleted(compute: ComputeHandle, cloud: Any, nova: Asked) -> None:
    server = settled(cloud, create(cloud, compute.offers, name="locked", flavor="cpu.small"))
    assert nova("POST", f"/servers/{server.id}/action", {"lock": None})[0] == 202
    status, body = nova("DELETE", f"/servers/{server.id}")
    assert (status, words(body).endswith("is locked")) == (409, True)
    assert nova("POST", f"/servers/{server.id}/action", {"unlock": None})[0] == 202
    assert nova("DELETE", f"/servers/{server.id}")[0] == 204


def test_an_action_in_the_wrong_state_is_a_conflict(compute: ComputeHandle, cloud: Any, nova: Asked) -> None:
    server = settled(cloud, create(cloud, compute.offers, name="off", flavor="cpu.small"))
    path, stop = f"/servers/{server.id}/action", {"os-stop": None}
    assert nova("POST", path, stop)[0] == 202
    eventually(lambda: cloud.compute.get_server(server.id).status == "SHUTOFF", within_s=30)
    status, body = nova("POST", path, stop)
    assert (status, words(body).partition("it is in ")[2]) == (409, "vm_state stopped")


@pytest.fixture
def unfit(compute: ComputeHandle) -> Iterator[Any]:
    """A flavor that a test fills in; removed at the end."""
    operator = compute.operator()
    flavor = operator.compute.create_flavor(name="test.unfit", vcpus=1, ram=1024, disk=1)
    yield lambda extra_specs: operator.compute.create_flavor_extra_specs(flavor, extra_specs).id
    operator.compute.delete_flavor(flavor)


@pytest.mark.parametrize(
    "extra_specs", [{"resources:VGPU": "1", "trait:CUSTOM_GPU_B300": "required"}, {"resources:VGPU": "9"}]
)
def test_what_no_host_has_is_accepted_and_ends_in_error_without_a_port(
    cloud: Any, nova: Asked, wanted: dict[str, Any], unfit: Any, extra_specs: dict[str, str]
) -> None:
    status, body = nova("POST", "/servers", {"server": {"name": "unfit", **wanted, "flavorRef": unfit(extra_specs)}})
    assert status == 202
    server = settled(cloud, cloud.compute.get_server(body["server"]["id"]))
    assert (server.status, server.compute_host) == ("ERROR", None)
    assert "No valid host was found" in server.fault["message"]
    assert list(cloud.network.ports(device_id=server.id)) == []


@pytest.mark.parametrize(
    ("extra_specs", "said"),
    [
        ({"pci_passthrough:alias": "h999:1"}, "PCI alias h999 is not defined"),
        ({"accel:device_profile": "a100"}, "Could not communicate with Cyborg"),
    ],
)
def test_what_the_cloud_does_not_know_is_refused_at_once(
    nova: Asked, wanted: dict[str, Any], unfit: Any, extra_specs: dict[str, str], said: str
) -> None:
    status, body = nova("POST", "/servers", {"server": {"name": "unfit", **wanted, "flavorRef": unfit(extra_specs)}})
    assert status == 400
    assert said in words(body)


def test_a_port_of_ones_own_outlives_its_server_and_is_in_nobody_elses(
    compute: ComputeHandle, cloud: Any, nova: Asked, neutron: Asked, wanted: dict[str, Any]
) -> None:
    body = {"network_id": compute.offers["network_id"], "name": "ml-p", "description": "d" * LONGEST, "tags": ["t"]}
    (first, made), (second, _) = (
        neutron("POST", "/v2.0/ports", {"port": body}),
        neutron("POST", "/v2.0/ports", {"port": body}),
    )
    assert (first, second) == (201, 201)  # the name is not unique
    assert made["port"]["tags"] == []  # tags are not set by the call that creates
    assert neutron("POST", "/v2.0/ports", {"port": {**body, "description": "d" * (LONGEST + 1)}})[0] == 400
    port = made["port"]["id"]
    of_port = {**wanted, "networks": [{"port": port}]}
    server = settled(
        cloud,
        cloud.compute.create_server(
            name="with-port", flavor_id=wanted["flavorRef"], image_id=wanted["imageRef"], networks=of_port["networks"]
        ),
    )
    assert server.status == "ACTIVE"
    status, said = nova("POST", "/servers", {"server": {"name": "same-port", **of_port}})
    assert (status, words(said)) == (409, f"Port {port} is still in use.")
    assert neutron("DELETE", f"/v2.0/ports/{port}")[0] == 403  # in use by a server: not its project's to delete
    assert Asked(compute.stranger(), "network", "")("GET", "/v2.0/ports")[1]["ports"] == []

    cloud.compute.delete_server(server)

    gone(cloud, server)
    left = neutron("GET", f"/v2.0/ports/{port}")[1]["port"]
    assert (left["device_id"], left["status"]) == ("", "DOWN")
    assert [neutron("DELETE", f"/v2.0/ports/{port}")[0] for _ in range(2)] == [204, 404]


def test_a_volume_in_use_is_not_deleted_and_survives_its_server_unless_told_otherwise(
    compute: ComputeHandle, cloud: Any, cinder: Asked
) -> None:
    made = [cinder("POST", "/volumes", {"volume": {"name": "v", "size": 1}}) for _ in range(2)]
    assert [status for status, _ in made] == [202, 202]  # the name is not unique
    volume = made[0][1]["volume"]["id"]
    cloud.block_storage.wait_for_status(cloud.block_storage.get_volume(volume), "available", ["error"], 0.5, 60)
    server = settled(cloud, create(cloud, compute.offers, name="with-volume", flavor="cpu.small"))
    cloud.compute.create_volume_attachment(server, volume_id=volume)
    eventually(lambda: cloud.block_storage.get_volume(volume).status == "in-use", within_s=30)
    status, body = cinder("DELETE", f"/volumes/{volume}")
    assert (status, words(body).startswith("Invalid volume: Volume status must be available")) == (400, True)

    cloud.compute.delete_server(server)

    gone(cloud, server)
    eventually(lambda: cloud.block_storage.get_volume(volume).status == "available", within_s=30)
    assert cinder("DELETE", f"/volumes/{volume}")[0] == 202
    eventually(lambda: cinder("DELETE", f"/volumes/{volume}")[0] == 404, within_s=30)


def test_a_member_sees_limits_and_flavors_but_not_placement(cloud: Any, nova: Asked) -> None:
    absolute = nova("GET", "/limits")[1]["limits"]["absolute"]
    assert absolute["totalInstancesUsed"] < absolute["maxTotalInstances"] == 12
    flavors = nova("GET", "/flavors/detail")[1]["flavors"]
    assert next(f["extra_specs"] for f in flavors if f["name"] == "gpu.a100.mig")["resources:CUSTOM_MIG_1G_10GB"] == "1"
    placement = Asked(cloud, "placement", "placement 1.36")
    assert placement("GET", "/allocation_candidates?resources=VCPU:1")[0] == 403
