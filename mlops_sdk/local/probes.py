"""Readiness probes: each returns when the service answers and raises `NotReady` otherwise."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from pathlib import Path
from typing import Any

from mlops_sdk.local.addresses import LOOPBACK
from mlops_sdk.local.service import NotReady

_TIMEOUT_S = 3.0


def answers_http(
    port: int, path: str = "/", *, host: str = LOOPBACK, below: int = 500, timeout_s: float = _TIMEOUT_S
) -> None:
    """An HTTP GET gets a status below `below`."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise NotReady(f"GET http://{host}:{port}{path}: {error}") from error
    finally:
        connection.close()
    if status >= below:
        raise NotReady(f"GET http://{host}:{port}{path}: status {status}")


def ceph_socket_says(path: Path, command: str, field: str, wanted: tuple[str, ...]) -> None:
    """A Ceph daemon's admin socket reports one of the wanted values."""
    try:
        value = str(ask_ceph_socket(path, command).get(field))
    except (OSError, ValueError) as error:
        raise NotReady(f"{path.name}: {error}") from error
    if value not in wanted:
        raise NotReady(f"{path.name}: {field} is {value!r}")


def accepts(port: int, *, host: str = LOOPBACK) -> None:
    """Somebody listens on a TCP port."""
    try:
        socket.create_connection((host, port), timeout=_TIMEOUT_S).close()
    except OSError as error:
        raise NotReady(f"{host}:{port}: {error}") from error


def speaks_amqp(port: int, *, host: str = LOOPBACK) -> None:
    """A message broker answers the first frame of AMQP 0-9-1 with one of its own."""
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            kind = _read(connection, 1)
    except OSError as error:
        raise NotReady(f"{host}:{port}: {error}") from error
    if kind != b"\x01":  # a method frame: Connection.Start
        raise NotReady(f"{host}:{port}: answered {kind!r}")


def said(log: Path, word: str, *, since: int = 0) -> None:
    """A log file contains a word, behind its first `since` bytes: for a service that listens nowhere."""
    try:
        text = log.read_bytes()[since:].decode(errors="replace")
    except OSError as error:
        raise NotReady(str(error)) from error
    if word not in text:
        raise NotReady(f"{log.name} does not say {word!r} yet")


def ask_ceph_socket(path: Path, command: str) -> dict[str, Any]:
    """Ask a Ceph daemon through its admin socket: a NUL-terminated JSON request, a length-prefixed JSON answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(str(path))
        connection.sendall(json.dumps({"prefix": command}).encode() + b"\0")
        (length,) = struct.unpack(">I", _read(connection, 4))
        return json.loads(_read(connection, length))


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise OSError("the connection ended early")
        data += piece
    return data
