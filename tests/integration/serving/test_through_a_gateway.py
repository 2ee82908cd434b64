"""A model served on a node that only a gateway reaches, with every direct route blocked, in both directions."""

from __future__ import annotations

import asyncio
import shutil
import socket
import string
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mlops_pipelines.recipes.clients import StreamingClients
from mlops_sdk.errors import NodeFailed
from mlops_sdk.local.layout import Tools
from mlops_sdk.objects import ObjectStore
from mlops_sdk.remote.forward import forwarding
from mlops_sdk.remote.ssh import Host, connect, run_once
from mlops_sdk.serving import router
from mlops_sdk.serving.deploy import roll_out_and_wait, withdraw
from mlops_sdk.serving.target import Engine, VllmTarget
from support import eventually
from support_models import stored_model
from support_sshd import SshdHost, behind_a_gateway

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]

NAME = "tiny-lm"
ROOT = "/scratch/serving"
PORTS = {"blue": 8101, "green": 8102}
PORT = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rack:
    machine: SshdHost
    host: Host

    def runs(self, *argv: str) -> bool:
        """Whether a command succeeds on the node, without going there by SSH."""
        inside = ["nsenter", "-t", str(self.machine.pid), "-n", *argv]
        return subprocess.run(inside, check=False, capture_output=True).returncode == 0


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    tools = Tools.find()
    with behind_a_gateway(tmp_path, image=tools.vllm_image) as (gateway, machine):
        proxy = machine.root / ROOT.lstrip("/") / "proxy"
        proxy.mkdir(parents=True)
        (proxy / router.BACKEND_FILE).write_text(router.backend(f"{ROOT}/proxy", PORTS, ready=()))
        (proxy / router.VERSIONS_FILE).write_text(router.versions(dict.fromkeys(PORTS, "")))
        template = string.Template(tools.infra("templates", "haproxy.cfg").read_text())
        front = template.substitute(proxy=f"{ROOT}/proxy", address="127.0.0.1", port=PORT)
        (machine.root / "etc/haproxy.cfg").write_text(front)
        shutil.copytree(tools.vllm_image / "vllm-cache", proxy.parent / "cache/vllm")
        subprocess.run(["chown", "-R", "4242:4242", proxy.parent], check=True)
        yield Rack(machine=machine, host=replace(host_of(machine), via=host_of(gateway)))


def test_command_log_and_stream_go_through_the_gateway_when_nothing_else_does(stack, tmp_path, rack):
    s3 = urlsplit(stack.settings.s3.node_endpoint)
    assert not rack.runs("curl", "--max-time", "3", s3.geturl())
    assert not rack.runs("ip", "route", "get", s3.hostname)
    assert not any(reaches(rack.host.address, port) for port in (22, PORT))
    with pytest.raises(NodeFailed, match="no SSH login"):
        run_once(replace(rack.host, via=None), ["true"], timeout_s=1)

    assert run_once(rack.host, ["cat", "/etc/hostname"]) == "node\n"
    assert asyncio.run(lines_of(rack.host, "echo step 1; echo step 2 >&2")) == ["step 1", "step 2"]

    model = stored_model(ObjectStore.open(stack.settings.s3), tmp_path, name=NAME, version=1)
    run_once(
        rack.host, ["/usr/sbin/haproxy", "-D", "-f", "/etc/haproxy.cfg", "-f", f"{ROOT}/proxy/{router.BACKEND_FILE}"]
    )
    with forwarding(rack.host, PORT) as way:
        target = target_behind(rack.host, way.url)
        served = roll_out_and_wait(target, model, stack.settings.s3, tell=print)
        assert (served.endpoint, served.version) == (f"{way.url}/v1", "1")
        with StreamingClients(way.url, NAME, ["import os"], clients=2, pause_s=0.1, max_tokens=24) as users:
            eventually(lambda: users.tally.completed > 5, within_s=60, what="users stream")
        assert users.tally.failures == []
        assert users.tally.by_version.keys() == {"1"}
        asyncio.run(withdraw(target))
    assert not (rack.machine.root / ROOT.lstrip("/") / "models" / model.sha256[:32]).exists()


def target_behind(host: Host, base_url: str) -> VllmTarget:
    return VllmTarget(
        host=host,
        base_url=base_url,
        root=ROOT,
        python="/opt/image/bin/python",
        haproxy_socket=f"{ROOT}/proxy/admin.sock",
        ports=PORTS,
        engine=Engine.for_cpu(),
    )


def host_of(machine: SshdHost) -> Host:
    return Host(
        name=machine.name,
        address=machine.address,
        host_public_key=machine.host_key.public,
        client_private_key=machine.login.private,
        username="pool",
    )


def reaches(address: str, port: int) -> bool:
    with socket.socket() as link:
        link.settimeout(1)
        return link.connect_ex((address, port)) == 0


async def lines_of(host: Host, script: str) -> list[str]:
    """What a command says, as it says it."""
    connection = await connect(host, timeout_s=10)
    try:
        async with connection.raw.create_process(f"{{ {script}; }} 2>&1") as process:
            return [line.strip() async for line in process.stdout]
    finally:
        await connection.close()
