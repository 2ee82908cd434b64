"""Says which servers, ports and volumes are left of the dead, and who touched what was not theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from benchmarks.leaks_judge import Judge
from benchmarks.leaks_life import Neighbours
from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import Marker
from mlops_sdk.capacity.providers.nova_marker import from_line, from_metadata
from mlops_sdk.names import parse_resource_name
from mlops_sdk.testing.http_cloud.cinder import FakeVolume
from mlops_sdk.testing.http_cloud.keystone import PROJECT
from mlops_sdk.testing.http_cloud.neutron import FakePort
from mlops_sdk.testing.http_cloud.nova import FakeServer

if TYPE_CHECKING:
    from benchmarks.leaks_world import Process, World
    from mlops_sdk.config import Settings
    from mlops_sdk.testing.http_cloud.messages import Answer, Call
    from mlops_sdk.testing.http_cloud.server_site import ServerSite

_OK: Final = 300
_TENANTS: Final = "tenant-"
Thing: TypeAlias = FakeServer | FakePort | FakeVolume


class ServerJudge(Judge):
    """`Judge`, of servers and what is made for them; what is there when it begins is somebody else's.

    Args:
        world: Where.
        site: Its servers.
        settings: The deployment.
        credentials: Ids of those that are not a run's of the schedule.
        bucket: Where claims are.
    """

    def __init__(
        self, world: World, site: ServerSite, settings: Settings, credentials: frozenset[str], bucket: str
    ) -> None:
        neighbours = Neighbours(allocations=frozenset(), credentials=credentials)
        super().__init__(world, settings, neighbours, bucket)
        self._site = site
        self._skew_s = settings.lease.clock_skew_s
        self._ours = str(settings.deployment_id)
        self._looked: dict[str, float] = {}  # when a process read the records last
        self._told: dict[str, datetime] = {}  # what time Nova told it last
        self._revived: dict[str, float] = {}  # when a lease that was overdue was renewed
        self._were = {ident: _as_it_is(thing) for ident, thing in self._things()}

    def left(self) -> list[str]:
        """See `Judge.left`."""
        self._site.settle()
        things = (t for i, t in self._things() if i not in self._were and not t.name.startswith(_TENANTS))
        return [*super().left(), *(_words(thing) for thing in things)]

    def touched(self) -> list[str]:
        """See `Judge.touched`: each of them is there as it was."""
        lost = super().touched()
        there = dict(self._things())
        for ident, was in self._were.items():
            now = _as_it_is(there[ident]) if ident in there else "gone"
            if now != was:
                lost.append(f"{was} is {now}")
        return [*lost, *self._said_clean()]

    def _said_clean(self) -> Iterator[str]:
        """Servers that were written down as cleaned though their guest runs: Nova forgets one whose host is down."""
        for key, body in self._world.cloud.s3.objects.items():
            if "/journal/" not in key:
                continue
            told: dict[str, Any] = json.loads(body).get("data") or {}
            if told.get("outcome") == Outcome.CLEANED.value and told.get("node_id") in self._site.nova.guests:
                yield f"{told['resource']} is said to be clean, and its guest runs"

    def _things(self) -> Iterator[tuple[str, Thing]]:
        site = self._site
        for part in (site.nova.servers, site.neutron.ports, site.cinder.volumes):
            yield from part.items()

    def _watch(self, process: Process, call: Call, age_s: float, carry: Callable[[], Answer]) -> Answer:
        if call.service not in {"compute", "network", "block-storage"}:
            return super()._watch(process, call, age_s, carry)
        if call.method == "GET":
            if call.service == "network":
                self._looked[process.name] = self._world.now
            if call.service == "compute":
                self._told[process.name] = self._site.nova.now()
            return carry()
        self._site.settle()
        victim = self._taken_by(call)
        if isinstance(victim, FakePort) and call.method == "PUT":
            self._note_renewal(victim)
        elif call.service == "network" and call.method == "POST":
            self._revived[call.body["port"]["name"]] = self._world.now  # a record for all that carries this name
        what = self._may_not_take(process, victim) if victim is not None else ""
        answer = carry()
        if what and answer.status < _OK:
            self.wrong.append(f"{self._world.now:.2f} s: {process.name} took {what} by {call}")
        return answer

    def _taken_by(self, call: Call) -> Thing | None:
        """What a call deletes or changes."""
        site, last = self._site, call.path.rpartition("/")[2]
        if call.service == "compute":
            ident = call.path.split("/")[3] if call.path.endswith("/action") else last
            return site.nova.servers.get(ident)
        return site.neutron.ports.get(last) if call.service == "network" else site.cinder.volumes.get(last)

    def _may_not_take(self, process: Process, thing: Thing) -> str:
        """What it is, if it is not its to take; else ""."""
        name, marker = parse_resource_name(thing.name), _marker(thing)
        if name is None or marker is None or marker.deployment_id != self._ours or thing.project != PROJECT:
            return f"{_words(thing)}, which is somebody else's"
        if process.run_key:
            return "" if name.run_key == process.run_key else f"{_words(thing)}, another run's"
        now = self._site.nova.now()
        if self._is_due(thing.name, marker, at=max(now, self._told.get(process.name, now))):  # clocks also go back
            return ""
        if self._looked.get(process.name, self._world.now) < self._revived.get(thing.name, 0.0):
            self.window += 1
            return ""
        return f"{_words(thing)}, which is renewed"

    def _note_renewal(self, port: FakePort) -> None:
        marker = _marker(port)
        if marker is not None and self._is_due(port.name, marker, at=self._site.nova.now()):
            self._revived[port.name] = self._world.now

    def _is_due(self, name: str, marker: Marker, *, at: datetime) -> bool:
        """Whether nothing of this name says that its lease is still good; the ports' word counts before its own."""
        said = [found for port in self._site.neutron.ports.values() if port.name == name and (found := _marker(port))]
        same = [found for found in said if (found.run_id, found.generation) == (marker.run_id, marker.generation)]
        now = at - timedelta(seconds=self._skew_s - 1)
        return all(min(found.deadline, found.renewed_until) < now for found in same or [marker])


def _marker(thing: Thing) -> Marker | None:
    return from_metadata(thing.metadata) if isinstance(thing, FakeServer) else from_line(thing.description)


def _words(thing: Thing) -> str:
    if isinstance(thing, FakeServer):
        return f"server {thing.name} ({thing.status} {thing.task})"
    if isinstance(thing, FakePort):
        return f"port {thing.name} of {thing.device or 'nobody'}"
    return f"volume {thing.name} ({thing.status})"


def _as_it_is(thing: Thing) -> str:
    described = "" if isinstance(thing, FakeServer) else f", {thing.description}"
    return f"{_words(thing)}{described}"
