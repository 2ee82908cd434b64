"""Hosts that are reached through a gateway only: a key is pinned at both hops, and there is no direct route."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mlops_sdk.errors import HostKeyMismatch, NodeFailed
from mlops_sdk.remote.ssh import Host, connect, run_once
from support_sshd import SshdHost, behind_a_gateway, new_key


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with behind_a_gateway(tmp_path_factory.mktemp("gateway-")) as (gateway, node):
        yield replace(host_of(node), via=host_of(gateway))


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
