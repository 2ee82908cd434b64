"""A lease gets a later deadline, from any process; and what becomes of a crash in the middle of it."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from click.testing import CliRunner

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.cli.main import main
from mlops_sdk.errors import BudgetExceeded, DamagedObject, LeaseLost, MlopsError, ServiceUnavailable, SettingsError
from mlops_sdk.keeper import Beat, Stop
from mlops_sdk.run import Run
from mlops_sdk.testing.cloud import FakeBaremetal, FakeCloud
from mlops_sdk.testing.faults import Crash

BEAT_S = 5.0


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


class ByHand:
    """Nobody beats but the test."""

    def keep(self, beat: Beat, every_s: float) -> Stop:
        del beat, every_s
        return lambda: None


def start(cloud: FakeCloud) -> Run:
    return cloud.client(keeper=ByHand()).start_run(name="nightly")


def request(cloud: FakeCloud, *, lasts_s: float = 60, nodes: int = 2) -> LeaseRequest:
    return LeaseRequest(nodes=nodes, resource_class="gpu.h200.8x", deadline=later(cloud, lasts_s))


def later(cloud: FakeCloud, seconds: float) -> datetime:
    return cloud.clock.now() + timedelta(seconds=seconds)


def live(cloud: FakeCloud, run: Run, seconds: float) -> None:
    """The process of a run, for a while: it beats."""
    for _ in range(int(seconds / BEAT_S)):
        cloud.clock.sleep(BEAT_S)
        run._heartbeat._again()


def deadlines(cloud: FakeCloud) -> set[datetime]:
    return {found.marker.deadline for found in cloud.allocations.values() if found.marker}


def test_another_process_extends_and_the_one_that_holds_the_lease_follows(cloud):
    run = start(cloud)
    run.lease(request(cloud))
    first = run.credential
    wanted = later(cloud, 200)
    assert cloud.client().attach(run.key).extend(wanted) == wanted
    assert deadlines(cloud) == {wanted}
    assert run.held is not None
    assert run.held.deadline < wanted  # it does not know yet
    live(cloud, run, 2 * BEAT_S)
    assert run.held.deadline == wanted
    assert run.credential.name == f"{first.name}1"
    assert run.credential.expires_at - first.expires_at > timedelta(seconds=130)
    assert set(cloud.credentials) == {run.credential.name}
    live(cloud, run, 80)
    cloud.reaper().reap_once()
    run.raise_if_lost()
    assert len(cloud.held) == 2
    run.release()
    assert run.prove().complete
    assert not cloud.held
    assert not cloud.credentials
    assert not [key for key in cloud.s3.objects if key.startswith("orders/")]


def test_its_own_process_extends_too_and_twice(cloud):
    with start(cloud) as run:
        run.lease(request(cloud))
        for seconds in (100, 200):
            wanted = later(cloud, seconds)
            run.extend(wanted)
            assert run.extend(wanted) == wanted  # asked again, nothing happens
            assert run.deadline == wanted
            run.raise_if_lost()
        assert run.credential.name.endswith("-cred2")
    assert run.prove().complete
    assert not cloud.credentials


def test_who_attaches_later_adopts_with_the_later_deadline(cloud):
    run = start(cloud)
    run.lease(request(cloud))
    wanted = run.extend(later(cloud, 200))
    run.close()
    with cloud.client().attach(run.key) as again:
        assert again.lease().deadline == wanted
        assert set(cloud.credentials) == {again.credential.name}


@pytest.mark.parametrize("seconds", [10, -10])
def test_a_deadline_that_is_not_later_is_refused(cloud, seconds):
    with start(cloud) as run:
        run.lease(request(cloud))
        with pytest.raises(SettingsError, match="not later"):
            run.extend(later(cloud, seconds))
        assert not [entry for entry in run.journal.entries() if entry.action == "lease.extend"]


def test_what_is_over_cannot_be_extended(cloud):
    run = start(cloud)
    with pytest.raises(LeaseLost):
        run.extend(later(cloud, 100))
    run.lease(request(cloud))
    cloud.clock.sleep(61)
    with pytest.raises(LeaseLost, match="ended at"):
        run.extend(later(cloud, 100))
    run.release()
    with pytest.raises(LeaseLost, match="released"):
        run.extend(later(cloud, 100))


def test_the_budget_is_asked_for_the_time_that_is_added(cloud):
    # 2 machines at 0.01 a second: 60 s cost 1.20, 40 s more 0.80
    budget = cloud.settings.budget.model_copy(update={"owners": {"tester": 2.05}})
    cloud.settings = cloud.settings.model_copy(update={"budget": budget})
    with start(cloud) as run:
        run.lease(request(cloud))
        before = run.deadline
        with pytest.raises(BudgetExceeded):
            run.extend(before + timedelta(seconds=50))
        assert run.deadline == before
        run.extend(before + timedelta(seconds=40))
        with pytest.raises(BudgetExceeded):  # what was promised counts at once
            run.extend(before + timedelta(seconds=45))


def test_a_request_that_lands_late_does_not_bring_an_older_deadline_back(cloud):
    run = start(cloud)
    first = run.lease(request(cloud)).deadline
    wanted = run.extend(later(cloud, 200))
    for name in cloud.allocations:  # of an extension that was overtaken by another one
        FakeBaremetal(cloud).set_times(name, renewed_until=later(cloud, 20), deadline=first)
    live(cloud, run, 2 * BEAT_S)
    assert deadlines(cloud) == {wanted}
    run.release()


def test_by_hand(cloud, monkeypatch):
    monkeypatch.setattr("mlops_sdk.cli.hold.Client", cloud.client)
    run = start(cloud)
    before = run.lease(request(cloud)).deadline
    shown = CliRunner().invoke(main, ["lease", "extend", run.key, "--hours", "0.5", "--json"], catch_exceptions=False)
    assert datetime.fromisoformat(json.loads(shown.output)["deadline"]) == before + timedelta(minutes=30)
    shown = CliRunner().invoke(main, ["lease", "extend", run.key, "--until", "2026-01-01T02:00:00"])
    assert "until 2026-01-01 02:00:00 UTC" in shown.output
    assert CliRunner().invoke(main, ["lease", "extend", run.key]).exit_code != 0
    run.release()


def test_with_s3_away_the_lease_is_renewed_all_the_same(cloud):
    run = start(cloud)
    run.lease(request(cloud))
    for k in range(1, 100):
        cloud.faults.fail_at("get_object", k + cloud.faults.calls.count("get_object"), error=MlopsError("S3 is down"))
    live(cloud, run, 45)
    run.raise_if_lost()
    cloud.reaper().reap_once()
    assert len(cloud.held) == 2
    cloud.faults.clear()
    run.release()


def extend(cloud: FakeCloud, key: str) -> None:
    cloud.client().attach(key).extend(later(cloud, 200))


def calls_of_extend() -> int:
    cloud = FakeCloud()
    run = start(cloud)
    run.lease(request(cloud))
    cloud.faults.clear()
    extend(cloud, run.key)
    return len(cloud.faults.calls)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("k", range(1, calls_of_extend() + 1))
def test_a_crash_of_who_extends_leaves_all_or_nothing_extended(k, when):
    cloud = FakeCloud()
    run = start(cloud)
    run.lease(request(cloud))
    before = run.deadline
    cloud.faults.clear()
    cloud.faults.fail_at("*", k, error=Crash(), when=when)
    with suppress(Crash):  # a call that finds nothing has no "after"
        extend(cloud, run.key)
    cloud.faults.clear()
    for _ in range(16):  # beyond the first deadline
        live(cloud, run, BEAT_S)
        cloud.reaper().reap_once()
    if run.deadline > before:
        run.raise_if_lost()
        assert deadlines(cloud) == {run.deadline}
        assert run.history().generations[1].end == run.deadline
    else:
        assert not cloud.held
        with pytest.raises(LeaseLost):
            run.raise_if_lost()
    cloud.faults.clear()
    run.release()
    assert run.prove().complete
    assert not cloud.held
    assert not cloud.credentials


def calls_of_following() -> int:
    cloud = FakeCloud()
    run = start(cloud)
    run.lease(request(cloud))
    extend(cloud, run.key)
    cloud.faults.clear()
    run._heartbeat._again()
    return len(cloud.faults.calls)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("k", range(1, calls_of_following() + 1))
def test_a_crash_of_who_follows_leaves_nothing_behind(k, when):
    cloud = FakeCloud()
    run = start(cloud)
    run.lease(request(cloud))
    extend(cloud, run.key)
    cloud.faults.clear()
    cloud.faults.fail_at("*", k, error=Crash(), when=when)
    with suppress(Crash):
        run._heartbeat._again()
    run.close()
    cloud.faults.clear()
    again = cloud.client().attach(run.key)
    if k % 2:  # somebody takes over
        assert len(again.lease().nodes) == 2
        again._heartbeat._again()
        again.raise_if_lost()
        again.release()
    else:
        for _ in range(3):
            cloud.clock.sleep(cloud.settings.lease.renew_for_s + 2)
            cloud.reaper().reap_once()
    assert not cloud.held
    assert not cloud.credentials
    assert again.prove().complete


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("k", range(1, calls_of_extend() + 1))
def test_a_call_that_fails_is_repaired_by_asking_again(k, when):
    cloud = FakeCloud()
    run = start(cloud)
    run.lease(request(cloud))
    wanted = later(cloud, 200)
    cloud.faults.clear()
    cloud.faults.fail_at("*", k, error=ServiceUnavailable("no answer"), when=when)
    with suppress(ServiceUnavailable):
        cloud.client(keeper=ByHand()).attach(run.key).extend(wanted)
    cloud.faults.clear()
    assert cloud.client(keeper=ByHand()).attach(run.key).extend(wanted) == wanted
    live(cloud, run, 80)  # beyond the first deadline
    cloud.reaper().reap_once()
    run.raise_if_lost()
    assert deadlines(cloud) == {wanted}
    assert len(cloud.credentials) == 1
    run.release()
    assert run.prove().complete
    assert not run.history().generations[1].impossible


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("k", range(1, calls_of_following() + 1))
def test_a_beat_that_fails_to_follow_follows_at_the_next(k, when):
    cloud = FakeCloud()
    run = start(cloud)
    run.lease(request(cloud))
    wanted = later(cloud, 200)
    cloud.client(keeper=ByHand()).attach(run.key).extend(wanted)
    cloud.faults.clear()
    cloud.faults.fail_at("*", k, error=ServiceUnavailable("no answer"), when=when)
    live(cloud, run, 3 * BEAT_S)
    cloud.faults.clear()
    assert run.held is not None
    assert run.held.deadline == wanted
    run.raise_if_lost()
    live(cloud, run, 80)
    cloud.reaper().reap_once()
    run.raise_if_lost()
    assert len(cloud.credentials) == 1
    run.release()
    assert not cloud.credentials
    assert run.prove().complete


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, calls_of_extend() + 1))
def test_crashes_of_both_who_extends_and_who_follows(first):
    for second in range(1, calls_of_following() + 1):
        cloud = FakeCloud()
        run = start(cloud)
        run.lease(request(cloud))
        cloud.faults.clear()
        cloud.faults.fail_at("*", first, error=Crash())
        with suppress(Crash):
            extend(cloud, run.key)
        cloud.faults.clear()
        cloud.faults.fail_at("*", second, error=Crash())
        with suppress(Crash):
            for _ in range(3):
                live(cloud, run, BEAT_S)
        run.close()
        cloud.faults.clear()
        for _ in range(3):
            cloud.clock.sleep(cloud.settings.lease.renew_for_s + 2)
            cloud.reaper().reap_once()
        assert not cloud.held
        assert not cloud.credentials
        assert cloud.client().attach(run.key).prove().complete


@pytest.mark.parametrize("body", [b"", b"damaged", b"[]", b"{}"])
def test_damaged_orders_are_named_and_cost_no_lease(body):
    cloud = FakeCloud()
    run = start(cloud)
    run.lease(request(cloud))
    key = f"orders/{run.key}-g1.json"
    cloud.s3.objects[key] = body
    with pytest.raises(DamagedObject, match=key):
        extend(cloud, run.key)
    live(cloud, run, BEAT_S)
    run.raise_if_lost()
    run.release()
    assert run.prove().complete
