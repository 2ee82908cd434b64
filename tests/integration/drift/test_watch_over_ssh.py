"""From a served prompt to an alert: the profiler in a real server, its files read over a real SSH login."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mlops_sdk.drift.on_host import profiles_folder, prompt_profiler
from mlops_sdk.drift.store import alerts, put_reference
from mlops_sdk.drift.watcher import Reading, look, read_profiles
from mlops_sdk.errors import HostKeyMismatch, NodeFailed
from mlops_sdk.identity.ssh_keys import client_key, host_key
from mlops_sdk.remote.ssh import Host
from mlops_sdk.testing.memory_s3 import memory_store
from support import eventually
from support_drift import reference, traffic

KEY = "k" * 32
RUN = uuid.UUID(int=11)

SERVE = """
import importlib, json, sys
import uvicorn
async def model(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive(); await send({"type": "lifespan.startup.complete"})
        await receive(); await send({"type": "lifespan.shutdown.complete"})
        return
    while (await receive()).get("more_body"): pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"data: [DONE]"})
module, _, name = sys.argv[1].rpartition(".")
uvicorn.run(getattr(importlib.import_module(module), name)(model), host="127.0.0.1", port=int(sys.argv[2]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """This machine, through an sshd of the test's own."""
    ours, port = host_key(KEY, RUN, 1, 0), free_port()
    folder = tmp_path / "sshd"
    folder.mkdir(mode=0o700)
    (folder / "host").write_text(ours.private)
    (folder / "host").chmod(0o600)
    (folder / "authorized").write_text(client_key(KEY, RUN, 1).public + "\n")
    options = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
        "PermitRootLogin": "prohibit-password",
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it, wherever it was started from
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert program
    daemon = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    try:
        yield Host(
            name="serving-host",
            address="127.0.0.1",
            port=port,
            username=pwd.getpwuid(os.getuid()).pw_name,
            host_public_key=ours.public,
            client_private_key=client_key(KEY, RUN, 1).private,
        )
    finally:
        daemon.terminate()
        daemon.wait(10)


class Server:
    """A serving process with the profiler, started as a roll-out would: the files sent, and nothing else of ours."""

    def __init__(self, root: Path, version: str, *trained: str) -> None:
        sent = prompt_profiler(reference(*trained))
        for name, content in sent.files.items():
            (root / "lib" / version / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "lib" / version / name).write_bytes(content)
        environment = {
            **os.environ,
            **sent.environment,
            "PYTHONPATH": str(root / "lib" / version),
            "MLOPS_PROFILE_DIR": f"{profiles_folder(str(root))}/{version}",
            "MLOPS_MODEL_VERSION": version,
        }
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, sent.path, str(self.port)], env=environment, cwd="/", stderr=subprocess.PIPE
        )
        eventually(self._answers, within_s=20, what="the server answers")

    def send(self, *prompts: str) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}") as client:
            for text in prompts:
                assert client.post("/v1/completions", content=json.dumps({"prompt": text})).status_code == 200

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        server.stop()


def test_prompts_of_another_kind_become_an_alert_and_the_next_version_is_at_peace(
    host: Host, serve: list[Server], tmp_path: Path
) -> None:
    store, root = memory_store(), tmp_path / "root"
    for trained in (("python",), ("python", "cpp")):
        put_reference(store, reference(*trained))
    folder = profiles_folder(str(root))
    assert read_profiles(host, folder).profiles == ()  # nothing was ever served

    serve.append(Server(root, "1", "python"))
    serve[0].send(*traffic("python", 60, seed=1))
    serve[0].stop()  # writes what it counted
    calm = look(store, "code-lm", read_profiles(host, folder), by="run-1")
    assert (calm.model_version, calm.fresh, calm.announce, calm.alert) == ("1", 60, False, "")

    serve.append(Server(root, "1", "python"))  # restarted: another counter
    serve[1].send(*traffic("cpp", 60, seed=2))
    eventually(
        lambda: sum(p.counts.prompts for p in read_profiles(host, folder).profiles) == 120,
        within_s=5,
        what="flushed while serving",
    )
    drifted = look(store, "code-lm", read_profiles(host, folder), by="run-2")
    assert (drifted.fresh, drifted.announce, drifted.widen_to) == (60, True, ("python", "cpp"))
    assert [alert.id for alert in alerts(store)] == [drifted.alert]

    serve.append(Server(root, "2", "python", "cpp"))
    serve[2].send(*traffic("cpp", 60, seed=3))
    serve[2].stop()
    healed = look(store, "code-lm", read_profiles(host, folder), by="run-3")
    assert (healed.model_version, healed.fresh, healed.alert, healed.announce) == ("2", 60, "", False)


def test_a_notebook_whose_event_loop_runs_can_look(host: Host, tmp_path: Path) -> None:
    async def cell() -> Reading:
        return read_profiles(host, str(tmp_path / "nothing-was-served"))

    assert asyncio.run(cell()).profiles == ()


def test_another_machine_at_the_address_is_not_asked(host: Host, tmp_path: Path) -> None:
    stranger = host_key(KEY, uuid.UUID(int=12), 1, 0).public
    with pytest.raises(HostKeyMismatch):
        read_profiles(
            Host(
                name=host.name,
                address=host.address,
                port=host.port,
                username=host.username,
                host_public_key=stranger,
                client_private_key=host.client_private_key,
            ),
            str(tmp_path),
        )


def test_a_host_that_is_down_is_an_error_that_names_it(tmp_path: Path) -> None:
    nobody = Host(
        name="serving-host",
        address="127.0.0.1",
        port=free_port(),
        host_public_key=host_key(KEY, RUN, 1, 0).public,
        client_private_key=client_key(KEY, RUN, 1).private,
    )
    with pytest.raises(NodeFailed, match="serving-host"):
        read_profiles(nobody, str(tmp_path), timeout_s=1)
