"""What the stack refuses, and how it says so."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from mlops_sdk.config import S3Settings
from mlops_sdk.errors import RemoteError, StackError
from mlops_sdk.local import addresses
from mlops_sdk.local.addresses import LOOPBACK
from mlops_sdk.local.layout import Layout
from mlops_sdk.local.process import StackProcess
from mlops_sdk.local.services.ceph import check_s3


def test_a_second_stack_on_one_state_directory_is_refused_and_names_the_holder(state_dir: Path) -> None:
    with StackProcess(state_dir, only=("ceph-mon",)) as first:
        first.wait_ready(timeout_s=60)
        with StackProcess(state_dir, only=("ceph-mon",)) as second, pytest.raises(StackError) as caught:
            second.wait_ready(timeout_s=60)
        assert f"held by process {first.pid}" in caught.value.seen
        assert first.wait_ready(timeout_s=1).ready


def test_a_taken_port_is_refused_and_names_the_process_that_listens(state_dir: Path) -> None:
    layout = Layout.at(state_dir)
    layout.create()
    port = addresses.choose_or_load(layout).mon
    with socket.create_server((LOOPBACK, port)):
        with StackProcess(state_dir, only=("ceph-mon",)) as stack, pytest.raises(StackError) as caught:
            stack.wait_ready(timeout_s=60)
        assert f"port {port} of the stack's mon is taken" in caught.value.seen
        assert f"held by process {os.getpid()} (" in caught.value.seen


def test_an_environment_that_is_not_set_up_is_named_with_what_to_run(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOPS_OPENSTACK_PYTHON", "/nowhere/bin/python")
    with StackProcess(state_dir, only=("ceph-mon",)) as stack, pytest.raises(StackError) as caught:
        stack.wait_ready(timeout_s=60)
    assert "missing: /nowhere/bin/python" in caught.value.seen
    assert "make setup" in caught.value.seen


def test_a_service_that_cannot_start_ends_the_stack_and_names_its_log(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOPS_OPENSTACK_PYTHON", "/bin/false")
    with StackProcess(state_dir, only=("ceph-mon", "keystone")) as stack, pytest.raises(StackError) as caught:
        stack.wait_ready(timeout_s=60)
    assert "false failed with exit status 1" in caught.value.seen
    assert str(stack.layout.log("keystone-setup")) in caught.value.seen


class Forgetful(BaseHTTPRequestHandler):
    """An S3 server, as small as can be, that accepts If-None-Match and ignores it."""

    objects: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200)

    def do_HEAD(self) -> None:
        self._answer(200)

    def do_GET(self) -> None:
        self._answer(200, self.objects.get(self.path, b""))

    def do_DELETE(self) -> None:
        self._answer(204)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("ETag", '"x"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def forgetful_s3() -> Iterator[S3Settings]:
    with ThreadingHTTPServer((LOOPBACK, 0), Forgetful) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://{LOOPBACK}:{server.server_port}"
        yield S3Settings.model_validate({"endpoint": endpoint, "access_key_id": "a", "secret_access_key": "b"})
        server.shutdown()


def test_an_s3_server_that_ignores_if_none_match_is_refused(forgetful_s3: S3Settings) -> None:
    with pytest.raises(RemoteError, match="does not honour If-None-Match") as caught:
        check_s3(forgetful_s3)
    assert re.search(r"8 of 8 concurrent conditional PUTs won", caught.value.seen)
