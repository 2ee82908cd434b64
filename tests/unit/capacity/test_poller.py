"""One look for all who wait: who is woken, by what, how soon, how often the cloud is asked, and what an outage does."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Mapping

import pytest

from mlops_sdk.capacity.poller import Poller
from mlops_sdk.capacity.watching import Phase, Sight, Snapshot, Waiter, Waiters, changed
from mlops_sdk.errors import AccessDenied, ServiceUnavailable
from mlops_sdk.testing.clock import FakeClock

PERIOD = 2.0


class Cloud:
    """Shows what a test says; each look takes `seconds`."""

    def __init__(self, clock: FakeClock, **phases: Phase) -> None:
        self.clock = clock
        self.phases = dict(phases)
        self.at: list[tuple[float, str, Phase]] = []
        self.looked_at: list[float] = []
        self.failures: list[Exception] = []
        self.away_until = 0.0
        self.seconds = 0.0

    def look(self) -> Mapping[str, Sight]:
        self.looked_at.append(self.clock.monotonic())
        if self.failures:
            raise self.failures.pop(0)
        if self.clock.monotonic() < self.away_until:
            raise ServiceUnavailable("Ironic does not answer")
        for due, key, phase in self.at:
            if self.clock.monotonic() >= due:
                self.phases[key] = phase
        seen = {key: Sight(phase=phase, words=phase.value) for key, phase in self.phases.items()}
        self.clock.sleep(self.seconds)
        return seen

    def becomes(self, key: str, phase: Phase, *, at: float) -> None:
        self.at.append((at, key, phase))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cloud(clock) -> Cloud:
    return Cloud(clock, a=Phase.COMING, b=Phase.COMING, c=Phase.COMING)


@pytest.fixture
def poller(cloud, clock) -> Poller:
    return Poller(cloud.look, period_s=PERIOD, clock=clock)


def waits(poller: Poller, *keys: str, at_most_s: float = 1000.0) -> asyncio.Task[Snapshot | None]:
    return asyncio.ensure_future(poller.called(keys, at_most_s=at_most_s))


async def test_who_waits_is_told_within_a_period_of_the_change(cloud, poller):
    cloud.becomes("a", Phase.READY, at=31.0)
    snapshot = await waits(poller, "a")
    assert snapshot is not None
    assert snapshot.of("a").phase is Phase.READY
    assert 31.0 <= snapshot.asked_at <= 31.0 + PERIOD


async def test_ten_thousand_who_wait_cost_the_looks_of_one_and_only_those_concerned_are_woken(cloud, poller):
    names = [f"m{number}" for number in range(10_000)]
    cloud.phases |= dict.fromkeys(names, Phase.COMING)
    tasks = {name: waits(poller, name) for name in names}
    cloud.becomes("m17", Phase.READY, at=20.0)
    cloud.becomes("m18", Phase.OTHER, at=20.0)
    done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
    assert done <= {tasks["m17"], tasks["m18"]}
    await asyncio.gather(tasks["m17"], tasks["m18"])
    assert len(cloud.looked_at) <= 20 / PERIOD + 5  # the first few come sooner
    assert threading.active_count() < 30
    assert poller.waiting == 10_000 - 2
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert not poller.works


async def test_who_is_alone_is_looked_for_at_once_and_who_joins_within_an_eighth_of_a_period(cloud, poller):
    cloud.phases["a"] = Phase.READY
    alone = await waits(poller, "a")
    assert alone is not None
    assert alone.asked_at == 0.0
    stays = waits(poller, "b")
    for _ in range(20):
        await asyncio.sleep(0)
    joined = cloud.clock.monotonic()
    again = await waits(poller, "a")
    assert again is not None
    assert again.asked_at <= joined + PERIOD  # the fake clock runs on in leaps of a pause
    stays.cancel()


async def test_what_is_not_there_calls_for_a_look(cloud, poller):
    snapshot = await waits(poller, "a", "never-made")
    assert snapshot is not None
    assert snapshot.of("never-made").phase is Phase.ABSENT


async def test_a_snapshot_older_than_the_own_last_action_answers_nobody(cloud, clock, poller):
    keeps_it_going = waits(poller, "b")
    cloud.phases["a"] = Phase.READY
    await waits(poller, "a")
    old = poller.latest
    cloud.phases["a"] = Phase.COMING  # acted on: it is deployed again, say
    cloud.becomes("a", Phase.READY, at=clock.monotonic() + 10)
    snapshot = await waits(poller, "a")
    assert old is not None
    assert snapshot is not None
    assert snapshot.asked_at >= old.asked_at + 10
    keeps_it_going.cancel()


async def test_a_snapshot_that_is_younger_answers_at_once_without_a_look(cloud, clock, poller):
    keeps_it_going = waits(poller, "b")
    acted_at = clock.monotonic()
    cloud.phases["a"] = Phase.READY
    await waits(poller, "a")
    looks = len(cloud.looked_at)
    assert await poller.called(["a"], at_most_s=10, since=acted_at) is poller.latest
    assert len(cloud.looked_at) == looks
    keeps_it_going.cancel()


async def test_what_changed_while_the_list_was_under_way_is_not_missed(cloud, clock):
    cloud.seconds = 1.0

    def look() -> Mapping[str, Sight]:
        seen = cloud.look()
        cloud.phases["a"] = Phase.READY  # just after the list was made
        return seen

    poller = Poller(look, period_s=PERIOD, clock=clock)
    snapshot = await waits(poller, "a")
    assert snapshot is not None
    assert len(cloud.looked_at) == 2


async def test_nobody_waits_longer_than_it_asked_for(clock, poller):
    assert await waits(poller, "a", at_most_s=30.0) is None
    assert 30.0 <= clock.monotonic() <= 30.0 + 2 * PERIOD  # the fake clock runs on while the answer is on its way


async def test_it_ends_with_the_last_who_waits_and_begins_anew_with_the_next(cloud, poller):
    assert not poller.works
    tasks = [waits(poller, "a"), waits(poller, "b")]
    await asyncio.sleep(0)
    assert poller.works
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not poller.works
    assert not poller.waiting
    looks = len(cloud.looked_at)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(cloud.looked_at) <= looks + 1  # one may have been under way
    cloud.phases["a"] = Phase.READY
    assert await waits(poller, "a") is not None


async def test_one_who_is_cancelled_leaves_the_others_alone(cloud, poller):
    gone, stays = waits(poller, "a"), waits(poller, "a")
    await asyncio.sleep(0)
    gone.cancel()
    cloud.becomes("a", Phase.READY, at=10.0)
    assert (await stays) is not None
    assert gone.cancelled()


async def test_an_outage_reaches_everybody_as_the_error_it_is(cloud, poller):
    cloud.away_until = 1e9
    tasks = [waits(poller, "a"), waits(poller, "b")]
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [ServiceUnavailable] * 2
    assert errors[0] is not errors[1]
    assert "Ironic does not answer" in str(errors[0])
    assert not poller.works


async def test_an_outage_shorter_than_the_patience_reaches_nobody(cloud, clock):
    poller = Poller(cloud.look, period_s=PERIOD, clock=clock, patience_s=60.0)
    cloud.away_until = 50.0
    cloud.becomes("a", Phase.READY, at=20.0)
    snapshot = await waits(poller, "a")
    assert snapshot is not None
    assert 50.0 <= snapshot.asked_at <= 50.0 + PERIOD


async def test_an_outage_longer_than_the_patience_reaches_them_and_a_second_one_counts_anew(cloud, clock):
    poller = Poller(cloud.look, period_s=PERIOD, clock=clock, patience_s=60.0)
    cloud.failures = [ServiceUnavailable("a blip")]
    task = waits(poller, "a")
    while len(cloud.looked_at) < 3:  # noqa: ASYNC110 - the looks come from another thread
        await asyncio.sleep(0.001)
    began = clock.monotonic()
    cloud.away_until = 1e9
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        await task
    assert clock.monotonic() >= began + 60.0


async def test_a_refused_login_or_a_defect_is_no_outage_and_is_told_at_once(cloud, clock):
    poller = Poller(cloud.look, period_s=PERIOD, clock=clock, patience_s=60.0)
    for failure in (AccessDenied("the password is wrong"), KeyError("uuid")):
        cloud.failures = [failure]
        with pytest.raises(type(failure)):
            await waits(poller, "a")
    assert clock.monotonic() < 2 * PERIOD


async def test_nobody_waits_for_a_poller_that_broke(cloud, clock, monkeypatch):
    async def broken(_seconds: float) -> None:
        raise RuntimeError("the clock is broken")

    poller = Poller(cloud.look, period_s=PERIOD, clock=clock)
    monkeypatch.setattr(clock, "asleep", broken)
    with pytest.raises(RuntimeError, match="the clock is broken"):
        await waits(poller, "a")
    assert not poller.works


async def test_what_follows_a_look_and_fails_costs_nobody_the_answer(cloud, clock, caplog):
    def fail(snapshot: Snapshot) -> None:
        raise RuntimeError("renewing failed")

    poller = Poller(cloud.look, period_s=PERIOD, clock=clock, on_snapshot=fail)
    cloud.phases["a"] = Phase.READY
    assert await waits(poller, "a") is not None
    assert "what follows a look" in caplog.text


async def test_a_slow_cloud_is_not_asked_without_a_rest(cloud, clock, poller):
    cloud.seconds = 1.5
    assert await waits(poller, "a", at_most_s=60.0) is None
    gaps = [after - before for before, after in itertools.pairwise(cloud.looked_at)]
    assert min(gaps) >= 2 * cloud.seconds  # as long again


async def test_the_loop_is_free_while_many_are_woken_at_once(cloud, poller):
    names = [f"m{number}" for number in range(1000)]
    cloud.phases |= dict.fromkeys(names, Phase.READY)
    tasks = [waits(poller, name) for name in names]
    done = [0]
    while done[-1] < len(tasks):
        await asyncio.sleep(0)  # one turn of the loop
        done.append(sum(task.done() for task in tasks))
    assert max(after - before for before, after in itertools.pairwise(done)) <= 100


def test_only_phases_count_as_a_change():
    def snapshot(version: int, **phases: Phase) -> Snapshot:
        sights = {key: Sight(phase=phase, words=f"{phase.value} {version}") for key, phase in phases.items()}
        return Snapshot(version=version, asked_at=float(version), sights=sights)

    before = snapshot(1, a=Phase.COMING, b=Phase.COMING, c=Phase.READY)
    after = snapshot(2, a=Phase.COMING, b=Phase.READY, d=Phase.COMING)
    assert changed(before, after) == {"b", "c", "d"}
    assert changed(None, before) == {"a", "b", "c"}


def test_whoever_left_is_forgotten_by_every_key():
    waiters = Waiters()
    waiter = Waiter(keys=frozenset({"a", "b"}), since=0.0)
    waiters.join(waiter)
    waiters.leave(waiter)
    waiters.leave(waiter)
    snapshot = Snapshot(version=1, asked_at=1.0, sights={})
    assert len(waiters) == 0
    assert waiters.called_by(snapshot, {"a", "b"}) == []


def test_who_gives_back_is_not_quiet_while_a_machine_is_only_coming():
    snapshot = Snapshot(version=1, asked_at=1.0, sights={"a": Sight(phase=Phase.COMING, words="wait call-back")})
    assert not snapshot.calls_for_a_look({"a"})
    assert snapshot.calls_for_a_look({"a"}, quiet={Phase.GOING})
