"""Blue/green, as a decision table: what there is on the host goes in, the one next step comes out. Pure.

Nothing is remembered between steps but what only the driver can know (`Memory`), so a driver that is killed at any line
is simply started again. Of all states that it can leave behind, these rules hold:

- a slot gets requests only after its instance answered with the version that is wanted;
- the old slot leaves the proxy only when haproxy's own check of the new one passes;
- an instance is ended only when no request of the proxy is with it any more;
- a new one that fails leaves the proxy before it is ended, and what served before is put back first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mlops_sdk.serving.router import Admin, Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What a slot shall serve."""

    model: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place for an instance, as its keeper and haproxy see it.

    Attributes:
        name: ``blue`` or ``green``.
        instance: What it was told to serve; None when empty, or on its way out.
        kept: Its keeper lives.
        running: Processes of it live.
        restarts: How often the instance ended by itself.
        since: When it was last started, seconds since the epoch.
        words: How it last ended, and its last words.
        server: Its place in the proxy.
    """

    name: str
    instance: Instance | None = None
    kept: bool = False
    running: bool = False
    restarts: int = 0
    since: float = 0.0
    words: str = ""
    server: Server = field(default_factory=lambda: Server(admin=Admin.MAINT, up=False, sessions=0))

    @property
    def empty(self) -> bool:
        """Nothing of an instance is left."""
        return self.instance is None and not self.kept and not self.running

    @property
    def live(self) -> bool:
        """It gets requests, if it is up."""
        return self.server.admin is Admin.READY


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long to wait, in seconds."""

    ready_s: float = 600.0
    drain_s: float = 600.0


@dataclass(slots=True, kw_only=True)
class Memory:
    """What only the driver knows.

    Attributes:
        answered: Slots whose instance gave a real completion as the wanted version.
        last_answer: What was said instead.
        waited_s: How long the present wait has lasted.
        failure: Why the roll-out is being taken back; empty while it goes forward.
        candidate: The slot of the new version.
        settled: The proxy's file says what the proxy does.
    """

    answered: set[str] = field(default_factory=set[str])
    last_answer: str = ""
    waited_s: float = 0.0
    failure: str = ""
    candidate: str = ""
    settled: bool = False


class Kind(StrEnum):
    """What to do next."""

    PLACE = "place"  # bring the model's files, start the instance
    ASK = "ask"  # a real completion
    ADMIT = "admit"  # into the proxy
    DRAIN = "drain"  # no new requests
    STOP = "stop"  # SIGTERM
    REST = "rest"  # out of the proxy
    WAIT = "wait"
    SETTLE = "settle"  # the proxy's file as it shall stay; models that no slot needs are removed
    FAIL = "fail"  # take it back, for the reason given
    DONE = "done"
    GONE = "gone"  # taken back completely


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The next step, and why."""

    kind: Kind
    slot: str = ""
    why: str = ""


def next_step(slots: Mapping[str, Slot], wanted: Instance, memory: Memory, limits: Limits) -> Step:
    """One step towards `wanted` serving alone, or, after a failure, towards what served before serving alone."""
    candidate = _candidate(slots, wanted, memory)
    if memory.failure:
        return _take_back(slots, candidate, memory, limits)
    if candidate is None:
        return _make_place(slots, memory, limits)
    if candidate.live:
        return _take_over(slots, candidate, memory, limits)
    return _make_ready(candidate, memory, limits)


def _candidate(slots: Mapping[str, Slot], wanted: Instance, memory: Memory) -> Slot | None:
    mine = [slot for slot in slots.values() if slot.instance == wanted]
    if memory.failure:
        return slots.get(memory.candidate)
    return min(mine, key=lambda slot: (not slot.live, not slot.server.up, slot.name), default=None)


def _make_place(slots: Mapping[str, Slot], memory: Memory, limits: Limits) -> Step:
    """An empty slot that gets no requests; what is left in one is ended first."""
    idle = sorted((slot for slot in slots.values() if not slot.live), key=lambda slot: (not slot.empty, slot.name))
    if not idle:  # both serve: a roll-out of something else was cut off; the one that works stays, or the newer
        stays = max(slots.values(), key=lambda slot: (slot.server.up, slot.since, slot.name))
        other = next(slot for slot in slots.values() if slot.name != stays.name)
        return Step(kind=Kind.DRAIN, slot=other.name, why="two versions serve, neither is wanted")
    free = idle[0]
    if free.empty and free.server.admin is Admin.MAINT:
        return Step(kind=Kind.PLACE, slot=free.name)
    return _retire(free, memory, limits)


def _make_ready(candidate: Slot, memory: Memory, limits: Limits) -> Step:
    name = candidate.name
    if candidate.restarts:
        return Step(kind=Kind.FAIL, slot=name, why=f"the instance {candidate.words}")
    if name in memory.answered:
        return Step(kind=Kind.ADMIT, slot=name)
    if memory.waited_s > limits.ready_s:
        said = memory.last_answer or "nothing"
        return Step(kind=Kind.FAIL, slot=name, why=f"no completion within {limits.ready_s:.0f} s; it said: {said}")
    if not candidate.kept:
        return Step(kind=Kind.PLACE, slot=name, why="its keeper is gone")
    return Step(kind=Kind.ASK, slot=name)


def _take_over(slots: Mapping[str, Slot], candidate: Slot, memory: Memory, limits: Limits) -> Step:
    """The new one gets requests: the other leaves, as long as the new one is up."""
    others = [slot for slot in slots.values() if slot.name != candidate.name]
    late = memory.waited_s > limits.ready_s
    if not candidate.server.up:
        if late or any(_can_serve(slot) for slot in others):
            return Step(kind=Kind.FAIL, slot=candidate.name, why=candidate.words or "haproxy's check of it fails")
        return Step(kind=Kind.WAIT, slot=candidate.name, why="it is the only one, and down")
    if candidate.name not in memory.answered:
        why = f"it answers, but not as wanted: {memory.last_answer}" if late else ""
        return Step(kind=Kind.FAIL if late else Kind.ASK, slot=candidate.name, why=why)
    for slot in others:
        if not slot.empty or slot.server.admin is not Admin.MAINT:
            return _retire(slot, memory, limits)
    return Step(kind=Kind.DONE if memory.settled else Kind.SETTLE, slot=candidate.name)


def _take_back(slots: Mapping[str, Slot], candidate: Slot | None, memory: Memory, limits: Limits) -> Step:
    if candidate is None:
        return Step(kind=Kind.GONE if memory.settled else Kind.SETTLE)
    others = [slot for slot in slots.values() if slot.name != candidate.name]
    if candidate.live and not any(slot.live and _can_serve(slot) for slot in others):
        before = next((slot for slot in others if _can_serve(slot)), None)
        if before is None:  # nothing to go back to: better this one, if it comes up, than none
            return Step(kind=Kind.GONE, slot=candidate.name)
        return Step(kind=Kind.ADMIT, slot=before.name, why="what served before is put back")
    if not candidate.empty or candidate.server.admin is not Admin.MAINT:
        return _retire(candidate, memory, limits)
    return Step(kind=Kind.GONE if memory.settled else Kind.SETTLE)


def _retire(slot: Slot, memory: Memory, limits: Limits) -> Step:
    """Out of the proxy's choice, drained, ended, out of the proxy."""
    if slot.live:
        return Step(kind=Kind.DRAIN, slot=slot.name)
    if slot.server.sessions and slot.server.up and memory.waited_s <= limits.drain_s:
        return Step(kind=Kind.WAIT, slot=slot.name, why=f"{slot.server.sessions} requests in flight")
    if slot.server.admin is Admin.DRAIN and slot.empty:
        return Step(kind=Kind.REST, slot=slot.name)
    if slot.instance is not None or (slot.running and not slot.kept):
        return Step(kind=Kind.STOP, slot=slot.name)
    if not slot.empty:
        return Step(kind=Kind.WAIT, slot=slot.name, why="it is ending")
    return Step(kind=Kind.REST, slot=slot.name)


def _can_serve(slot: Slot) -> bool:
    """It was in the proxy and still runs."""
    return slot.instance is not None and slot.running and slot.server.admin is not Admin.MAINT and slot.server.up
