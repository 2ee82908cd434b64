"""A machine's S3 login: a file that is replaced while its clients live."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore.awsrequest import AWSResponse
from pydantic import SecretStr

from mlops_sdk.config import PerRun, S3Settings
from mlops_sdk.errors import AccessDenied, ServiceUnavailable
from mlops_sdk.identity.s3_token import S3Token
from mlops_sdk.objects import ObjectStore, connect_s3


def token(name: str, *, seconds: float = 600) -> S3Token:
    return S3Token(
        access_key_id=f"key-{name}",
        secret_access_key=SecretStr(f"hush-{name}"),
        session_token=SecretStr(f"token-{name}"),
        expires_at=datetime.now(UTC) + timedelta(seconds=seconds),
    )


class _NoBody:
    def stream(self):
        return iter(())


class Requests:
    """A store on a client whose requests are kept and answered here."""

    def __init__(self, path: Path) -> None:
        settings = S3Settings(
            endpoint="http://s3.invalid",
            access_key_id="",
            secret_access_key=SecretStr(""),
            credentials_file=str(path),
        )
        client = connect_s3(settings, attempts=1)
        client.meta.events.register("before-send.s3.PutObject", self._answer)
        self.store = ObjectStore(client, "ours")
        self.headers: list[str] = []

    def _answer(self, request, **_):
        self.headers.append(
            str(request.headers.get("X-Amz-Security-Token")) + str(request.headers.get("Authorization"))
        )
        return AWSResponse(request.url, 200, {"ETag": '"e"'}, _NoBody())


def test_a_client_goes_on_with_the_login_that_was_put_in_place_meanwhile(tmp_path):
    path = tmp_path / "s3.json"
    path.write_bytes(token("one").to_bytes())
    requests = Requests(path)
    requests.store.put("a", b"")
    path.write_bytes(token("two").to_bytes())
    requests.store.put("a", b"")
    for headers, name in zip(requests.headers, ("one", "two"), strict=True):
        assert f"token-{name}" in headers
        assert f"Credential=key-{name}/" in headers


def test_a_login_that_was_not_renewed_is_a_reason_to_try_again_and_says_so(tmp_path):
    path = tmp_path / "s3.json"
    path.write_bytes(token("one", seconds=20).to_bytes())
    requests = Requests(path)
    path.write_bytes(token("one", seconds=-1).to_bytes())
    with pytest.raises(ServiceUnavailable, match="was not renewed") as caught:
        requests.store.put("a", b"")
    assert "hush" not in str(caught.value)
    path.write_bytes(token("two").to_bytes())
    requests.store.put("a", b"")


@pytest.mark.parametrize("content", [None, b"{}", b'{"access_key_id": "hush"', token("one", seconds=-1).to_bytes()])
def test_without_a_usable_login_there_is_no_client(tmp_path, content):
    path = tmp_path / "s3.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AccessDenied) as caught:
        Requests(path)
    assert "hush" not in str(caught.value)


def test_a_token_shows_no_secret():
    shown = repr(token("one")) + token("one").model_dump_json()
    assert "hush" not in shown
    assert "token-one" not in shown


def test_a_role_is_needed_where_each_run_has_its_own_login():
    with pytest.raises(ValueError, match="needs run_role"):
        S3Settings(endpoint="http://s3", access_key_id="", secret_access_key=SecretStr(""), per_run=PerRun.STS)
