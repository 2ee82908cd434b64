"""The HTTP fake answers as Nova, Neutron and Cinder do: the cases of `tests/support_nova_answers.py`."""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.http_cloud.cinder import VolumePace
from mlops_sdk.testing.http_cloud.keystone import PROJECT
from mlops_sdk.testing.http_cloud.messages import Call, ServiceName
from mlops_sdk.testing.http_cloud.nova import NO_HOST
from mlops_sdk.testing.http_cloud.nova_wire import FakeFlavor
from mlops_sdk.testing.http_cloud.server_site import ServerSite
from mlops_sdk.testing.http_cloud.site import HttpCloud
from support_nova_answers import CASES, WRONG, Services, limits_and_wrong_requests_are_refused_at_once

IMAGE = "0a1b2c3d-0000-4000-8000-000000000001"
_PLAIN: dict[str, Any] = {"imageRef": IMAGE, "flavorRef": "f1"}


class Fake:
    """The fake, as two users."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.site = ServerSite(HttpCloud(self.clock.monotonic), quota=12)
        self.site.nova.flavors["f1"] = FakeFlavor(id="f1", name="cpu.small")
        self.site.nova.images[IMAGE] = "ubuntu"
        network = self.site.neutron.networks["net"]
        self.services = Services(
            nova=self.asked("compute", "/v2.1"),
            neutron=self.asked("network", ""),
            cinder=self.asked("block-storage", f"/v3/{PROJECT}"),
            placement=self.asked("placement", ""),
            strange_nova=self.asked("compute", "/v2.1", project="strange"),
            strange_neutron=self.asked("network", "", project="strange"),
            wanted={**_PLAIN, "networks": [{"uuid": network}]},
            network=network,
            until=self.until,
        )

    def asked(self, service: ServiceName, root: str, project: str = PROJECT) -> Callable[..., tuple[int, Any]]:
        def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
            url = urlsplit(f"{root}{path}")
            call = Call(service=service, method=method, path=url.path, query=dict(parse_qsl(url.query)), body=body)
            answer = self.site.handle(call, project)
            return answer.status, answer.body

        return ask

    def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(1000):
            if holds():
                return
            self.clock.sleep(0.1)
        raise AssertionError("never")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_it_answers_as_the_real_ones(case: Callable[[Services], None]):
    case(Fake().services)


@pytest.mark.parametrize(("more", "status", "said"), WRONG)
def test_limits_and_wrong_requests(more: dict[str, Any], status: int, said: str):
    limits_and_wrong_requests_are_refused_at_once(Fake().services, more, status, said)


def test_what_no_host_has_room_for_is_accepted_and_ends_in_error_without_a_port():
    fake = Fake()
    fake.site.nova.room = 0
    port = fake.services.neutron("POST", "/v2.0/ports", {"port": {"network_id": fake.services.network}})[1]["port"][
        "id"
    ]
    server = fake.services.made("unfit", networks=[{"port": port}])
    fake.until(lambda: fake.services.shown(server)["status"] == "ERROR")
    shown = fake.services.shown(server)
    assert (shown["fault"]["message"], shown["hostId"]) == (NO_HOST, "")
    assert fake.services.neutron("GET", f"/v2.0/ports?device_id={server}")[1]["ports"] == []
    fake.services.delete(server)


def test_more_servers_than_the_project_may_have():
    fake = Fake()
    for number in range(12):
        fake.services.made(f"n{number}")
    status, body = fake.services.nova("POST", "/servers", {"server": {"name": "one", **fake.services.wanted}})
    assert (status, body["forbidden"]["message"].startswith("Quota exceeded for instances: Requested 1,")) == (
        403,
        True,
    )


def test_what_is_deleted_before_a_cell_has_it_is_gone_at_once_and_leaves_no_record():
    fake = Fake()
    server = fake.services.made("short")
    assert fake.services.nova("DELETE", f"/servers/{server}")[0] == 204
    assert fake.services.nova("GET", f"/servers/{server}")[0] == 404
    assert fake.services.nova("GET", f"/servers/{server}/os-instance-actions")[0] == 404


def test_a_host_that_cannot_end_a_server_leaves_it_in_error_with_its_port_and_the_next_deletion_starts_anew():
    fake = Fake()
    port = fake.services.neutron("POST", "/v2.0/ports", {"port": {"network_id": fake.services.network}})[1]["port"][
        "id"
    ]
    server = fake.services.runs("stuck", networks=[{"port": port}])
    fake.site.nova.fails["end"] = 1
    fake.services.nova("DELETE", f"/servers/{server}")
    fake.until(lambda: fake.services.shown(server)["status"] == "ERROR")
    assert fake.services.neutron("GET", f"/v2.0/ports/{port}")[1]["port"]["device_id"] == server
    fake.services.delete(server)


def test_a_host_that_is_down_ends_nobody_and_nova_forgets_the_server_all_the_same():
    fake = Fake()
    server = fake.services.runs("lost")
    fake.site.nova.fails["down"] = 1
    fake.services.delete(server)
    assert server in fake.site.nova.guests
    shown = fake.services.nova("GET", f"/servers/{server}/os-instance-actions/req-delete")[1]["instanceAction"]
    assert shown["events"] == []


def test_a_recycle_bin_is_in_no_list_and_is_emptied_by_force():
    fake = Fake()
    server = fake.services.runs("binned")
    fake.site.nova.fails["recycle"] = 2
    assert [fake.services.nova("DELETE", f"/servers/{server}")[0] for _ in range(2)] == [204, 204]
    assert fake.services.shown(server)["status"] == "SOFT_DELETED"
    assert fake.services.nova("GET", "/servers/detail")[1]["servers"] == []
    assert fake.services.nova("POST", f"/servers/{server}/action", {"forceDelete": None})[0] == 202
    fake.until(lambda: fake.services.nova("GET", f"/servers/{server}")[0] == 404)


def test_a_volume_that_could_not_be_deleted_is_an_operators():
    fake = Fake()
    fake.site.cinder.fails["delete"] = 1
    cinder, pace = fake.services.cinder, VolumePace()
    volume = cinder("POST", "/volumes", {"volume": {"name": "v", "size": 1}})[1]["volume"]["id"]
    fake.clock.sleep(5)
    cinder("DELETE", f"/volumes/{volume}")
    assert cinder("DELETE", f"/volumes/{volume}")[0] == 400, "it is being deleted"
    fake.clock.sleep(pace.delete_s)
    assert cinder("GET", f"/volumes/{volume}")[1]["volume"]["status"] == "error_deleting"
    assert cinder("DELETE", f"/volumes/{volume}")[0] == 400
    fake.clock.sleep(pace.reset_s)
    assert cinder("DELETE", f"/volumes/{volume}")[0] == 202
