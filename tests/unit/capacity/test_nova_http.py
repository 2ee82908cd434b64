"""What Nova's, Neutron's and Placement's replies come to; they are real ones of the versions in docs/providers.md."""

from collections.abc import Callable, Collection
from typing import Any, cast

import pytest

from mlops_sdk.capacity.providers.nova_api import Refused
from mlops_sdk.capacity.providers.nova_http import NovaHttp
from mlops_sdk.capacity.providers.nova_states import Refusal
from mlops_sdk.cloud import Cloud, Reply, error_for, words_of
from mlops_sdk.errors import AccessDenied, RemoteError, ServiceUnavailable, SettingsError

Answer = tuple[int, dict[str, Any]]


class Wire:
    """Answers as a `Cloud` would whose services reply so; remembers what was asked."""

    def __init__(self, answer: Callable[[str, str], Answer]) -> None:
        self._answer = answer
        self.asked: list[tuple[str, str, Any]] = []

    def has(self, service: str) -> bool:
        return service != "block-storage"

    def request(
        self, service: str, method: str, path: str, *, body: Any = None, accept: Collection[int] = (), **_: Any
    ) -> Reply:
        self.asked.append((method, path, body))
        status, replied = self._answer(method, path)
        if status < 400 or status in accept:
            return Reply(status=status, body=replied)
        raise error_for(status, f"{service} {method} {path}", words_of(replied))


def api(answer: Callable[[str, str], Answer]) -> tuple[NovaHttp, Wire]:
    wire = Wire(answer)
    return NovaHttp(cast("Cloud", wire)), wire


def test_a_list_that_neutron_breaks_off_is_read_again_and_not_for_ever():
    gone = {"NeutronError": {"type": "PortNotFound", "message": "Port 1 could not be found.", "detail": ""}}
    replies = iter([(404, gone), (200, {"ports": [{"id": "2", "name": "n"}]})])
    found, _ = api(lambda _m, _p: next(replies))
    assert [port.id for port in found.list_ports()] == ["2"]
    broken, wire = api(lambda _m, _p: (404, gone))
    with pytest.raises(ServiceUnavailable, match="404 Port 1"):
        list(broken.list_ports())
    assert len(wire.asked) == 5


def test_a_port_that_is_still_bound_is_let_go_of_and_deleted_by_the_next_try():
    denied = {"NeutronError": {"type": "PolicyNotAuthorized", "message": "rule:delete_port is disallowed by policy"}}
    found, wire = api(lambda method, _p: (403, denied) if method == "DELETE" else (200, {"port": {}}))
    with pytest.raises(Refused) as caught:
        found.delete_port("1")
    assert caught.value.kind is Refusal.AGAIN
    assert wire.asked[-1] == ("PUT", "/v2.0/ports/1", {"port": {"device_id": "", "device_owner": ""}})


@pytest.mark.parametrize(
    ("status", "reply", "kind"),
    [
        (403, {"forbidden": {"code": 403, "message": "Quota exceeded for instances: Requested 1"}}, Refusal.FULL),
        (409, {"conflictingRequest": {"code": 409, "message": "Instance 1 is locked"}}, Refusal.AGAIN),
        (
            409,
            {"NeutronError": {"type": "OverQuota", "message": "Quota exceeded for resources: ['port']."}},
            Refusal.FULL,
        ),
        (403, {"forbidden": {"code": 403, "message": "Policy doesn't allow it to be performed."}}, AccessDenied),
        (400, {"badRequest": {"code": 400, "message": "Invalid availability zone"}}, RemoteError),
        (500, {"computeFault": {"code": 500, "message": "Unexpected API Error."}}, ServiceUnavailable),
    ],
)
def test_a_refusal_is_told_by_status_and_words(status: int, reply: dict[str, Any], kind: Any):
    found, _ = api(lambda _m, _p: (status, reply))
    expected = Refused if isinstance(kind, Refusal) else kind
    with pytest.raises(expected) as caught:
        found.delete_server("1")
    if isinstance(kind, Refusal):
        assert cast("Refused", caught.value).kind is kind


def test_placement_that_refuses_this_login_is_asked_once():
    denied = {"errors": [{"status": 403, "title": "Forbidden", "detail": "Access was denied to this resource."}]}
    found, wire = api(lambda _m, _p: (403, denied))
    assert found.stock({"": {"VCPU": 1}}, ()) is None
    assert found.is_allocated("1") is None
    assert len(wire.asked) == 1
    unknown = {"errors": [{"status": 400, "detail": "Invalid resource class in resources parameter"}]}
    assert api(lambda _m, _p: (400, unknown))[0].stock({"": {"CUSTOM_X": 1}}, ()) == []


def test_the_end_of_a_server_is_read_from_its_actions_and_not_made_up():
    actions = {"instanceActions": [{"action": "delete", "request_id": "r"}, {"action": "stop", "request_id": "s"}]}
    event = {"event": "compute_terminate_instance", "result": "Success", "finish_time": "2026-11-23T09:18:07.770982"}
    shown: dict[str, Any] = {"instanceAction": {"action": "delete", "events": [event]}}
    found, _ = api(lambda _m, path: (200, shown if path.endswith("/r") else actions))
    assert [(a.event, a.result) for a in found.actions("1") or ()] == [
        ("", ""),
        ("compute_terminate_instance", "Success"),
    ]
    silent, _ = api(lambda _m, path: (200, {"instanceAction": {}} if path.endswith("/r") else actions))
    assert silent.actions("1") is None
    assert api(lambda _m, _p: (404, {}))[0].actions("1") is None


def test_a_name_of_two_networks_is_refused_and_an_id_taken_as_it_is():
    two = {"networks": [{"id": "1"}, {"id": "2"}]}
    found, wire = api(lambda _m, _p: (200, two))
    with pytest.raises(SettingsError, match="2 of the cloud's networks are named 'net'"):
        found.find_network("net")
    known = "18ce37e8-20fb-4dc3-b151-69bfc0cd8ee9"
    assert found.find_network(known) == known
    assert len(wire.asked) == 1


def test_a_cloud_without_cinder_has_no_volumes():
    found, wire = api(lambda _m, _p: (500, {}))
    assert list(found.list_volumes()) == []
    assert wire.asked == []
