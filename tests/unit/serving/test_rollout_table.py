"""The roll-out's decision table, driven over a simulated host: cut off anywhere, it ends well, and users are served."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.serving.rollout import Instance, Kind, Limits, Memory, Slot, Step, next_step
from mlops_sdk.serving.router import Admin, Server

OLD = Instance(model="lm", version="1", sha256="a")
NEW = Instance(model="lm", version="2", sha256="b")
THIRD = Instance(model="lm", version="3", sha256="c")
LIMITS = Limits(ready_s=10.0, drain_s=10.0)


class Host:
    """Two slots; an instance is ready after `start_looks` looks, ends `end_looks` after it was stopped."""

    def __init__(self, *, breaks: Instance | None = None, dies_live: Instance | None = None) -> None:
        self.slots = {name: Slot(name=name) for name in ("blue", "green")}
        self.breaks, self.dies_live = breaks, dies_live
        self.age = {"blue": 0, "green": 0}
        self.clock = 0.0

    def serving(self) -> list[Instance]:
        """Who would answer a user now."""
        return [s.instance for s in self.slots.values() if s.live and s.server.up and s.instance]

    def put(self, name: str, **changes: object) -> None:
        self.slots[name] = replace(self.slots[name], **changes)  # type: ignore[arg-type]

    def serve(self, name: str, instance: Instance, *, sessions: int = 0) -> None:
        server = Server(admin=Admin.READY, up=True, sessions=sessions)
        self.put(name, instance=instance, kept=True, running=True, since=1.0, server=server)
        self.age[name] = 9

    def tick(self) -> None:
        self.clock += 1
        for name, slot in self.slots.items():
            self.age[name] += 1
            if slot.instance is None and self.age[name] > 1:
                self.put(name, kept=False, running=False, restarts=0, words="")
            if slot.instance is not None and slot.instance == self.breaks and self.age[name] > 2:
                self.put(name, restarts=slot.restarts + 1, words="ended with exit status 1")
            sessions = slot.server.sessions if slot.live else max(0, slot.server.sessions - 1)
            up = slot.running and slot.instance is not None and self.age[name] > 2
            up = up and not (slot.live and slot.instance == self.dies_live)
            self.put(name, server=replace(slot.server, up=up, sessions=sessions))

    def take(self, step: Step, wanted: Instance, memory: Memory) -> None:
        name, slot = step.slot, self.slots.get(step.slot)
        if step.kind in {Kind.PLACE, Kind.ASK, Kind.FAIL} and not memory.failure:
            memory.candidate = name
        if slot is None or step.kind in {Kind.WAIT, Kind.SETTLE}:
            memory.settled = memory.settled or step.kind is Kind.SETTLE
        elif step.kind is Kind.PLACE:
            assert slot.empty or slot.instance == wanted, "a slot that holds something else was given away"
            self.put(name, instance=wanted, kept=True, running=True, since=self.clock)
            self.age[name] = 0
        elif step.kind is Kind.ASK:
            if self.age[name] > 2 and slot.instance not in {None, self.breaks}:
                memory.answered.add(name)
        elif step.kind is Kind.FAIL:
            memory.failure = step.why
        elif step.kind is Kind.STOP:
            assert not slot.live, "an instance in the proxy was ended"
            assert not slot.server.sessions or not slot.server.up, "an instance with requests was ended"
            self.put(name, instance=None)
            self.age[name] = 0
        else:
            admin = {Kind.ADMIT: Admin.READY, Kind.DRAIN: Admin.DRAIN, Kind.REST: Admin.MAINT}[step.kind]
            self.put(name, server=replace(slot.server, admin=admin, up=slot.server.up or admin is Admin.READY))


def drive(host: Host, wanted: Instance, *, cut_after: int = 1000) -> tuple[Kind | None, Memory]:
    """Run the driver; after `cut_after` steps it is killed (None)."""
    memory = Memory()
    since, last = host.clock, ("", "")
    for _ in range(cut_after):
        memory.waited_s = host.clock - since
        step = next_step(host.slots, wanted, memory, LIMITS)
        if (step.kind, step.slot) != last:
            since, last = host.clock, (step.kind, step.slot)
        if step.kind in {Kind.DONE, Kind.GONE}:
            return step.kind, memory
        served_before = bool(host.serving())
        host.take(step, wanted, memory)
        assert host.serving() or not served_before or host.dies_live, f"nobody is served after {step}"
        host.tick()
        if cut_after == 1000:
            assert host.clock < 300, f"it does not end: {step}"
    return None, memory


def test_first_roll_out_serves_and_the_second_takes_over():
    host = Host()
    assert drive(host, OLD)[0] is Kind.DONE
    assert host.serving() == [OLD]
    assert drive(host, NEW)[0] is Kind.DONE
    assert host.serving() == [NEW]
    assert sum(not slot.empty for slot in host.slots.values()) == 1


def test_a_version_that_serves_is_only_asked():
    host = Host()
    host.serve("blue", OLD)
    before = host.slots["blue"].since
    assert drive(host, OLD)[0] is Kind.DONE
    assert host.slots["blue"].since == before


def test_one_that_never_gets_ready_is_removed_and_the_old_one_serves_on():
    host = Host(breaks=NEW)
    host.serve("green", OLD)
    kind, memory = drive(host, NEW)
    assert kind is Kind.GONE
    assert "exit status 1" in memory.failure
    assert host.serving() == [OLD]
    assert host.slots["blue"].empty


def test_one_that_fails_as_soon_as_it_gets_requests_leaves_before_it_is_ended():
    host = Host(dies_live=NEW)
    host.serve("blue", OLD)
    assert drive(host, NEW)[0] is Kind.GONE
    assert host.serving() == [OLD]
    assert host.slots["green"].empty


def test_requests_in_flight_are_waited_for_up_to_the_limit():
    host = Host()
    host.serve("blue", OLD, sessions=5)
    assert drive(host, NEW)[0] is Kind.DONE
    stuck = Slot(
        name="blue", instance=OLD, kept=True, running=True, server=Server(admin=Admin.DRAIN, up=True, sessions=1)
    )
    live = Slot(
        name="green", instance=NEW, kept=True, running=True, server=Server(admin=Admin.READY, up=True, sessions=0)
    )
    memory = Memory(answered={"green"}, waited_s=9.0)
    slots = {"blue": stuck, "green": live}
    assert next_step(slots, NEW, memory, LIMITS).kind is Kind.WAIT
    memory.waited_s = 11.0
    assert next_step(slots, NEW, memory, LIMITS).kind is Kind.STOP


@given(cuts=st.lists(st.integers(0, 25), max_size=4), breaks=st.booleans(), last=st.sampled_from([NEW, THIRD]))
def test_killed_anywhere_and_started_again_it_ends_well(cuts: list[int], breaks: bool, last: Instance):
    host = Host(breaks=NEW if breaks else None)
    host.serve("blue", OLD, sessions=3)
    for cut in cuts:
        drive(host, NEW, cut_after=cut)
    kind, _ = drive(host, last)
    if breaks and last == NEW:
        assert kind is Kind.GONE
        assert host.serving() == [OLD]
    else:
        assert kind is Kind.DONE
        assert host.serving() == [last]
    assert sum(not slot.empty for slot in host.slots.values()) == 1


@pytest.mark.parametrize("newer", ["blue", "green"])
def test_when_two_others_serve_the_newer_stays_until_the_wanted_one_is_ready(newer: str):
    host = Host()
    host.serve("blue", OLD)
    host.serve("green", THIRD)
    host.put(newer, since=2.0)
    step = next_step(host.slots, NEW, Memory(), LIMITS)
    assert (step.kind, step.slot) == (Kind.DRAIN, "green" if newer == "blue" else "blue")
    assert drive(host, NEW)[0] is Kind.DONE
    assert host.serving() == [NEW]
