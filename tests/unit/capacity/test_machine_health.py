"""A machine that does not come up again and again leaves the pool."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from mlops_sdk.capacity.health import MachineHealth
from mlops_sdk.capacity.loss import Answer, Channel, Statement
from mlops_sdk.capacity.owned import Held
from mlops_sdk.capacity.provider import Entitled, Provider
from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.steps import Steps
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store

KEY = "health/ironic/m1.json"


class Operator:
    """A provider that may take machines out of its pool, and notes which."""

    def __init__(self) -> None:
        self.out: dict[str, str] = {}

    def power(self, held: Held) -> Statement:
        return Statement(channel=Channel.POWER, answer=Answer.BLIND, words=held.name)

    def take_out(self, node_id: str, words: str) -> bool:
        self.out[node_id] = words
        return True

    def cut_off(self, held: Held, *, entitled: Entitled) -> Steps[None]:
        del held, entitled
        yield from ()


class Beaten(MemoryS3):
    """Somebody else counts the same machine right before each of our first `times` conditional writes."""

    def __init__(self, times: int, other: Callable[[int], None] = lambda _: None) -> None:
        super().__init__()
        self.left = times
        self.other = other

    def put_object(self, **call: Any) -> dict[str, Any]:
        if self.left:
            self.left -= 1
            self.other(self.left)
        return super().put_object(**call)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server() -> MemoryS3:
    return MemoryS3()


@pytest.fixture
def health(server: MemoryS3, clock: FakeClock) -> MachineHealth:
    return MachineHealth(memory_store(server), "ironic", now=clock.now)


def note(health: MachineHealth, provider: object, failed: dict[str, tuple[str, str]], *, limit: int = 3) -> None:
    health.note(failed, cast("Provider", provider), limit=limit)


def test_each_lease_that_failed_counts_once_however_often_it_is_told(health):
    assert health.failed("m1", "ml-a-g1-0", seen="no boot") == 1
    assert health.failed("m1", "ml-a-g1-0", seen="no boot") == 1
    assert health.failed("m1", "ml-b-g1-0", seen="no boot") == 2
    assert health.failed("m1", "ml-a-g1-0", seen="no boot") == 2
    assert health.failed("m2", "ml-b-g1-1", seen="no boot") == 1


def test_what_was_seen_is_kept_with_its_time(health, server, clock):
    health.failed("m1", "ml-a-g1-0", seen="no boot")
    at = clock.now().isoformat()
    assert json.loads(server.objects[KEY])["failures"] == [{"resource": "ml-a-g1-0", "seen": "no boot", "at": at}]


def test_a_machine_leaves_the_pool_when_it_failed_for_the_last_time_and_no_earlier(health, server):
    operator = Operator()
    for run in "ab":
        note(health, operator, {f"ml-{run}-g1-0": ("m1", "no boot")})
    assert operator.out == {}
    note(health, operator, {"ml-c-g1-0": ("m1", "no link"), "ml-c-g1-1": ("m2", "no boot")})
    assert set(operator.out) == {"m1"}
    assert "3 times" in operator.out["m1"]
    assert "no link" in operator.out["m1"]
    kept = json.loads(server.objects[KEY])["failures"]
    assert [item["seen"] for item in kept] == ["no boot", "no boot", "no link"]


def test_a_machine_that_came_up_begins_anew_and_the_others_do_not(health):
    for node in ("m1", "m2", "m3"):
        health.failed(node, "ml-a-g1-0", seen="no boot")
    health.came_up(["m1", "m3", "m4"])
    assert health.failed("m1", "ml-b-g1-0", seen="no boot") == 1
    assert health.failed("m2", "ml-b-g1-0", seen="no boot") == 2
    assert health.failed("m3", "ml-b-g1-0", seen="no boot") == 1


def test_machines_of_another_provider_are_counted_apart(health, server, clock):
    other = MachineHealth(memory_store(server), "nova", now=clock.now)
    health.failed("m1", "ml-a-g1-0", seen="no boot")
    assert other.failed("m1", "ml-b-g1-0", seen="no boot") == 1
    other.came_up(["m1"])
    assert health.failed("m1", "ml-c-g1-0", seen="no boot") == 2


def test_only_so_many_failures_are_kept(health, server):
    for number in range(15):
        count = health.failed("m1", f"ml-{number}-g1-0", seen="no boot")
    assert count == 10
    kept = [item["resource"] for item in json.loads(server.objects[KEY])["failures"]]
    assert kept == [f"ml-{number}-g1-0" for number in range(5, 15)]


def test_a_provider_without_bmcs_is_only_counted_for(health):
    note(health, object(), {"ml-a-g1-0": ("m1", "no boot")}, limit=1)
    assert health.failed("m1", "ml-b-g1-0", seen="no boot") == 2


def test_without_s3_nothing_is_counted_and_nothing_fails_and_the_next_machine_is_tried(health, server):
    operator = Operator()
    server.faults.fail_at("get_object", 1, error=ServiceUnavailable("S3 is down"))
    note(health, operator, {"ml-a-g1-0": ("m1", "no boot"), "ml-a-g1-1": ("m2", "no boot")}, limit=1)
    assert set(operator.out) == {"m2"}


@pytest.mark.parametrize("body", [b"{", b"{}", b"[]", b'{"failures": 3}'])
def test_nonsense_counts_nothing_and_is_written_over(health, server, body):
    server.objects[KEY] = body
    assert health.failed("m1", "ml-a-g1-0", seen="no boot") == 1
    assert health.failed("m1", "ml-b-g1-0", seen="no boot") == 2


@pytest.mark.parametrize("there", [False, True])
def test_of_two_that_count_at_the_same_moment_both_count(clock, there):
    server = Beaten(1, lambda _: health.failed("m1", "ml-b-g1-0", seen="no boot") and None)
    health = MachineHealth(memory_store(server), "ironic", now=clock.now)
    if there:
        server.left = 0
        health.failed("m1", "ml-0-g1-0", seen="no boot")
        server.left = 1
    assert health.failed("m1", "ml-a-g1-0", seen="no boot") == (3 if there else 2)


def test_who_is_always_beaten_leaves_the_counting_to_the_others(clock):
    server = Beaten(100)
    server.other = lambda number: server.objects.update(
        {KEY: json.dumps({"failures": [{"resource": number}]}).encode()}
    )
    health = MachineHealth(memory_store(server), "ironic", now=clock.now)
    assert health.failed("m1", "ml-a-g1-0", seen="no boot") == 0
