"""Hosts that are reached through a gateway only: a key is pinned at both hops, and there is no direct route."""

import asyncio
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mlops_sdk.errors import HostKeyMismatch, NodeFailed, RemoteCommandError
from mlops_sdk.remote.forward import Forward, forwarding
from mlops_sdk.remote.ssh import Host, connect, run_once
from mlops_sdk.serving.host import connected_host
from mlops_sdk.serving.target import VllmTarget
from mlops_sdk.testing.settings import fake_settings
from support import eventually
from support_sshd import SshdHost, behind_a_gateway, new_key

_STREAM = """
import http.server, time
class Replies(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        for number in range(1000000 if self.path == "/endless" else 3):
            self.wfile.write(b"data: %d\\n" % number)
            time.sleep(0.02)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Replies).serve_forever()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rack:
    gateway: SshdHost
    machine: SshdHost


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    with behind_a_gateway(tmp_path_factory.mktemp("gateway-")) as (gateway, machine):
        yield Rack(gateway=gateway, machine=machine)


@pytest.fixture(scope="module")
def node(rack: Rack) -> Host:
    return replace(host_of(rack.machine), via=host_of(rack.gateway))


@pytest.fixture(scope="module")
def served(rack: Rack) -> Iterator[None]:
    """Something that streams, on the node's own loopback."""
    inside = ["nsenter", "-t", str(rack.machine.pid), "-n", "python3", "-c", _STREAM]
    with subprocess.Popen(inside) as server:
        yield
        server.kill()


def host_of(host: SshdHost) -> Host:
    return Host(
        name=host.name,
        address=host.address,
        host_public_key=host.host_key.public,
        client_private_key=host.login.private,
        username="pool",
        port=host.port,
    )


def test_a_command_reaches_the_node_and_there_is_no_other_way(node: Host):
    assert run_once(node, ["cat", "/etc/hostname"], timeout_s=10) == "node\n"
    with pytest.raises(NodeFailed, match="no SSH login on 'node'"):
        run_once(replace(node, via=None), ["true"], timeout_s=1)


def test_what_a_command_says_comes_back_while_it_runs(node: Host):
    async def lines() -> list[str]:
        connection = await connect(node, timeout_s=10)
        try:
            await connection.put_bytes("/scratch/secret", b"over standard input")
            async with connection.raw.create_process("cat /scratch/secret; echo; echo done") as process:
                return [line.strip() async for line in process.stdout]
        finally:
            await connection.close()

    assert asyncio.run(lines()) == ["over standard input", "done"]


@pytest.mark.parametrize("hop", ["gateway", "node"])
def test_a_wrong_key_at_either_hop_is_refused_at_once(node: Host, hop: str):
    assert node.via is not None
    wrong = new_key().public
    if hop == "gateway":
        host = replace(node, via=replace(node.via, host_public_key=wrong))
    else:
        host = replace(node, host_public_key=wrong)
    with pytest.raises(HostKeyMismatch, match=f"is not '{hop}'"):
        run_once(host, ["true"], timeout_s=10)


def test_a_gateway_that_is_away_is_named(node: Host):
    assert node.via is not None
    host = replace(node, via=replace(node.via, port=23))
    with pytest.raises(NodeFailed, match="no SSH login on 'gateway'"):
        run_once(host, ["true"], timeout_s=1)


def test_users_reach_a_server_behind_the_gateway_by_a_port_here(node: Host, served: None):
    with forwarding(node, 8000) as way:
        eventually(lambda: answer(way), within_s=10, what="the server is up")
        assert answer(way) == b"data: 0\ndata: 1\ndata: 2\n"
    with pytest.raises(OSError, match="refused"):
        answer(way)


def test_a_broken_way_is_made_again_and_half_a_reply_is_not_taken_for_a_whole(node: Host, served: None):
    told: list[str] = []
    with forwarding(node, 8000, tell=told.append) as way:
        eventually(lambda: answer(way), within_s=10, what="the server is up")
        with urllib.request.urlopen(f"{way.url}/endless", timeout=10) as endless:  # noqa: S310 - our own port
            assert endless.readline() == b"data: 0\n"
            cut_off(node)
            with pytest.raises(ConnectionResetError):
                endless.read()
        assert answer(way) == b"data: 0\ndata: 1\ndata: 2\n"  # who comes meanwhile waits
        assert way.opened == 2
    assert [line for line in told if "broke" in line]


def test_nobody_listens_for_a_host_with_another_key(node: Host):
    with (
        pytest.raises(HostKeyMismatch, match="is not 'node'"),
        forwarding(replace(node, host_public_key=new_key().public), 8000),
    ):
        pass


def test_a_models_files_come_through_the_login_where_the_host_has_no_way_to_the_store(rack: Rack, node: Host):
    store = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=store.serve_forever, daemon=True).start()
    host, port = store.server_address[:2]
    s3 = fake_settings().s3.model_copy(update={"endpoint": f"http://{host}:{port}"})
    target = VllmTarget(host=node, base_url="", root="/scratch/s", python="python3", haproxy_socket="/p/s", ports={})
    weights = f"weights for {host}:{port}".encode()
    file = {"name": "weights", "url": f"http://{host}:{port}/weights", "sha256": hashlib.sha256(weights).hexdigest()}

    async def fetch() -> int:
        async with connected_host(target) as there, there.way_to(s3) as through:
            await there.order("fetch", stdin={"name": "m1", "files": [file], "through": through})
            return through

    through = asyncio.run(fetch())
    store.shutdown()
    assert (rack.machine.root / "scratch/s/models/m1/weights").read_bytes() == weights
    with pytest.raises(RemoteCommandError):  # the way has ended with the login
        run_once(node, ["curl", "--max-time", "2", f"http://127.0.0.1:{through}"])


class Store(http.server.BaseHTTPRequestHandler):
    """Says which host it was asked as: a signed address holds for that one only."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"weights for {self.headers['Host']}".encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_the_command_leads_users_there_until_it_is_told_to_end(rack: Rack, node: Host, served: None, tmp_path: Path):
    config = tmp_path / "client.toml"
    config.write_text(settings_text(rack, tmp_path))
    argv = [str(Path(sys.executable).with_name("mlops")), "serving", "forward", "node", "--listen", "127.0.0.1:0"]
    environment = {**os.environ, "MLOPS_CONFIG": str(config)}
    with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True) as command:
        assert command.stderr is not None
        lines = map(json.loads, command.stderr)
        url = next(line for line in lines if line["event"] == "listening")["url"]
        eventually(lambda: fetched(url), within_s=10, what="the server is up")
        command.terminate()
        assert command.wait(timeout=10) == 0
    with pytest.raises(OSError, match="refused"):
        fetched(url)


def settings_text(rack: Rack, folder: Path) -> str:
    """Of a deployment whose services nobody asks here."""
    (folder / "key").write_text(rack.machine.login.private)
    return f"""
deployment_id = "6f1c3d1e-0000-4000-8000-000000000001"
broker_key = "{"k" * 32}"
static_key_file = "{folder / "key"}"
s3 = {{ endpoint = "http://127.0.0.1:1", access_key_id = "a", secret_access_key = "s" }}
keystone = {{ auth_url = "http://127.0.0.1:1" }}
mlflow = {{ tracking_uri = "http://127.0.0.1:1" }}

[[static_hosts]]
name = "node"
address = "{rack.machine.address}"
user = "pool"
host_public_key = "{rack.machine.host_key.public}"
resource_class = "serving"
gateway = "door"

[[static_gateways]]
name = "door"
address = "{rack.gateway.address}"
user = "pool"
host_public_key = "{rack.gateway.host_key.public}"
"""


def cut_off(node: Host) -> None:
    """End every session on the gateway, the one that says so too."""
    assert node.via is not None
    with pytest.raises(RemoteCommandError):
        run_once(node.via, ["pkill", "-KILL", "-u", node.via.username])


def answer(way: Forward) -> bytes:
    return fetched(way.url)


def fetched(url: str) -> bytes:
    """What a server says; nothing while it is not up, which ends the connection wherever it is by then."""
    try:
        with urllib.request.urlopen(url, timeout=20) as reply:  # noqa: S310 - our own port
            return reply.read()
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ConnectionResetError | BrokenPipeError):
            raise
    except ConnectionResetError:
        pass
    return b""
