"""An Ironic-shaped cloud over HTTP whose machines become ready by a script; it counts what it is asked.

    python -m benchmarks.waits_cloud < names.json      prints its port; serves until it is ended

Keystone's token call, Ironic's lists (pages, `fields` ignored: it shows those that the library asks for) and single
reads, and the PATCH that renews. A machine is in `wait call-back` until its time, then `active`: the moment of a change
is exact, whoever looks when. One process, one event loop, bodies made once: it must not be what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import parse_qs, urlsplit
from uuid import NAMESPACE_DNS, uuid5

_NEVER = float("inf")
_DAY_S = 86400.0


@dataclass(slots=True)
class ScriptedCloud:
    """What it shows, and to whom it showed it how often.

    Attributes:
        names: Of the allocations; each has a machine of its own.
        ready_at: Unix time at which each machine is ready.
        calls: By kind.
    """

    names: list[str]
    ready_at: list[float] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    _index: dict[str, int] = field(default_factory=dict)
    _allocations: list[bytes] = field(default_factory=list)
    _machines: list[tuple[bytes, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        until = time.time() + _DAY_S
        for number, name in enumerate(self.names):
            allocation, machine = (str(uuid5(NAMESPACE_DNS, f"{kind} {name}")) for kind in ("allocation", "machine"))
            self._index |= {name: number, allocation: number, machine: number}
            self._allocations.append(json.dumps(_allocation(name, allocation, machine, until)).encode())
            self._machines.append(
                (
                    json.dumps(_machine(number, machine, "wait call-back")).encode(),
                    json.dumps(_machine(number, machine, "active")).encode(),
                )
            )
        self.ready_at = [_NEVER] * len(self.names)

    def answer(self, method: str, target: str, body: bytes, port: int) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of one request."""
        url = urlsplit(target)
        parts = url.path.strip("/").split("/")
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        match parts:
            case ["v3", "auth", "tokens"]:
                self.calls["token"] += 1
                return 201, json.dumps(_token(port)).encode(), {"X-Subject-Token": "a-token"}
            case ["v1", "allocations" | "nodes" as kind]:
                self.calls[f"list {kind}"] += 1
                return 200, self._page(kind, query), {}
            case ["v1", "allocations" | "nodes" as kind, ident] if ident in self._index:
                self.calls["renew" if method == "PATCH" else f"get {kind}"] += 1
                return 200, self._one(kind, self._index[ident], time.time()), {}
            case ["script"]:
                self.ready_at = [_NEVER if at is None else float(at) for at in json.loads(body)]
                return 200, b"{}", {}
            case ["calls"]:
                return 200, json.dumps(self.calls).encode(), {}
            case _:
                return 404, b"{}", {}

    def _page(self, kind: str, query: dict[str, str]) -> bytes:
        limit = min(int(query.get("limit", 1000)), 1000)
        first = self._index[query["marker"]] + 1 if "marker" in query else 0
        last, now = min(first + limit, len(self.names)), time.time()
        items = b",".join([self._one(kind, number, now) for number in range(first, last)])
        more = b',"next":"there is more"' if last < len(self.names) else b""
        return b'{"%s":[%s]%s}' % (kind.encode(), items, more)

    def _one(self, kind: str, number: int, now: float) -> bytes:
        return (
            self._allocations[number] if kind == "allocations" else self._machines[number][self.ready_at[number] <= now]
        )


async def serve(cloud: ScriptedCloud) -> None:
    """Until cancelled; prints the port first."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                method, target, _ = lines[0].split(" ", 2)
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, reply, more = cloud.answer(method, target, body, port)
                shown = {"Date": formatdate(usegmt=True), "Content-Type": "application/json", **more}
                fields = "".join(f"{key}: {value}\r\n" for key, value in shown.items())
                writer.write(f"HTTP/1.1 {status} -\r\n{fields}Content-Length: {len(reply)}\r\n\r\n".encode() + reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    print(port, flush=True)
    async with server:
        await server.serve_forever()


def _allocation(name: str, ident: str, machine: str, until: float) -> dict[str, object]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(until))
    marker = {
        "run_id": str(uuid5(NAMESPACE_DNS, name)),
        "deployment_id": str(uuid5(NAMESPACE_DNS, "benchmark")),
        "generation": 1,
        "index": 0,
        "nodes": 1,
        "owner": "benchmark",
        "deadline": moment,
        "renewed_until": moment,
        "priority": 1,
        "preemptible": False,
    }
    return {
        "uuid": ident,
        "name": name,
        "state": "active",
        "node_uuid": machine,
        "last_error": None,
        "created_at": "2026-01-01T00:00:00+00:00",
        "extra": {"mlops": marker},
        "links": [],
    }


def _machine(number: int, ident: str, state: str) -> dict[str, object]:
    return {
        "uuid": ident,
        "name": f"gpu-{number:05d}",
        "provision_state": state,
        "power_state": "power on",
        "maintenance": False,
        "fault": None,
        "last_error": None,
        "links": [],
    }


def _token(port: int) -> dict[str, object]:
    url = f"http://127.0.0.1:{port}"
    endpoint = {"id": "e", "interface": "public", "region": "RegionOne", "region_id": "RegionOne", "url": url}
    catalog = [{"type": kind, "id": kind, "name": kind, "endpoints": [endpoint]} for kind in ("baremetal", "identity")]
    return {
        "token": {
            "methods": ["password"],
            "user": {"id": "u", "name": "mlops", "domain": {"id": "default", "name": "Default"}},
            "project": {"id": "p", "name": "mlops", "domain": {"id": "default", "name": "Default"}},
            "roles": [{"id": "m", "name": "member"}],
            "issued_at": "2026-01-01T00:00:00.000000Z",
            "expires_at": "2099-01-01T00:00:00.000000Z",
            "catalog": catalog,
        }
    }


if __name__ == "__main__":
    asyncio.run(serve(ScriptedCloud(names=json.load(sys.stdin))))
