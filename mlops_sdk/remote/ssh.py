"""SSH to machines whose host key is known before the first packet: connect, put a file, run a command.

Secrets travel over SSH standard input, never in a command line. The host key of the lease is pinned; nothing is learned
from the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from mlops_sdk.errors import HostKeyMismatch, NodeFailed, RemoteCommandError

_CONNECT_TRY_S = 10.0
_RETRY_S = 0.3
_KEEPALIVE_S = 5.0
_KEEPALIVE_MISSES = 4

if logging.getLogger("asyncssh").level == logging.NOTSET:  # unless somebody wants them: some thirty lines a connection
    logging.getLogger("asyncssh").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine to log in to.

    Attributes:
        name: For messages.
        address: Where its SSH daemon answers.
        host_public_key: The one key it may show (OpenSSH one-line form).
        client_private_key: OpenSSH PEM form.
        username: Account on the machine.
        port: TCP port of the SSH daemon.
        via: The gateway through which it is reached, with a pinned key of its own; None for the direct way.
    """

    name: str
    address: str
    host_public_key: str
    client_private_key: str = field(repr=False)
    username: str = "root"
    port: int = 22
    via: Host | None = None


class Connection:
    """An SSH connection to one host. Made by `connect`."""

    def __init__(self, host: Host, raw: asyncssh.SSHClientConnection, gateway: Connection | None = None) -> None:
        self.host = host
        self.raw = raw
        self._gateway = gateway

    def is_open(self) -> bool:
        """Whether the connection still stands, as far as keep-alives have told."""
        return not self.raw.is_closed()

    async def put_bytes(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Write a file on the machine; it appears complete under its name or not at all.

        The content goes over standard input; parent directories are made with mode 0700.

        Raises:
            RemoteCommandError: naming the host, the path and what the machine said.
        """
        target, temporary = shlex.quote(path), shlex.quote(f"{path}.new")
        parent = shlex.quote(path.rpartition("/")[0] or "/")
        script = (
            f"umask 077 && mkdir -p {parent} && cat > {temporary} && chmod {mode:o} {temporary} "
            f"&& mv -f {temporary} {target}"
        )
        await self.run(["sh", "-c", script], stdin=data, what=f"writing {path!r}")

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", what: str = "", timeout_s: float = 60.0) -> str:
        """Run a short command to its end and return its standard output.

        Raises:
            RemoteCommandError: when it fails, runs too long, or the connection breaks.
        """
        title = what or f"running {argv[0]!r}"
        try:
            given: dict[str, Any] = {"input": stdin} if stdin else {"stdin": asyncssh.DEVNULL}  # b"" would not end it
            done = await self.raw.run(shlex.join(argv), **given, encoding=None, timeout=timeout_s)
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise RemoteCommandError(
                f"{title} on {self.host.name!r} was cut off",
                seen=_describe(error),
                next_step="check that the machine is still powered on and in the lease",
            ) from error
        if done.exit_status != 0:
            raise RemoteCommandError(
                f"{title} on {self.host.name!r} failed",
                seen=f"exit status {done.exit_status}: {_text(done.stderr)[-500:].strip()}",
                next_step="see the machine's own words above",
            )
        return _text(done.stdout)

    async def close(self) -> None:
        """Close the connection; every process that holds its life line ends with it."""
        self.raw.close()
        with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
            await asyncio.wait_for(self.raw.wait_closed(), timeout=2)
        if self._gateway is not None:
            await self._gateway.close()


async def connect(host: Host, *, timeout_s: float) -> Connection:
    """Log in, waiting for the machine to come up; through its gateway, if it has one.

    Raises:
        HostKeyMismatch: at once, when another key than the pinned one is shown.
        NodeFailed: when no login succeeded within `timeout_s`; says what was seen last.
    """
    if host.via is None:
        return await _connect(host, None, timeout_s=timeout_s)
    gateway = await connect(host.via, timeout_s=timeout_s)
    try:
        return await _connect(host, gateway, timeout_s=timeout_s)
    except BaseException:
        await gateway.close()
        raise


async def _connect(host: Host, gateway: Connection | None, *, timeout_s: float) -> Connection:
    give_up = time.monotonic() + timeout_s
    last = "nothing was tried"
    while True:
        pin = _Pin()
        try:
            raw = await _attempt(host, gateway, pin, max(1.0, min(_CONNECT_TRY_S, give_up - time.monotonic())))
            return Connection(host, raw, gateway)
        except asyncssh.HostKeyNotVerifiable as error:
            raise _mismatch(host, pin.seen) from error
        except asyncssh.KeyExchangeFailed as error:
            raise _mismatch(host, f"no key of type {_algorithm(host)!r} ({error.reason})") from error
        except (asyncssh.Error, OSError, TimeoutError) as error:
            last = _describe(error)
        if time.monotonic() + _RETRY_S >= give_up:
            raise NodeFailed(
                f"no SSH login on {host.name!r} at {host.address}:{host.port} within {timeout_s:g} s",
                seen=last,
                next_step="look at the machine's console and BMC; take it out of service if it does not boot",
            )
        await asyncio.sleep(_RETRY_S)


def run_once(
    host: Host, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0, login_s: float = 0.0
) -> str:
    """Log in, run one short command, log out; returns its standard output.

    Blocks. In a thread of its own, so that it works where an event loop runs already, as in a notebook. A login may
    take `login_s`, where that is not 0, and the command `timeout_s`.

    Raises:
        HostKeyMismatch, NodeFailed: as `connect`.
        RemoteCommandError: the command failed or took longer than `timeout_s`.
    """

    async def once() -> str:
        connection = await connect(host, timeout_s=login_s or timeout_s)
        try:
            return await connection.run(argv, stdin=stdin, timeout_s=timeout_s)
        finally:
            await connection.close()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, once()).result()


@asynccontextmanager
async def connected(hosts: Sequence[Host], *, timeout_s: float) -> AsyncGenerator[list[Connection]]:
    """Connections to all hosts, in order; all are closed at the end. All or none: the first failure is raised."""
    opened: list[Connection] = []

    async def open_one(host: Host) -> Connection:
        connection = await connect(host, timeout_s=timeout_s)
        opened.append(connection)
        return connection

    tasks = [asyncio.create_task(open_one(host)) for host in hosts]
    try:
        yield list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(connection.close() for connection in opened))


def fingerprint(public_key: str) -> str:
    """``SHA256:...`` of a public key in OpenSSH one-line form."""
    return asyncssh.import_public_key(public_key).get_fingerprint()


class _Pin(asyncssh.SSHClient):
    """Is asked only about keys that are not the pinned one: remembers and refuses them."""

    def __init__(self) -> None:
        self.seen = "no key"

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        del host, addr, port
        self.seen = key.get_fingerprint()
        return False


async def _attempt(host: Host, gateway: Connection | None, pin: _Pin, timeout_s: float) -> asyncssh.SSHClientConnection:
    label = f"[{host.address}]:{host.port}" if host.port != 22 else host.address  # noqa: PLR2004 - SSH's port
    return await asyncio.wait_for(
        asyncssh.connect(
            host.address,
            host.port,
            tunnel=() if gateway is None else gateway.raw,
            username=host.username,
            client_keys=[asyncssh.import_private_key(host.client_private_key)],
            known_hosts=asyncssh.import_known_hosts(f"{label} {host.host_public_key.strip()}\n"),
            server_host_key_algs=[_algorithm(host)],
            client_factory=lambda: pin,
            agent_path=None,
            config=None,
            keepalive_interval=_KEEPALIVE_S,
            keepalive_count_max=_KEEPALIVE_MISSES,
            preferred_auth="publickey",
        ),
        timeout=timeout_s,
    )


def _algorithm(host: Host) -> str:
    return host.host_public_key.split(maxsplit=1)[0]


def _mismatch(host: Host, seen: str) -> HostKeyMismatch:
    return HostKeyMismatch(
        f"the machine at {host.address}:{host.port} is not {host.name!r}: it does not hold the host key of this lease",
        seen=f"{seen}, expected {fingerprint(host.host_public_key)}",
        next_step="do not log in by hand; check the inventory's address of this machine and who answers there, "
        "then lease again",
    )


def _describe(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def _text(data: bytes | str | bytearray | memoryview | None) -> str:
    if data is None:
        return ""
    return data if isinstance(data, str) else bytes(data).decode(errors="replace")
