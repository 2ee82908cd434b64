"""What a claim says, how long it counts, and who gets it when several want it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from mlops_sdk.capacity.fence import Fence
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store

TTL_S = 20.0


class Meddling(MemoryS3):
    """Somebody else comes in between: `before` runs once, right before the first call of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, Callable[[], object]] = {}

    def put_object(self, **call: Any) -> dict[str, Any]:
        self._let("put_object if there" if "IfMatch" in call else "put_object")
        return super().put_object(**call)

    def get_object(self, **call: Any) -> dict[str, Any]:
        self._let("get_object")
        return super().get_object(**call)

    def _let(self, call: str) -> None:
        self.before.pop(call, lambda: None)()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server() -> Meddling:
    return Meddling()


def fence(server: MemoryS3, clock: FakeClock) -> Fence:
    return Fence(memory_store(server), now=clock.now, ttl_s=TTL_S)


def test_a_claim_says_what_is_given_back_and_until_when_it_counts(server, clock):
    claim = fence(server, clock).claim("r", name="ml-x", node_id="m")
    assert claim is not None
    assert (claim.resource_id, claim.details) == ("r", {"name": "ml-x", "node_id": "m"})
    assert claim.expires_at == clock.now() + timedelta(seconds=TTL_S)
    assert claim.live(claim.expires_at - timedelta(seconds=1))
    assert not claim.live(claim.expires_at)


def test_who_takes_a_claim_over_finds_how_far_the_dead_one_came(server, clock):
    fence(server, clock).claim("r", name="ml-x", asked=1)
    clock.sleep(TTL_S)
    taken = fence(server, clock).claim("r", asked=2, by="reaper")
    assert taken is not None
    assert taken.details == {"name": "ml-x", "asked": 2, "by": "reaper"}


def test_who_extends_its_claim_keeps_what_it_said_and_gets_the_whole_time_again(server, clock):
    mine = fence(server, clock)
    mine.claim("r", name="ml-x")
    clock.sleep(TTL_S - 1)
    extended = mine.claim("r", recleans=1)
    assert extended is not None
    assert extended.details == {"name": "ml-x", "recleans": 1}
    assert extended.expires_at == clock.now() + timedelta(seconds=TTL_S)
    assert mine.holds(extended)


def test_of_two_that_take_over_at_the_same_moment_the_slower_one_gets_nothing(server, clock):
    fence(server, clock).claim("r")
    clock.sleep(TTL_S)
    slow, fast = fence(server, clock), fence(server, clock)
    server.before["put_object if there"] = lambda: fast.claim("r")
    assert slow.claim("r") is None
    taken = fast.read("r")
    assert taken is not None
    assert fast.holds(taken)
    assert not slow.holds(taken)


def test_what_was_given_back_in_between_is_claimed_by_nobody(server, clock):
    first = fence(server, clock)
    claim = first.claim("r")
    assert claim is not None
    server.before["get_object"] = lambda: first.drop(claim)
    assert fence(server, clock).claim("r") is None
    assert server.objects == {}
    assert not first.holds(claim)


def test_a_claim_that_was_given_up_is_free_at_once_and_says_the_same(server, clock):
    mine, other = fence(server, clock), fence(server, clock)
    claim = mine.claim("r", name="ml-x")
    assert claim is not None
    mine.yield_up(claim)
    assert not mine.holds(claim)
    given_up = mine.read("r")
    assert given_up is not None
    assert (given_up.token, given_up.details) == (claim.token, {"name": "ml-x"})
    assert other.claim("r") is not None


def test_who_gives_up_a_claim_that_another_has_taken_over_changes_nothing(server, clock):
    late, other = fence(server, clock), fence(server, clock)
    claim = late.claim("r")
    assert claim is not None
    clock.sleep(TTL_S)
    taken = other.claim("r")
    assert taken is not None
    late.yield_up(claim)
    assert other.holds(taken)


def test_all_claims_are_listed_but_those_that_go_meanwhile(server, clock):
    mine = fence(server, clock)
    a, b = mine.claim("a", name="ml-a"), mine.claim("b")
    assert a is not None
    assert list(mine.claims()) == [a, b]
    server.before["get_object"] = lambda: mine.drop(a)
    assert list(mine.claims()) == [b]


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"token": "t", "expires_at": "soon"}', b"null"])
def test_a_claim_that_cannot_be_read_is_nobodys_and_is_taken_over(server, clock, body):
    server.objects["fence/r"] = body
    mine = fence(server, clock)
    damaged = mine.read("r")
    assert damaged is not None
    assert (damaged.resource_id, damaged.token, damaged.live(clock.now())) == ("r", "", False)
    assert not mine.holds(damaged)
    taken = mine.claim("r", name="ml-x")
    assert taken is not None
    assert mine.holds(taken)
    assert taken.details == {"name": "ml-x"}


def test_a_claim_of_an_older_version_without_details_still_counts(server, clock):
    until = (clock.now() + timedelta(seconds=5)).isoformat()
    server.objects["fence/r"] = f'{{"token": "old", "expires_at": "{until}"}}'.encode()
    assert fence(server, clock).claim("r") is None
    clock.sleep(5)
    assert fence(server, clock).claim("r", by="reaper") is not None
