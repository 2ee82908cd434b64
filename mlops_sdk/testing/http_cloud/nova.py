"""Nova in memory: servers that find a host, are built there and end, with the answers of the real one.

What was seen of Nova 34 and is obeyed here: names are not unique; a list by name takes an expression; a server that no
host has yet is gone as soon as it is deleted, and leaves no record; one that is being built goes when its host is
through with that; a port is bound by the host, not by the call, so two servers may be asked for with one port, the
second fails, and then Nova lets go of the port that the first one uses; what no host has room for is accepted and ends
in `ERROR`; a host that is down ends nothing, and Nova forgets its servers all the same; what a recycle bin, or a cell
that does not answer, holds is in no list; the time is in the `Date` of each reply.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any, Final

from mlops_sdk.testing.http_cloud.cinder import FakeCinder
from mlops_sdk.testing.http_cloud.ironic import START
from mlops_sdk.testing.http_cloud.listing import ident, page
from mlops_sdk.testing.http_cloud.messages import Answer, Call
from mlops_sdk.testing.http_cloud.neutron import FakeNeutron
from mlops_sdk.testing.http_cloud.nova_wire import (
    FakeFlavor,
    cannot,
    fault,
    flavor_shown,
    limits_shown,
    refused_form,
    server_shown,
    unknown_shown,
)

NO_HOST: Final = "No valid host was found. There are not enough hosts available."
_KIND: Final = 0x5E4
_HOST: Final = "nova.invalid"
_NEVER: Final = float("inf")
_ERROR: Final = 400
_FILTERS: Final = {"name", "limit", "marker", "metadata", "deleted", "changes-since", "status"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPace:
    """How many seconds things take."""

    place_s: float = 0.8
    build_s: float = 20.0
    end_s: float = 5.0


@dataclass(slots=True, kw_only=True)
class FakeServer:
    """A server as Nova keeps it.

    Attributes:
        ports: Ids of its ports, made before it.
        networks: Ids of those that Nova makes it a port on.
        status: As a list shows it.
        task: What Nova does with it now.
        host: Which host has it; "" while none has.
        keep: Ids of volumes that stay when it goes.
        built_at: When its host is through with building it.
        next: What becomes of it, and when.
    """

    id: str
    name: str
    project: str
    flavor: FakeFlavor
    metadata: Mapping[str, str]
    ports: tuple[str, ...]
    created: datetime
    networks: tuple[str, ...] = ()
    keep: frozenset[str] = frozenset()
    status: str = "BUILD"
    task: str = "scheduling"
    host: str = ""
    hidden: bool = True
    """No cell has it yet."""
    locked: bool = False
    launched: str = ""
    fault: str = ""
    built_at: float = 0.0
    next: tuple[float, str] = (_NEVER, "")


class FakeNova:
    """One Nova, with one host that has room for so many servers.

    Args:
        monotonic: The world's clock, in seconds.
        neutron: Where its servers' ports are.
        cinder: Where their volumes are.
        pace: How long things take.
        room: How many servers the host has room for.
        quota: How many a project may have.

    Attributes:
        servers: By id.
        history: What was done to each, by id, also to those that are gone: action, event, result, when.
        images: Ids of the images that there are.
        fails: How many more times: ``build`` fails on the host; ``hang``: it never ends; ``end`` fails; ``down``: the
            host is down when a server is deleted; ``recycle``: a deletion is a soft one.
        guests: Ids of the servers that run on the host, whatever Nova knows.
        away_until: So long the cell, which knows all servers that have found a host, does not answer.
        offset_s: How far its clock is from the world's.
        on_room: Told when there is room again.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        neutron: FakeNeutron,
        cinder: FakeCinder,
        *,
        pace: ServerPace | None = None,
        room: int = 4,
        quota: int = 10,
    ) -> None:
        self.servers: dict[str, FakeServer] = {}
        self.history: dict[str, list[tuple[str, str, str, str]]] = {}
        self.flavors: dict[str, FakeFlavor] = {}
        self.images: dict[str, str] = {}
        self.fails = Counter[str]()
        self.guests: set[str] = set()
        self.pace = pace or ServerPace()
        self.room = room
        self.quota = quota
        self.away_until = 0.0
        self.offset_s = 0.0
        self.on_room: Callable[[], None] | None = None
        self._monotonic = monotonic
        self._neutron = neutron
        self._cinder = cinder
        self._numbers = 0
        self._date = (-1, "")

    def now(self) -> datetime:
        """Nova's own clock."""
        return START + timedelta(seconds=self._monotonic() + self.offset_s)

    def settle(self) -> None:
        """Let everything happen that is due by now, in its order."""
        self._cinder.settle()
        now = self._monotonic()
        while not self._is_away() and (
            due := min((s for s in self.servers.values() if s.next[0] <= now), key=_when, default=None)
        ):
            at, what = due.next
            due.next = (_NEVER, "")
            self._arrive(due, what, at)
        self._cinder.settle()

    def handle(self, call: Call, project: str) -> Answer:
        """Carry out one request of somebody who is logged in to a project."""
        self.settle()
        return self.answer(call, project)

    def answer(self, call: Call, project: str) -> Answer:
        """The same, in the state that it is in: nothing else happens first."""
        answer = self._handle(call, project)
        return Answer(status=answer.status, body=answer.body, headers={"Date": self._http_date()})

    def _is_away(self, server: FakeServer | None = None) -> bool:
        """Whether the cell is; of a server: whether nothing can be told of that one."""
        return self._monotonic() < self.away_until and not (server is not None and server.hidden)

    # What happens by itself

    def _arrive(self, server: FakeServer, what: str, at: float) -> None:
        if what == "placed":
            self._place(server, at)
        elif what == "built":
            self._built(server, at)
        else:
            self._ended(server, at)

    def _place(self, server: FakeServer, at: float) -> None:
        server.hidden = False
        if sum(bool(other.host) for other in self.servers.values()) >= self.room:
            self._note(server, "create", "conductor_schedule_and_build_instances", "Success", at)
            server.status, server.task, server.fault = "ERROR", "", NO_HOST
            return
        server.host, server.task = "host-1", "spawning"
        self._note(server, "create", "compute__do_build_and_run_instance", "", at)
        words = self._neutron.bind(server.ports, server.id)
        if words:
            self._fail(server, f"Build of instance {server.id} aborted: {words}")
            return
        self._neutron.make_for(server.id, server.networks, server.project)
        self.guests.add(server.id)
        server.built_at = _NEVER if self._takes("hang") else at + self.pace.build_s
        server.next = (server.built_at, "built")

    def _built(self, server: FakeServer, at: float) -> None:
        if self._takes("build"):
            self.guests.discard(server.id)
            self._fail(server, f"Build of instance {server.id} aborted: the guest did not start")
            return
        server.status, server.task = "ACTIVE", ""
        server.launched = f"{START + timedelta(seconds=at + self.offset_s):%Y-%m-%dT%H:%M:%S.000000}"
        self._cinder.attach(server.id)

    def _fail(self, server: FakeServer, words: str) -> None:
        """A build that is aborted: no host has it any more, its ports and volumes are free."""
        server.status, server.task, server.fault, server.host = "ERROR", "", words, ""
        self._neutron.let_go(server.id, server.ports)
        self._cinder.let_go(server.id)
        self._tell()

    def _ended(self, server: FakeServer, at: float) -> None:
        if self._takes("end"):
            self._note(server, "delete", "compute_terminate_instance", "Error", at)
            server.status, server.task, server.fault = "ERROR", "", "the host could not end the guest"
            return
        self.guests.discard(server.id)
        self._note(server, "delete", "compute_terminate_instance", "Success", at)
        self._forget(server)

    def _forget(self, server: FakeServer) -> None:
        del self.servers[server.id]
        self._neutron.let_go(server.id)
        self._cinder.let_go(server.id, keep=server.keep)
        self._tell()

    def _tell(self) -> None:
        if self.on_room is not None:
            self.on_room()

    def _note(self, server: FakeServer, action: str, event: str, result: str, at: float) -> None:
        when = f"{START + timedelta(seconds=at + self.offset_s):%Y-%m-%dT%H:%M:%S.000000}"
        self.history.setdefault(server.id, []).append((action, event, result, when))

    def _takes(self, what: str) -> bool:
        """Whether it happens this time."""
        if self.fails[what] <= 0:
            return False
        self.fails[what] -= 1
        return True

    # Requests

    def _handle(self, call: Call, project: str) -> Answer:
        root, _, rest = call.path.removeprefix("/v2.1/").partition("/")
        if root == "servers":
            return self._on_servers(call, project, rest)
        if root == "flavors":
            return page("flavors", [flavor_shown(each) for each in self.flavors.values()], call, host=_HOST)
        if root == "limits":
            used = [server for server in self.servers.values() if server.project == project]
            return Answer(status=200, body=limits_shown([each.flavor for each in used], self.quota))
        return fault(404, "itemNotFound", "The resource could not be found.")

    def _on_servers(self, call: Call, project: str, rest: str) -> Answer:
        if rest in {"", "detail"}:
            return self._create(call.body["server"], project) if call.method == "POST" else self._list(call, project)
        server_id, _, below = rest.partition("/")
        if self._is_away(self.servers.get(server_id)) and (below or call.method != "GET"):
            return fault(500, "computeFault", "Cell cell1 is not responding, hence instance info is not available.")
        if below.startswith("os-instance-actions"):
            return self._actions(server_id, below.partition("/")[2])
        server = self.servers.get(server_id)
        if server is None or server.project != project:
            return fault(404, "itemNotFound", f"Instance {server_id} could not be found.")
        if self._is_away(server):
            return Answer(status=200, body={"server": unknown_shown(server)})
        return self._on_server(server, call, below)

    def _list(self, call: Call, project: str) -> Answer:
        unknown = sorted(set(call.query) - _FILTERS)
        if unknown:
            return fault(400, "badRequest", f"Invalid input for query parameters {unknown[0]}.")
        named = re.compile(call.query.get("name", ""))
        shown = [
            server_shown(server)
            for server in self.servers.values()
            if server.project == project and server.status != "SOFT_DELETED" and named.search(server.name)
            if not self._is_away(server)
        ]
        return page("servers", shown, call, host=_HOST)

    def _create(self, wanted: Mapping[str, Any], project: str) -> Answer:
        flavor = self.flavors.get(str(wanted.get("flavorRef")))
        refusal = refused_form(wanted, flavor, self.images)
        if refusal or flavor is None:
            return refusal or fault(400, "badRequest", f"Flavor {wanted.get('flavorRef')} could not be found.")
        ports = tuple(str(each["port"]) for each in wanted.get("networks") or () if "port" in each)
        networks = tuple(str(each["uuid"]) for each in wanted.get("networks") or () if "uuid" in each)
        if refusal := self._refused_network(ports, networks, project):
            return refusal
        used = sum(server.project == project for server in self.servers.values())
        if used >= self.quota:
            words = f"Quota exceeded for instances: Requested 1, but already used {used} of {self.quota} instances"
            return fault(403, "forbidden", words)
        self._numbers += 1
        made = FakeServer(
            id=ident(_KIND, self._numbers),
            name=str(wanted["name"]),
            project=project,
            flavor=flavor,
            metadata=dict(wanted.get("metadata") or {}),
            ports=ports,
            networks=networks,
            created=self.now(),
            next=(self._monotonic() + self.pace.place_s, "placed"),
        )
        disks = wanted.get("block_device_mapping_v2") or ()
        volumes = {str(d["uuid"]): bool(d.get("delete_on_termination")) for d in disks if d["source_type"] == "volume"}
        made.keep = frozenset(volume for volume, goes in volumes.items() if not goes)
        words = self._cinder.reserve(volumes, made.id)
        if words:
            return fault(400, "badRequest", words)
        self.servers[made.id] = made
        return Answer(status=202, body={"server": {"id": made.id, "links": [], "OS-DCF:diskConfig": "MANUAL"}})

    def _refused_network(self, ports: Iterable[str], networks: Iterable[str], project: str) -> Answer | None:
        for port_id in ports:
            port = self._neutron.ports.get(port_id)
            if port is None or port.project != project:
                return fault(400, "badRequest", f"Port {port_id} could not be found.")
            if port.device:
                return fault(409, "conflictingRequest", f"Port {port_id} is still in use.")
        unknown = set(networks) - set(self._neutron.networks.values())
        return fault(400, "badRequest", f"Network {unknown.pop()} could not be found.") if unknown else None

    def _on_server(self, server: FakeServer, call: Call, below: str) -> Answer:
        if call.method == "DELETE":
            return self._delete(server, soft=self._takes("recycle"))
        if call.method == "GET":
            return Answer(status=200, body={"server": server_shown(server)})
        if below == "metadata":
            if server.status in {"BUILD", "ERROR"}:
                return fault(409, "conflictingRequest", cannot(server, "update metadata"))
            server.metadata = {**server.metadata, **call.body["metadata"]}
            return Answer(status=200, body={"metadata": dict(server.metadata)})
        return self._act(server, next(iter(call.body)))

    def _act(self, server: FakeServer, action: str) -> Answer:
        if action == "forceDelete":
            refusal = self._delete(server, soft=False)
            return refusal if refusal.status >= _ERROR else Answer(status=202)
        if action in {"lock", "unlock"}:
            server.locked = action == "lock"
            return Answer(status=202)
        if action == "os-stop" and server.status == "ACTIVE" and not server.locked:
            server.status = "SHUTOFF"
            return Answer(status=202)
        return fault(409, "conflictingRequest", cannot(server, action.removeprefix("os-")))

    def _delete(self, server: FakeServer, *, soft: bool) -> Answer:
        if server.locked:
            return fault(409, "conflictingRequest", f"Instance {server.id} is locked")
        if server.hidden:  # no cell has it yet: it leaves no record either
            self._forget(server)
            return Answer(status=204)
        if server.task == "deleting":
            return Answer(status=204)
        if soft and server.status == "ACTIVE":
            server.status = "SOFT_DELETED"
            self._note(server, "delete", "compute_soft_delete_instance", "Success", self._monotonic())
            return Answer(status=204)
        if not server.host or self._takes("down"):  # nobody ends the guest, if there is one
            self._note(server, "delete", "", "", self._monotonic())
            self._forget(server)
            return Answer(status=204)
        self._note(server, "delete", "", "", self._monotonic())
        through = server.built_at if server.status == "BUILD" and server.built_at < _NEVER else 0.0
        server.task, server.next = "deleting", (max(self._monotonic(), through) + self.pace.end_s, "ended")
        return Answer(status=204)

    def _actions(self, server_id: str, request: str) -> Answer:
        known = self.history.get(server_id)
        if known is None:
            return fault(404, "itemNotFound", f"Instance {server_id} could not be found.")
        names = sorted({action for action, *_ in known})
        if not request:
            shown = [{"action": name, "request_id": f"req-{name}", "instance_uuid": server_id} for name in names]
            return Answer(status=200, body={"instanceActions": shown})
        events = [
            {"event": event, "result": result or None, "finish_time": when if result else None}
            for action, event, result, when in known
            if f"req-{action}" == request and event
        ]
        return Answer(status=200, body={"instanceAction": {"request_id": request, "events": events}})

    def _http_date(self) -> str:
        second = int(self._monotonic() + self.offset_s)
        if self._date[0] != second:
            self._date = (second, format_datetime(START + timedelta(seconds=second), usegmt=True))
        return self._date[1]


def _when(server: FakeServer) -> float:
    return server.next[0]
