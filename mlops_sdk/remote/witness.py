"""What can be seen of machines over SSH: our own login to each, and what those that answer reach of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from mlops_sdk.capacity.loss import Answer, Channel, Statement, blind_if_all_silent, of_peers
from mlops_sdk.capacity.node import Node
from mlops_sdk.errors import HostKeyMismatch, NodeFailed, RemoteCommandError
from mlops_sdk.remote.ssh import Connection, Host, connect

if TYPE_CHECKING:
    from mlops_sdk.run import Run

_LOGIN_S = 8.0
_PROBE_S = 4
# exits with 0 when a TCP connection to the machine's SSH daemon is made; both arguments are ours
_PROBE = "exec 3<>/dev/tcp/$0/$1"


class Witness(Protocol):
    """Looks at machines through channels that do not fail together."""

    def look(self, nodes: Sequence[Node]) -> Mapping[str, tuple[Statement, ...]]:
        """What each channel says of each machine, by its name. Never raises for what a machine does."""
        ...


class SshWitness(Witness):
    """`Witness` over SSH, as whoever leads the run.

    Args:
        hosts: How to log in, by name of the machine.
    """

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self._hosts = hosts

    @classmethod
    def of(cls, run: Run) -> SshWitness:
        """For the machines that a run holds."""
        from mlops_sdk.training.site import Site  # noqa: PLC0415 - the site of a job knows how machines are reached

        lease = run.held
        nodes = (*lease.nodes, *lease.spares) if lease is not None else ()
        site = Site.of(run)
        return cls({node.name: site.host(node) for node in nodes})

    def look(self, nodes: Sequence[Node]) -> Mapping[str, tuple[Statement, ...]]:
        """All at once, in seconds. In a thread of its own, so that it works where an event loop runs already."""
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(asyncio.run, self._look(nodes)).result()

    async def _look(self, nodes: Sequence[Node]) -> Mapping[str, tuple[Statement, ...]]:
        logins = await asyncio.gather(*(self._login(node.name) for node in nodes))
        names = [node.name for node in nodes]
        said = blind_if_all_silent({name: statement for name, (statement, _) in zip(names, logins, strict=True)})
        open_ones = {name: found for name, (_, found) in zip(names, logins, strict=True) if found is not None}
        try:
            peers = await asyncio.gather(*(self._peers(name, open_ones) for name in names))
        finally:
            await asyncio.gather(*(connection.close() for connection in open_ones.values()))
        return {name: (said[name], statement) for name, statement in zip(names, peers, strict=True)}

    async def _login(self, name: str) -> tuple[Statement, Connection | None]:
        try:
            connection = await connect(self._hosts[name], timeout_s=_LOGIN_S)
            await connection.run(["true"], timeout_s=_LOGIN_S)
        except HostKeyMismatch as error:  # another machine answers there: nothing is known of ours
            return Statement(channel=Channel.SSH, answer=Answer.BLIND, words=error.seen), None
        except (NodeFailed, RemoteCommandError) as error:
            return Statement(channel=Channel.SSH, answer=Answer.SILENT, words=error.seen or error.what), None
        return Statement(channel=Channel.SSH, answer=Answer.ALIVE, words="logs in"), connection

    async def _peers(self, name: str, open_ones: Mapping[str, Connection]) -> Statement:
        """Whether the others reach it."""
        target = self._hosts[name]
        if target.via is not None:
            return Statement(channel=Channel.PEERS, answer=Answer.BLIND, words="it is behind a gateway")
        others = {peer: connection for peer, connection in open_ones.items() if peer != name}
        found = await asyncio.gather(*(_reaches(connection, target) for connection in others.values()))
        return of_peers({peer: yes for peer, yes in zip(others, found, strict=True) if yes is not None})


async def _reaches(connection: Connection, target: Host) -> bool | None:
    """Whether a machine reaches another's SSH daemon; None when it could not even be asked."""
    argv = ["timeout", str(_PROBE_S), "bash", "-c", _PROBE, target.address, str(target.port)]
    shown = ["sh", "-c", '"$@" 2>/dev/null && echo yes || echo no', "sh", *argv]
    try:
        answer = await connection.run(shown, timeout_s=_PROBE_S + _LOGIN_S)
    except RemoteCommandError:
        return None
    return answer.strip() == "yes"
