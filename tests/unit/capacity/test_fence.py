"""Exactly one party gives a resource back."""

from concurrent.futures import ThreadPoolExecutor

from mlops_sdk.capacity.fence import Fence
from mlops_sdk.testing.clock import FakeClock
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store


def fences(number: int, clock: FakeClock, server: MemoryS3) -> list[Fence]:
    return [Fence(memory_store(server), now=clock.now, ttl_s=20) for _ in range(number)]


def test_of_many_claimants_one_wins():
    clock = FakeClock()
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda fence: fence.claim("r"), fences(8, clock, MemoryS3())))
    assert len([claim for claim in claims if claim]) == 1


def test_an_expired_claim_is_taken_over_by_one_and_its_old_owner_notices():
    clock, server = FakeClock(), MemoryS3()
    dead, *others = fences(5, clock, server)
    old = dead.claim("r", name="n")
    assert old is not None
    assert all(fence.claim("r") is None for fence in others)
    clock.sleep(21)
    assert not dead.holds(old)
    assert len([1 for fence in others if fence.claim("r")]) == 1
    assert not dead.holds(old)


def test_a_claim_can_be_extended_by_its_owner_given_up_and_dropped():
    clock, server = FakeClock(), MemoryS3()
    mine, other = fences(2, clock, server)
    mine.claim("r")
    clock.sleep(15)
    extended = mine.claim("r")
    assert extended is not None
    clock.sleep(15)
    assert other.claim("r") is None
    mine.yield_up(extended)
    taken = other.claim("r")
    assert taken is not None
    other.drop(taken)
    assert server.objects == {}


def test_a_claim_that_cannot_be_read_blocks_nobody():
    clock, server = FakeClock(), MemoryS3()
    server.objects["fence/r"] = b"{"
    (fence,) = fences(1, clock, server)
    assert fence.claim("r") is not None
