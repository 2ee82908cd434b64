"""A port here that leads to a port of a host which only SSH reaches: how users get to a model behind a gateway.

    async with forwarded(target.host, 8000) as way:
        way.url  # http://127.0.0.1:40123, the proxy of the serving host

Every hop's host key is pinned, as for commands. The SSH connection is watched: when it breaks, it is made again, and
who connects meanwhile waits for it. What was under way on the broken one ends with it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager

import asyncssh

from mlops_sdk.errors import MlopsError, RemoteCommandError
from mlops_sdk.remote.ssh import Connection, Host, connect

_FIRST_S = 30.0
_AGAIN_S = 15.0
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_PATIENCE_S = 30.0  # of who connects while the SSH connection is made again
_CHUNK = 1 << 16

Tell = Callable[[str], None]
_Reader = asyncio.StreamReader | asyncssh.SSHReader[bytes]
_Writer = asyncio.StreamWriter | asyncssh.SSHWriter[bytes]


class Forward:
    """An open way. Made by `forwarded` and `forwarding`.

    Attributes:
        address: Where it listens.
        port: On which port.
        opened: How often the SSH connection was made.
    """

    def __init__(self, host: Host, destination: tuple[str, int], tell: Tell) -> None:
        self.address = ""
        self.port = 0
        self.opened = 0
        self._host = host
        self._destination = destination
        self._tell = tell
        self._connection: Connection | None = None
        self._there = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._users: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """For HTTP."""
        return f"http://{self.address}:{self.port}"

    async def listen(self, at: tuple[str, int]) -> None:
        """Accept users from now on; they wait until there is a connection.

        Raises:
            RemoteCommandError: something else listens there.
        """
        try:
            self._server = await asyncio.start_server(self._accept, *at)
        except OSError as error:
            raise RemoteCommandError(
                f"nothing can listen on {at[0]}:{at[1]} for what leads to {self._host.name!r}",
                seen=str(error),
                next_step="choose another port, or end what listens there",
            ) from error
        self.address, self.port = self._server.sockets[0].getsockname()[:2]

    async def close(self) -> None:
        """No users any more."""
        if self._server is not None:
            self._server.close()
        users = tuple(self._users)
        for user in users:
            user.cancel()
        await asyncio.gather(*users, return_exceptions=True)

    async def keep_open(self, connection: Connection) -> None:
        """Watch the connection, and make it again whenever it breaks; until cancelled."""
        pause = _PAUSE_S
        while True:
            self._use(connection)
            try:
                await connection.raw.wait_closed()
            finally:
                self._there.clear()
                await connection.close()
            self._tell(f"the connection to {self._host.name!r} broke; it is made again")
            while (made := await self._made_again()) is None:
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE_S, pause * 2)
            connection, pause = made, _PAUSE_S
            self._tell(f"the connection to {self._host.name!r} is back")

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        self.opened += 1
        self._there.set()

    async def _made_again(self) -> Connection | None:
        """None where it cannot be; another machine that answers there gets nothing of what users say."""
        try:
            return await connect(self._host, timeout_s=_AGAIN_S)
        except MlopsError as error:
            self._tell(str(error))
            return None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = asyncio.create_task(self._pass_on(reader, writer))
        self._users.add(user)
        user.add_done_callback(self._users.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One user's connection. Whatever breaks ends both sides: a client must not take half a reply for a whole."""
        try:
            await asyncio.wait_for(self._there.wait(), timeout=_PATIENCE_S)
            if self._connection is not None:
                await self._carry(self._connection, reader, writer)
        except* (asyncssh.Error, OSError, TimeoutError) as broken:
            _reset(writer)
            self._tell(f"a user's connection to {self._host.name!r} ended: {broken.exceptions[0]}")
        finally:
            writer.close()

    async def _carry(self, over: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await over.raw.open_connection(*self._destination, encoding=None)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(reader, far_writer))
                both.create_task(_copy(far_reader, writer))
        finally:
            far_writer.close()


@asynccontextmanager
async def forwarded(
    host: Host,
    port: int,
    *,
    to: str = "127.0.0.1",
    listen: tuple[str, int] = ("127.0.0.1", 0),
    tell: Tell | None = None,
) -> AsyncGenerator[Forward]:
    """A port here that leads to `port` of a host, for the block.

    Args:
        host: Logged in to, through its gateway if it has one.
        port: Of what is wanted.
        to: Where that listens, as the host sees it.
        listen: Address and port here; port 0: a free one.
        tell: Called with a line when the connection breaks or comes back.

    Raises:
        HostKeyMismatch, NodeFailed: as `mlops_sdk.remote.ssh.connect`, for the first connection.
        RemoteCommandError: the port here is taken.
    """
    connection = await connect(host, timeout_s=_FIRST_S)
    way = Forward(host, (to, port), tell or _say_nothing)
    watch = asyncio.create_task(way.keep_open(connection))
    try:
        await way.listen(listen)
        yield way
    finally:
        await way.close()
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await connection.close()


@contextmanager
def forwarding(host: Host, port: int, *, to: str = "127.0.0.1", tell: Tell | None = None) -> Generator[Forward]:
    """`forwarded` for notebooks and scripts, on a free port: in a thread of its own for the block."""
    opened, over = threading.Event(), threading.Event()
    found: list[Forward | BaseException] = []

    async def work() -> None:
        async with forwarded(host, port, to=to, tell=tell) as way:
            found.append(way)
            opened.set()
            await asyncio.to_thread(over.wait)

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            found.insert(0, error)
        finally:
            opened.set()

    thread = threading.Thread(target=run, name=f"forward-{host.name}")
    thread.start()
    try:
        opened.wait()
        if not isinstance(found[0], Forward):
            raise found[0]
        yield found[0]
    finally:
        over.set()
        thread.join()


async def _copy(reader: _Reader, writer: _Writer) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that the other side sees an error; closing it would look like the end of a reply."""
    link = writer.get_extra_info("socket")
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _say_nothing(_line: str) -> None:
    return
