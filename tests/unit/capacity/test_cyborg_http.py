"""What Cyborg's replies come to; they are real ones of the version in docs/providers.md."""

from collections.abc import Mapping
from typing import Any, cast

import pytest

from mlops_sdk.capacity.device_profiles import NO_CYBORG, NOT_SHOWN
from mlops_sdk.capacity.providers.nova_http import NovaHttp
from mlops_sdk.cloud import Cloud, Reply, error_for, words_of
from mlops_sdk.errors import AccessDenied, RemoteError

BOUND = {
    "uuid": "8227ce76-1176-49c5-b380-42d63bf8453d",
    "state": "Bound",
    "device_profile_name": "a30",
    "device_profile_group_id": 0,
    "hostname": "gpu-host-1",
    "device_rp_uuid": "66ae4985-27ed-3417-be6d-b5432be72e96",
    "instance_uuid": "1630a744-fa4f-4ee8-b2fd-07293cc62834",
    "project_id": "c7cc1767c4484d15b2169e23eff0799b",
    "attach_handle_type": "PCI",
    "attach_handle_info": {"domain": "0000", "bus": "9b", "device": "00", "function": "0"},
}
SERVICES_ONLY = {
    "error_message": '{"faultcode": "Client", "faultstring": "This operation requires a service token. '
    'Use the Compute API to manage instance accelerators.", "debuginfo": null}'
}


class Wire:
    """Answers as a `Cloud` whose Cyborg replies so; remembers what was asked."""

    def __init__(self, status: int = 200, body: Mapping[str, Any] | None = None, *, there: bool = True) -> None:
        self._status = status
        self._body = dict(body or {})
        self._there = there
        self.asked: list[tuple[str, str, dict[str, str], dict[str, str]]] = []

    def has(self, service: str) -> bool:
        assert service == "accelerator"
        return self._there

    def token(self) -> str:
        return "a service's"

    def request(self, service: str, method: str, path: str, **more: Any) -> Reply:
        self.asked.append((method, path, dict(more.get("params") or {}), dict(more.get("headers") or {})))
        if self._status >= 400:
            raise error_for(self._status, f"{service} {method} {path}", words_of(self._body))
        return Reply(status=self._status, body=self._body)


def api(wire: Wire, service: Wire | None = None) -> NovaHttp:
    return NovaHttp(cast("Cloud", wire), cast("Cloud", service) if service is not None else None)


def test_profiles_are_read_with_their_groups():
    groups = [{"resources:PGPU": "1", "trait:CUSTOM_GPU_A30": "required"}]
    wire = Wire(body={"device_profiles": [{"name": "a30", "uuid": "1", "description": None, "groups": groups}]})
    known = api(wire).device_profiles()
    assert isinstance(known, Mapping)
    assert str(known["a30"]) == "a30 (PGPU=1 CUSTOM_GPU_A30=required)"
    assert wire.asked == [("GET", "/v2/device_profiles", {}, {})]


def test_without_cyborg_or_the_right_to_look_it_is_said_why():
    nowhere = Wire(there=False)
    assert api(nowhere).device_profiles() == NO_CYBORG
    assert api(nowhere).accelerator_requests("1") == ()
    assert nowhere.asked == []
    assert api(Wire(403)).device_profiles() == NOT_SHOWN
    assert api(Wire(401)).accelerator_requests("1") is None
    with pytest.raises(RemoteError):
        api(Wire(503)).accelerator_requests("1")


def test_requests_are_asked_for_by_server():
    wire = Wire(body={"arqs": [BOUND]})
    (found,) = api(wire).accelerator_requests(str(BOUND["instance_uuid"])) or ()
    assert (found.server, found.device) == (BOUND["instance_uuid"], "0000:9b:00.0")
    assert wire.asked[-1][:3] == ("GET", "/v2/accelerator_requests", {"instance": BOUND["instance_uuid"]})
    assert api(wire).accelerator_requests() == (found,)
    assert wire.asked[-1][2] == {}


def test_a_card_is_freed_with_a_service_token_and_not_without():
    wire = Wire(204)
    with pytest.raises(AccessDenied) as caught:
        api(wire).free_accelerators("1")
    assert "nova.service_login" in caught.value.next_step
    assert wire.asked == []
    api(wire, Wire()).free_accelerators("1")
    assert wire.asked == [
        ("DELETE", "/v2/accelerator_requests", {"instance": "1"}, {"X-Service-Token": "a service's"}),
    ]
    with pytest.raises(AccessDenied, match="requires a service token"):
        api(Wire(403, SERVICES_ONLY), Wire()).free_accelerators("1")
