"""Gives servers of Nova back, a step at a time, and what was made for them. The run and the reaper walk the same path.

Servers first, then the machines of Ironic under them, if they were such (`nova_metal_return`), then ports and volumes:
a port that is taken away under a running server would take its record with it. Every action is preceded by a claim on
the fence and a fresh look at the owner. "Gone" is success.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from mlops_sdk.capacity.evidence import NodeEvidence, Outcome
from mlops_sdk.capacity.fence import Claim
from mlops_sdk.capacity.lease import EndReason, Marker, from_iso, to_iso
from mlops_sdk.capacity.owned import Held
from mlops_sdk.capacity.provider import Entitled, Party, Returning
from mlops_sdk.capacity.providers.nova_api import ComputeApi, Refused
from mlops_sdk.capacity.providers.nova_cyborg_return import CyborgReturn
from mlops_sdk.capacity.providers.nova_metal import by_novas_word
from mlops_sdk.capacity.providers.nova_metal_return import MetalReturn, may_be_metal
from mlops_sdk.capacity.providers.nova_states import ReturnStep, return_step, volume_step
from mlops_sdk.capacity.providers.nova_view import (
    NAME,
    Port,
    Server,
    Volume,
    age,
    in_force,
    is_of,
    judge,
    records,
)
from mlops_sdk.errors import AccessDenied, ServiceUnavailable

_UNKNOWN_POLLS = 5
_DELETIONS = 3
_AGAIN_POLLS = 10  # so long a deletion that failed may still be told as one that goes on
_WORST = (Outcome.NOT_CLEAN, Outcome.UNPROVEN, Outcome.CLEANED, Outcome.NEVER_DEPLOYED)
Child = Port | Volume


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What this return has seen of one server or child."""

    words: str = ""
    deletions: int = 0
    asked_at: float = 0.0
    unknown: int = 0


class ServerReturn(Returning):
    """The return of what exists under one name, or of exactly one server, port or volume. See `Returning`.

    Args:
        api: The cloud.
        party: Who acts.
        held: What to give back. With an id exactly that, and what was made for it; else everything of the name.
        reason: Why.
        entitled: Whether we may.
        run_key: Whose it is; noted in the claims.
    """

    def __init__(
        self, api: ComputeApi, party: Party, held: Held, *, reason: EndReason, entitled: Entitled, run_key: str
    ) -> None:
        self._api = api
        self._party = party
        self._held = held
        self._reason = reason
        self._entitled = entitled
        self._run_key = run_key
        self._started_at: datetime | None = None
        self._servers: dict[str, Server] = {}  # every one that was seen, as it was seen last
        self._there: set[str] = set()  # ids of those that the last look showed
        self._made: set[str] = set()  # ids of the ports and volumes that were made for them
        self._seen: dict[str, _Seen] = {}
        self._claims: dict[str, Claim] = {}
        self._gone: list[str] = []  # what was deleted, in words
        self._words = ""
        self._cleaned_at = ""
        self._metal = MetalReturn(api, skew_s=party.settings.lease.clock_skew_s)
        self._cyborg = CyborgReturn(api, lambda server_id: self._may_act(server_id, None))
        self.abandoned = False

    @property
    def name(self) -> str:
        """Name of the piece."""
        return self._held.name

    @property
    def torn_down(self) -> bool:
        """Whether it is a whole machine on which nothing of ours runs any more, though it may not be clean yet."""
        return self._metal.torn_down

    def step(self) -> NodeEvidence | None:
        """See `Returning.step`."""
        if self._started_at is None:
            self._started_at = self._api.now()
        ports = list(self._api.list_ports([self.name]))
        record = records(ports)
        servers = self._look(record, ports)
        if self.abandoned:
            return self._stop()
        if servers:
            return self._delete_servers(servers, record)
        children = self._children(record)
        if self.abandoned:
            return self._stop()
        awaited = self._metal.under_way(each for each in children if isinstance(each, Port))
        if children and not awaited:
            return self._delete_children(children)
        if awaited or any(self._api.is_allocated(server_id) for server_id in self._servers):
            self._words = awaited or "Placement still counts it"
            self._end_forgotten(record)
            return None
        bound = self._cyborg.under_way(self._ids, self._servers)
        return self._still_bound(bound) if bound else self._finish()

    def let_go(self) -> None:
        """Go no further: whoever claims next need not wait."""
        for claim in self._claims.values():
            self._party.fence.yield_up(claim)
        self._claims.clear()

    def evidence(self, outcome: Outcome) -> NodeEvidence:
        """What is known now, under the given outcome."""
        last = max(self._servers.values(), key=age, default=None)
        node_id = last.id if last else self._held.node_id
        child = self._held.kind in {"port", "volume"}
        return NodeEvidence(
            resource=f"{self.name}-{self._held.kind}" if child else self.name,
            allocation_id=self._held.allocation_id or node_id,
            node_id="" if child else node_id,
            node_name="" if child else self.name,
            outcome=outcome,
            reason=self._reason,
            released_by=self._party.by,
            provision_state=self._state(last),
            power_state="off" if outcome is Outcome.CLEANED and node_id and not child else "",
            cleaned_at=self._cleaned_at,
            last_error=self._words if outcome in {Outcome.NOT_CLEAN, Outcome.PENDING, Outcome.UNPROVEN} else "",
            started_at=to_iso(self._started_at) if self._started_at else "",
            finished_at=to_iso(self._api.now()),
            steps=tuple(self._gone),
        )

    def _state(self, last: Server | None) -> str:
        if last is not None and last.id in self._there:
            return last.status
        return "gone" if last or self._held.node_id else ""

    def _look(self, record: dict[str, Marker], ports: Iterable[Port]) -> list[Server]:
        """The servers that are to be given back and still exist.

        By id, too, what was seen before or what a port is bound to: no list shows what is in a recycle bin.
        """
        if self._held.kind in {"port", "volume"}:
            return []
        if self._held.allocation_id:
            listed, ids = dict[str, Server](), {self._held.allocation_id}
        else:
            listed = {server.id: server for server in self._api.list_servers(self.name)}
            ids = set(self._servers) | {port.server for port in ports if is_of(port.name, port.marker)} - {""}
        others = [one for ident in sorted(ids - set(listed)) if (one := self._api.get_server(ident)) is not None]
        found = [s for s in (*listed.values(), *others) if s.name == self.name and is_of(s.name, s.marker)]
        for server in found:
            if not self._entitled(server.name, in_force(server.name, server.marker, record)):
                self.abandoned = True
        if not self.abandoned:
            self._there = {server.id for server in found}
            for server in found:
                self._servers[server.id] = server
                self._made |= server.children
        return found

    def _children(self, record: dict[str, Marker]) -> list[Child]:
        """The ports and volumes that are to be given back and still exist."""
        there: list[Child] = list(self._api.list_ports([self.name]))
        if self._may_have_volumes:
            there.extend(self._api.list_volumes(self.name))
        if not there:
            return []
        others = [s for s in self._api.list_servers(self.name) if s.name == self.name and s.id not in self._servers]
        kept = frozenset[str]().union(*(server.children for server in others))
        return [child for child in there if self._is_ours(child, record, kept)]

    @property
    def _may_have_volumes(self) -> bool:
        """A run whose settings know no volumes has none, and its login may not ask; the reaper knows every run."""
        nova = self._party.settings.nova
        return self._party.by == "reaper" or nova is None or bool(nova.root_volume_gib or nova.data_volume_gib)

    def _is_ours(self, child: Child, record: dict[str, Marker], kept: frozenset[str]) -> bool:
        """Whether it goes back too. `kept`: what was made for servers of this name that stay, bound to them or not."""
        held, marker = self._held, child.marker
        if child.name != self.name or not is_of(child.name, marker):
            return False
        just_this = held.kind in {"port", "volume"}
        if just_this and child.id != held.allocation_id:
            return False
        if held.allocation_id and not just_this and child.id not in self._made and child.server not in self._servers:
            return False
        if child.id in kept or self._is_used(child):
            self.abandoned = self.abandoned or just_this
            return just_this
        if not self._entitled(child.name, in_force(child.name, marker, record)):
            self.abandoned = True
        return True

    def _is_used(self, child: Child) -> bool:
        """Whether it is bound to a server that is not given back."""
        bound = bool(child.server) and child.server not in self._servers
        return bound and self._api.get_server(child.server) is not None

    def _delete_servers(self, servers: Iterable[Server], record: dict[str, Marker]) -> NodeEvidence | None:
        for server in servers:
            seen = self._seen.setdefault(server.id, _Seen())
            step = return_step(server)
            if step is ReturnStep.UNKNOWN:
                seen.unknown += 1
                if seen.unknown >= _UNKNOWN_POLLS:
                    self._words = f"status {server.status!r} is not in the table, or its cell does not answer"
                    return self.evidence(Outcome.NOT_CLEAN)
                continue
            seen.unknown = 0
            if step is ReturnStep.WAIT and not self._is_stuck(server, seen):
                continue
            if not self._may_act(server.id, in_force(server.name, server.marker, record)):
                continue
            again = self._api.get_server(server.id)  # the claim took time: is it there, and still ours to give back?
            if again is None:
                continue
            ports = list(self._api.list_ports([self.name]))
            if not self._entitled(again.name, in_force(again.name, again.marker, records(ports))):
                self.abandoned = True
                return self._stop()
            if seen.deletions >= _DELETIONS:  # the claims stay; the reaper begins anew
                self._words = again.fault or self._words or f"Nova does not delete it ({again.status})"
                return self.evidence(Outcome.NOT_CLEAN)
            self._metal.note(again, ports)
            if not self._delete_server(again, seen, force=return_step(again) is ReturnStep.FORCE):
                return self._stop()
        return None

    def _is_stuck(self, server: Server, seen: _Seen) -> bool:
        """Its host failed to end it: Nova then says ERROR, and goes on saying that it is being deleted."""
        waited = self._party.clock.monotonic() - seen.asked_at
        again_s = _AGAIN_POLLS * self._party.settings.lease.poll_s
        return server.status == "ERROR" and (not seen.deletions or waited >= again_s)

    def _delete_server(self, server: Server, seen: _Seen, *, force: bool) -> bool:
        """Ask for it; False where our login may not."""
        with self._party.boundary("machine.tear_down", self.name, node_id=server.id, provision_state=server.status):
            try:
                self._api.delete_server(server.id, force=force)
                seen.deletions += 1
                seen.asked_at = self._party.clock.monotonic()
            except Refused as refusal:  # locked, or in the middle of something
                self._words = refusal.words
            except AccessDenied as error:
                if not force:
                    raise
                self._words = f"it is in the recycle bin, which is the reaper's to empty: {error.seen}"
                return False
        return True

    def _delete_children(self, children: Iterable[Child]) -> NodeEvidence | None:
        for child in children:
            seen = self._seen.setdefault(child.id, _Seen())
            step = ReturnStep.DELETE if isinstance(child, Port) else volume_step(child)
            if step is ReturnStep.WAIT:
                continue
            if step in {ReturnStep.UNKNOWN, ReturnStep.STUCK} or seen.deletions >= _DELETIONS:
                seen.unknown += 1
                if seen.unknown < _UNKNOWN_POLLS:
                    continue
                said = "does not go" if isinstance(child, Port) else f"does not go: {child.status}"
                self._words = f"{_kind(child)} {child.id} {said}"
                return self.evidence(Outcome.NOT_CLEAN)
            if self._may_act(child.id, child.marker):
                self._delete_child(child, seen)
        return None

    def _delete_child(self, child: Child, seen: _Seen) -> None:
        kind = _kind(child)
        with self._party.boundary(f"{kind}.delete", self.name, id=child.id):
            try:
                there = (
                    self._api.delete_port(child.id) if isinstance(child, Port) else self._api.delete_volume(child.id)
                )
                seen.deletions += 1
            except Refused as refusal:
                self._words = refusal.words
                return
        if there and not seen.words:
            seen.words = f"{kind} {child.id} deleted"
            self._gone.append(seen.words)

    def _end_forgotten(self, record: dict[str, Marker]) -> None:
        """Tear down what Nova gave up while its host was down, and does not come back to. A run may not: the reaper."""
        for metal in self._metal.forgotten() if self._party.by == "reaper" else ():
            if not self._may_act(metal.server_id, record.get(self.name)):
                continue
            with self._party.boundary("machine.tear_down", self.name, node_id=metal.server_id, machine=metal.node_id):
                refused = self._api.end_machine(metal.node_id, metal.server_id)
            self._words = f"{self._words}: {refused}" if refused else self._words

    def _may_act(self, resource_id: str, marker: Marker | None) -> bool:
        """Whether the fence is ours.

        Without S3 there are no claims. Then only the run itself may go on, and only while its lease is renewed well
        into the future: the reaper acts on overdue leases, and cannot claim either.
        """
        node_id = self._held.node_id or (resource_id if resource_id in self._servers else "")
        try:
            claim = self._party.fence.claim(
                resource_id, provider=NAME, name=self.name, node_id=node_id, run_key=self._run_key
            )
        except ServiceUnavailable:
            margin = timedelta(seconds=2 * self._party.settings.lease.clock_skew_s)
            if self._party.by != "run" or marker is None or marker.renewed_until < self._api.now() + margin:
                raise
            return True
        if claim is not None:
            self._claims[resource_id] = claim
        return claim is not None

    def _still_bound(self, words: str) -> NodeEvidence | None:
        """A server that is gone has a card all the same. Our claim on it stays, so the reaper comes back to it."""
        self._words = self._cyborg.stuck or words
        return self.evidence(Outcome.NOT_CLEAN) if self._cyborg.stuck else None

    def _stop(self) -> NodeEvidence:
        """Not ours to give back."""
        self.let_go()
        return self.evidence(Outcome.PENDING)

    def _finish(self) -> NodeEvidence:
        outcome = self._judge()
        for claim in self._claims.values():
            with suppress(ServiceUnavailable):  # then it expires, and the reaper's sweep removes it
                self._party.fence.drop(claim)
        self._claims.clear()
        return self.evidence(outcome)

    @property
    def _ids(self) -> set[str]:
        """Ids of the servers that are given back, also of those that nobody saw."""
        just_this = self._held.kind in {"port", "volume"}
        known = "" if just_this else self._held.allocation_id or self._held.node_id
        return set(self._servers) | ({known} - {""})

    def _judge(self) -> Outcome:
        """The worst of how the servers ended; of a port nothing is left, of a volume nothing but what Cinder says."""
        if self._held.kind == "port":
            return self._with_metal(Outcome.NEVER_DEPLOYED)
        if self._held.kind == "volume":
            return Outcome.CLEANED
        ids = set(self._servers) | ({self._held.node_id} - {""})
        found: list[Outcome] = [] if ids else [judge(None, deployed=self._held.deployed)[0]]
        for server_id in sorted(ids):
            seen = self._servers.get(server_id)
            ran = self._held.deployed or seen is None or seen.launched or seen.placed
            outcome, at, words = judge(self._api.actions(server_id), deployed=ran)
            if outcome is Outcome.CLEANED and seen is None and not self._metal.seen_virtual:
                outcome, words = by_novas_word(outcome, words, may_be_metal=may_be_metal(self._party.settings.nova))
            if outcome is Outcome.UNPROVEN:
                self._words = words
            found.append(outcome)
            self._gone.insert(0, f"server {server_id}: {words}")
            self._cleaned_at = to_iso(from_iso(at)) if at else self._cleaned_at
            volumes = seen.volumes if seen is not None else ()
            self._gone.extend(f"volume {volume} gone with it" for volume in volumes if volume not in self._seen)
        self._gone.extend(self._cyborg.steps)
        return self._with_metal(min(found, key=_WORST.index))

    def _with_metal(self, by_nova: Outcome) -> Outcome:
        """Of a whole machine Ironic has the last word."""
        outcome, end = self._metal.ended(by_nova)
        if end is not None:
            self._gone.insert(0, ": ".join((end.words, *([", ".join(end.steps)] if end.steps else []))))
            self._words = end.words
            self._cleaned_at = to_iso(end.cleaning.finished_at) if end.cleaning else ""
        return outcome


def _kind(child: Child) -> str:
    return "port" if isinstance(child, Port) else "volume"
