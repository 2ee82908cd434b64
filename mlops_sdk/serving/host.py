"""The serving host over SSH: one method per order of its keeper, and the files that lie beside it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shlex
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, Self
from urllib.parse import urlsplit

import asyncssh

from mlops_sdk.config import S3Settings
from mlops_sdk.errors import RemoteCommandError, ServingError
from mlops_sdk.remote.ssh import Connection, connect
from mlops_sdk.serving import router
from mlops_sdk.serving.keeper import REFUSED
from mlops_sdk.serving.rollout import Instance, Slot
from mlops_sdk.serving.router import Admin
from mlops_sdk.serving.target import VllmTarget

_ORDER_S = 60.0
_CONNECT_S = 30.0
_BUSY_POLL_S = 1.0
_WORDS = 1500
_HTTP, _HTTPS = 80, 443


class ServingHost:
    """A connection to a serving host. Made by `connected_host`; a connection that broke is made anew, once an order."""

    def __init__(self, target: VllmTarget, connection: Connection) -> None:
        self.target = target
        self._connection = connection
        self._keeper = target.path("bin", "keeper.py")

    @classmethod
    async def open(cls, target: VllmTarget) -> Self:
        """Log in, and bring the keeper if the host has none or another one.

        Raises:
            HostKeyMismatch, NodeFailed: as `mlops_sdk.remote.ssh.connect`.
        """
        host = cls(target, await connect(target.host, timeout_s=_CONNECT_S))
        try:
            await host.put(host._keeper, resources.files("mlops_sdk.serving").joinpath("keeper.py").read_bytes())
        except BaseException:
            await host.close()
            raise
        return host

    async def close(self) -> None:
        """Log out. Instances and their keepers stay."""
        await self._connection.close()

    async def put(self, path: str, content: bytes) -> None:
        """Have this file there; it is sent only when it is not."""
        digest = hashlib.sha256(content).hexdigest()
        script = f"sha256sum {shlex.quote(path)} 2>/dev/null || true"
        seen = await self._run(["sh", "-c", script])
        if seen.split(maxsplit=1)[:1] != [digest]:
            await (await self._connected()).put_bytes(path, content)

    async def look(self) -> dict[str, Slot]:
        """All slots, with their servers in the proxy.

        Raises:
            ServingError: the proxy does not answer, or has no place for our slots.
        """
        there, replies = await asyncio.gather(self.order("look"), self.proxy(router.LOOK))
        servers = router.read_servers(replies)
        return {slot: _slot(slot, there["slots"].get(slot, {}), servers[slot]) for slot in sorted(self.target.ports)}

    async def proxy(self, commands: Sequence[str]) -> list[str]:
        """Commands to haproxy's runtime API, and its replies."""
        order = {"socket": self.target.haproxy_socket, "commands": list(commands)}
        return list((await self.order("proxy", stdin=order))["replies"])

    async def tell_proxy(self, ready: Sequence[str], versions: Mapping[str, str], slot: str, admin: Admin) -> None:
        """Change one server's state: in the proxy's files first, then in the running proxy."""
        folder = self.target.proxy_folder
        await self.put(f"{folder}/{router.VERSIONS_FILE}", router.versions(versions).encode())
        await self.put(f"{folder}/{router.BACKEND_FILE}", router.backend(folder, self.target.ports, ready).encode())
        version = versions.get(slot, "")
        replies = await self.proxy([router.announce(folder, slot, version)])
        if router.unknown(replies[0]):
            replies = await self.proxy([router.announce(folder, slot, version, known=False)])
        replies += await self.proxy([router.order(slot, admin)])
        if any(map(router.refused, replies)):
            raise ServingError(
                f"haproxy on {self.target.host.name!r} did not set {slot!r} to {admin}",
                seen="; ".join(filter(None, replies)),
                next_step=f"see its configuration: the backend is {folder}/{router.BACKEND_FILE}",
            )

    async def order(
        self, order: str, name: str = "", *, stdin: Mapping[str, Any] | None = None, timeout_s: float = _ORDER_S
    ) -> dict[str, Any]:
        """Give the keeper an order.

        Raises:
            ServingError: it refused.
            RemoteCommandError: it could not be asked.
        """
        argv = [
            self.target.python,
            "-I",
            "-S",
            self._keeper,
            "--root",
            self.target.root,
            order,
            *([name] if name else []),
        ]
        return json.loads(await self._run(argv, stdin=json.dumps(stdin or {}).encode(), timeout_s=timeout_s))

    async def prune(self) -> None:
        """Remove models that no slot names, and counted prompts of versions that were served long ago."""
        await self.order("prune", stdin={"keep_profiles_days": self.target.engine.keep_profiles_days})

    @asynccontextmanager
    async def way_to(self, store: S3Settings) -> AsyncGenerator[int]:
        """For the block a port on the host that leads to the store's `endpoint` through our login; 0: none is needed.

        Hosts behind a gateway may be without a way of their own; any other has to reach `node_endpoint`.

        Raises:
            ServingError: its SSH daemon opens no such port.
        """
        if self.target.host.via is None or (await self.order("reaches", stdin=_place(store, node=True)))["reached"]:
            yield 0
            return
        there = _place(store, node=False)
        raw = (await self._connected()).raw
        try:
            listener = await raw.forward_remote_port("127.0.0.1", 0, there["host"], there["port"])
        except (asyncssh.Error, OSError) as error:
            raise ServingError(
                f"{self.target.host.name!r} is behind a gateway, and there is no way for it to the store",
                seen=str(error) or type(error).__name__,
                next_step="give it a route to the store, or let its SSH daemon forward ports (AllowTcpForwarding)",
            ) from error
        try:
            yield listener.get_port()
        finally:
            listener.close()

    @asynccontextmanager
    async def alone(self, *, wait_s: float) -> AsyncGenerator[None]:
        """Within the block nobody else rolls out on this host. The lock ends with the connection, however that ends.

        Raises:
            ServingError: somebody else did for longer than `wait_s`.
        """
        give_up = asyncio.get_running_loop().time() + wait_s
        while (process := await self._hold()) is None:
            if asyncio.get_running_loop().time() > give_up:
                raise ServingError(
                    f"another roll-out is at work on {self.target.host.name!r}",
                    seen=f"for {wait_s:.0f} s",
                    next_step="wait for it, then try again",
                )
            await asyncio.sleep(_BUSY_POLL_S)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, asyncssh.Error):
                process.stdin.write_eof()
                await asyncio.wait_for(process.wait_closed(), timeout=2)
            process.close()

    async def _hold(self) -> asyncssh.SSHClientProcess[bytes] | None:
        argv = [self.target.python, "-I", "-S", self._keeper, "--root", self.target.root, "hold", "rollout"]
        raw = (await self._connected()).raw
        process = await raw.create_process(shlex.join(argv), encoding=None)
        if await process.stdout.readline():
            return process
        process.close()
        return None

    async def _run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = _ORDER_S) -> str:
        connection = await self._connected()
        try:
            done = await connection.raw.run(shlex.join(argv), input=stdin, encoding=None, timeout=timeout_s)
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise RemoteCommandError(
                f"running {argv[0]!r} on {self.target.host.name!r} was cut off",
                seen=str(error) or type(error).__name__,
                next_step="check that the serving host is up; a roll-out that is started again goes on",
            ) from error
        said = _text(done.stderr).strip()[-500:]
        if done.exit_status == REFUSED:
            raise ServingError(
                f"the serving host {self.target.host.name!r} refused",
                seen=said,
                next_step="correct what it says; a roll-out that is started again goes on",
            )
        if done.exit_status != 0:
            raise RemoteCommandError(
                f"running {argv[0]!r} on {self.target.host.name!r} failed",
                seen=f"exit status {done.exit_status}: {said}",
                next_step="see the host's own words above",
            )
        return _text(done.stdout)

    async def _connected(self) -> Connection:
        if not self._connection.is_open():
            self._connection = await connect(self.target.host, timeout_s=_CONNECT_S)
        return self._connection


@asynccontextmanager
async def connected_host(target: VllmTarget) -> AsyncGenerator[ServingHost]:
    """A serving host, logged in to for the block."""
    host = await ServingHost.open(target)
    try:
        yield host
    finally:
        await host.close()


def _place(store: S3Settings, *, node: bool) -> dict[str, Any]:
    parts = urlsplit((node and store.node_endpoint) or store.endpoint)
    return {"host": parts.hostname or "", "port": parts.port or (_HTTPS if parts.scheme == "https" else _HTTP)}


def _slot(name: str, view: Mapping[str, Any], server: router.Server) -> Slot:
    wanted = bool(view) and not view["stopping"]
    instance = Instance(model=view["model"], version=view["version"], sha256=view["sha256"]) if wanted else None
    last = str(view.get("last_exit", ""))
    return Slot(
        name=name,
        instance=instance,
        kept=bool(view.get("kept")),
        running=bool(view.get("running")),
        restarts=int(view.get("restarts", 0)),
        since=float(view.get("since", 0.0)),
        words=f"{last}; its last words: {str(view.get('tail', ''))[-_WORDS:]}" if last else "",
        server=server,
    )


def _text(data: bytes | str | bytearray | memoryview | None) -> str:
    if data is None:
        return ""
    return data if isinstance(data, str) else bytes(data).decode(errors="replace")
