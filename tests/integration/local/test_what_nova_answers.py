"""What Nova, Neutron and Cinder answer where a lease depends on it: the facts of docs/resources.md, asked of them.

Each of these is also what the provider of servers counts on; a new release that answers differently fails here first.
The cases of `support_nova_answers` hold the fake of `mlops_sdk.testing.http_cloud`, too (tests/unit/http_cloud).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from support import eventually
from support_compute import ComputeHandle, settled, take_back_servers
from support_nova_answers import CASES, WRONG, Services, limits_and_wrong_requests_are_refused_at_once, words

pytestmark = [pytest.mark.stack, pytest.mark.slow]


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
def wanted(compute: ComputeHandle, cloud: Any) -> dict[str, Any]:
    """A small server that Nova would make."""
    return {
        "flavorRef": cloud.compute.find_flavor("cpu.small").id,
        "imageRef": cloud.image.find_image(compute.offers["image"]).id,
        "networks": [{"uuid": compute.offers["network_id"]}],
    }


@pytest.fixture
def services(compute: ComputeHandle, cloud: Any, nova: Asked, wanted: dict[str, Any]) -> Services:
    stranger = compute.stranger()
    return Services(
        nova=nova,
        neutron=Asked(cloud, "network", ""),
        cinder=Asked(cloud, "block-storage", "volume 3.70"),
        placement=Asked(cloud, "placement", "placement 1.36"),
        strange_nova=Asked(stranger, "compute", "compute 2.96"),
        strange_neutron=Asked(stranger, "network", ""),
        wanted=wanted,
        network=compute.offers["network_id"],
        until=lambda holds: eventually(holds, within_s=60),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_the_fake_is_held_to(case: Callable[[Services], None], services: Services) -> None:
    case(services)


@pytest.mark.parametrize(("more", "status", "said"), WRONG)
def test_limits_and_wrong_requests_are_refused_at_once(
    services: Services, more: dict[str, Any], status: int, said: str
) -> None:
    limits_and_wrong_requests_are_refused_at_once(services, more, status, said)


def test_what_was_deleted_is_still_told_to_its_owner_who_asks_for_changes(services: Services) -> None:
    server = services.runs("short")
    services.delete(server)
    path = "/servers/detail?name=^short$&changes-since=2020-01-01T00:00:00Z"
    found = services.nova("GET", path)[1]["servers"]
    assert (found[0]["id"], found[0]["status"]) == (server, "DELETED")


def test_a_member_sees_the_extra_specs_of_flavors(nova: Asked) -> None:
    flavors = nova("GET", "/flavors/detail")[1]["flavors"]
    assert next(f["extra_specs"] for f in flavors if f["name"] == "gpu.a100.mig")["resources:CUSTOM_MIG_1G_10GB"] == "1"


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
        ({"accel:device_profile": "a100"}, "Expected 1 device profile but got nothing"),
    ],
)
def test_what_the_cloud_does_not_know_is_refused_at_once(
    nova: Asked, wanted: dict[str, Any], unfit: Any, extra_specs: dict[str, str], said: str
) -> None:
    status, body = nova("POST", "/servers", {"server": {"name": "unfit", **wanted, "flavorRef": unfit(extra_specs)}})
    assert status == 400
    assert said in words(body)
