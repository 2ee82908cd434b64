"""What the reaper takes back and leaves alone, and what it says and writes down about it."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from mlops_sdk.capacity.lease import EndReason
from mlops_sdk.capacity.order_book import OrderBook
from mlops_sdk.capacity.orders import Keeping, Kept, Orders
from mlops_sdk.capacity.providers.ironic_view import Allocation
from mlops_sdk.capacity.reaper import Reaper, ReapReport, main
from mlops_sdk.capacity.use import used_by_owner
from mlops_sdk.config import Settings
from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.history import read_history
from mlops_sdk.identity.audit import Audit, read_audit
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.memory_s3 import memory_store
from mlops_sdk.testing.settings import fake_settings
from support_dead_runs import died, entries, fence, leased

DOWN = ServiceUnavailable("no answer")


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


def kinds(report: ReapReport) -> list[str]:
    return sorted(due.kind for due in report.due)


def test_a_dry_run_names_all_that_is_due_and_touches_nothing(cloud):
    died(cloud, nodes=2)
    leased(cloud, "alive")
    fence(cloud).claim("gone", provider="ironic", name="ml-aaaaaaaaaaaa-g1-0")
    cloud.clock.sleep(20)
    leased(cloud, "young")
    before = dict(cloud.s3.objects), dict(cloud.held), dict(cloud.credentials), dict(cloud.access_rules)
    report = cloud.reaper().reap_once(dry_run=True)
    assert kinds(report) == ["allocation"] * 3 + ["credential"] * 2 + ["fence"]
    assert (report.evidence, report.errors, report.not_due) == ((), (), 1)
    assert (dict(cloud.s3.objects), dict(cloud.held), dict(cloud.credentials), dict(cloud.access_rules)) == before


def test_its_report_can_be_read_by_a_program(cloud):
    run = died(cloud)
    leased(cloud, "young")
    report = cloud.reaper().reap_once()
    told = json.loads(json.dumps(report.to_json()))
    assert set(told) == {"due", "evidence", "errors", "not_due"}
    (machine,) = [due for due in told["due"] if due["kind"] == "allocation"]
    assert machine == {"kind": "allocation", "resource": f"ml-{run.key}-g1-0", "reason": "not_renewed"}
    assert [item["outcome"] for item in told["evidence"]] == ["cleaned"]
    assert (told["errors"], told["not_due"]) == ([], 1)


def test_what_it_took_back_is_written_into_the_journal_of_its_run_and_paid_for(cloud):
    run = died(cloud, nodes=2)
    OrderBook(memory_store(cloud.s3), run.key, 1).change(lambda orders: replace(orders, credential=1))
    cloud.reaper().reap_once()
    history = read_history(entries(cloud, run))
    generation = history.generations[1]
    assert (generation.returned, generation.reason) == (True, EndReason.NOT_RENEWED)
    assert generation.impossible == []
    evidence = [piece.evidence for piece in generation.pieces.values()]
    assert {(item.released_by, item.reason) for item in evidence if item} == {("reaper", EndReason.NOT_RENEWED)}
    assert [(each.resource_class, each.start) for each in history.intervals] == [
        ("gpu.h200.8x", piece.since) for piece in generation.pieces.values()
    ]
    assert all(entry.writer.startswith("reaper") for entry in entries(cloud, run) if entry.kind.value == "evidence")
    assert not any(key.startswith("orders/") for key in cloud.s3.objects)
    used = used_by_owner(memory_store(cloud.s3), now=cloud.clock.now(), half_life_s=1e9)
    assert used["tester"] == pytest.approx(sum(each.seconds for each in history.intervals), rel=0.01)


def test_what_was_decided_about_a_lease_is_forgotten_only_when_all_of_it_is_back(cloud):
    run = died(cloud, nodes=2)
    book = OrderBook(memory_store(cloud.s3), run.key, 1)
    book.change(lambda orders: replace(orders, credential=1))
    stuck = next(machine for machine in cloud.machines.values() if machine.shown.allocation_id)
    stuck.shown = replace(stuck.shown, provision_state="deleting")  # and stays there
    cloud.reaper().run(StopAfter(cloud, 8))
    left = read_history(entries(cloud, run)).generations[1]
    assert [piece.evidence is None for piece in left.pieces.values()].count(True) == 1
    assert book.read().credential == 1


@pytest.mark.parametrize(("why", "reason"), [(Keeping.WARM, EndReason.IDLE), (Keeping.DEBUG, EndReason.WORK_FAILED)])
def test_why_it_ended_is_what_was_decided_about_it(cloud, why, reason):
    run = leased(cloud)
    until = cloud.clock.now() + timedelta(seconds=5)
    OrderBook(memory_store(cloud.s3), run.key, 1).change(lambda _: Orders(kept=Kept(until=until, why=why)))
    cloud.clock.sleep(30)
    report = cloud.reaper().reap_once()
    assert {due.reason for due in report.due if due.kind == "allocation"} == {reason}
    assert {item.reason for item in report.evidence} == {reason}


def test_orders_that_cannot_be_read_hide_no_machine(cloud):
    run = died(cloud)
    cloud.s3.objects[f"orders/{run.key}-g1.json"] = b"{"
    report = cloud.reaper().reap_once()
    assert {due.reason for due in report.due if due.kind == "allocation"} == {EndReason.NOT_RENEWED}
    assert cloud.held == {}


def test_a_run_that_renews_while_it_is_taken_back_keeps_its_machines(cloud):
    leased(cloud)
    cloud.clock.sleep(25)
    reaper = cloud.reaper()
    due, _, _ = reaper._scan(dry_run=False)
    assert "allocation" in {found.kind for found in due}
    (name,) = cloud.held.values()
    cloud.allocations[name] = renewed(cloud, name)
    assert reaper._step([]) == []
    assert cloud.held != {}
    assert reaper._in_flight == {}


def renewed(cloud: FakeCloud, name: str) -> Allocation:
    allocation = cloud.allocations[name]
    until = (cloud.clock.now() + timedelta(seconds=100)).isoformat()
    return replace(allocation, extra={"mlops": {**allocation.extra["mlops"], "renewed_until": until}})


def test_what_is_under_way_is_not_begun_again(cloud):
    died(cloud)
    reaper = cloud.reaper()
    reaper._scan(dry_run=False)
    (begun,) = reaper._in_flight.values()
    reaper._scan(dry_run=False)
    assert list(reaper._in_flight.values()) == [begun]


@pytest.mark.parametrize(
    ("call", "machines_stay", "credentials_stay"),
    [("list_allocations", True, False), ("list_credentials", False, True), ("list_objects_v2", False, False)],
)
def test_what_does_not_answer_is_named_and_the_rest_is_done(cloud, call, machines_stay, credentials_stay):
    died(cloud)
    for k in range(1, 200):
        cloud.faults.fail_at(call, cloud.faults.calls.count(call) + k, error=DOWN)
    report = cloud.reaper().reap_once()
    assert any("no answer" in text for text in report.errors)
    assert ((cloud.held != {}), (cloud.credentials != {})) == (machines_stay, credentials_stay)


def test_a_machine_that_does_not_answer_does_not_stop_the_others(cloud):
    died(cloud, nodes=3)
    cloud.faults.fail_at("get_machine", cloud.faults.calls.count("get_machine") + 1, error=DOWN)
    report = cloud.reaper().reap_once()
    assert ["no answer" in text for text in report.errors] == [True]
    assert len(report.evidence) == 2
    assert len(cloud.reaper().reap_once().evidence) == 1


def test_a_credential_is_revoked_with_its_reason_in_the_journal(cloud):
    run = died(cloud)
    (name,) = [stored.name for stored in cloud.credentials.values()]
    cloud.reaper().reap_once()
    told = [entry for entry in entries(cloud, run) if entry.action == "credential.revoke"]
    assert [(entry.kind.value, entry.resource, entry.generation, entry.data["reason"]) for entry in told] == [
        ("outcome", name, 1, "not_renewed")
    ]
    assert not any(run.key in rule.path for rule in cloud.access_rules.values())


def test_credentials_of_others_are_left_alone(cloud):
    died(cloud)
    (ident,) = cloud.credentials
    mine = cloud.credentials[ident]
    other = mine.description.replace(str(cloud.settings.deployment_id), "00000000-0000-4000-8000-000000000009")
    strangers = {
        "s1": replace(mine, id="s1", name="backup"),
        "s2": replace(mine, id="s2", name="ml-aaaaaaaaaaaa-g1-cred", description="by hand"),
        "s3": replace(mine, id="s3", name="ml-bbbbbbbbbbbb-g1-cred", description=other),
    }
    cloud.credentials = {**strangers, ident: mine}  # the first of them must not end the look at the others
    report = cloud.reaper().reap_once()
    assert [due.resource for due in report.due if due.kind == "credential"] == [mine.name]
    assert cloud.credentials == strangers


def test_a_run_that_has_not_beaten_yet_has_a_renewal_time_to_do_so(cloud):
    leased(cloud)
    for key in [key for key in cloud.s3.objects if key.endswith("heartbeat.json")]:
        del cloud.s3.objects[key]
    assert "credential" not in kinds(cloud.reaper().reap_once(dry_run=True))
    cloud.clock.sleep(cloud.settings.lease.renew_for_s)
    assert "credential" in kinds(cloud.reaper().reap_once(dry_run=True))


def test_a_damaged_heartbeat_is_no_heartbeat(cloud):
    leased(cloud)
    for key in [key for key in cloud.s3.objects if key.endswith("heartbeat.json")]:
        cloud.s3.objects[key] = b"{"
    assert "credential" not in kinds(cloud.reaper().reap_once(dry_run=True))
    cloud.clock.sleep(cloud.settings.lease.renew_for_s)
    report = cloud.reaper().reap_once()
    assert "credential" in kinds(report)
    assert report.errors == ()


def test_access_rules_without_their_credential_are_removed_when_their_run_is_known_here(cloud):
    run = died(cloud)
    cloud.credentials.clear()
    cloud.rules_of.clear()
    own = {ident: rule for ident, rule in cloud.access_rules.items() if run.key in rule.path}
    strangers = {f"s{n}": replace(r, path=r.path.replace(run.key, "b" * 12)) for n, r in enumerate(own.values())}
    cloud.access_rules.update(strangers)
    (due,) = [due for due in cloud.reaper().reap_once(dry_run=True).due if due.kind == "access_rules"]
    assert (run.key in due.resource, due.reason) == (True, EndReason.NOT_RENEWED)
    assert own.keys() <= cloud.access_rules.keys()
    cloud.reaper().reap_once()
    assert not own.keys() & cloud.access_rules.keys()
    assert strangers.keys() <= cloud.access_rules.keys()


def test_a_run_whose_journal_is_damaged_keeps_its_rules_and_is_named(cloud):
    run = died(cloud)
    cloud.credentials.clear()
    cloud.rules_of.clear()
    cloud.s3.objects[f"runs/{run.key}/journal/00000001.json"] = b"{"
    report = cloud.reaper().reap_once(dry_run=True)
    assert "access_rules" not in kinds(report)
    assert any("00000001.json" in text for text in report.errors)


def test_a_dead_claim_on_what_is_gone_is_removed_and_a_live_one_is_not(cloud):
    fence(cloud).claim("a1", provider="ironic", name="ml-aaaaaaaaaaaa-g1-0")
    assert kinds(cloud.reaper().reap_once()) == []
    assert cloud.s3.objects != {}
    cloud.clock.sleep(cloud.settings.lease.renew_for_s)
    (due,) = cloud.reaper().reap_once().due
    assert (due.kind, due.resource, due.reason) == ("fence", "a1", EndReason.NOT_RENEWED)
    assert cloud.s3.objects == {}


def test_a_claim_that_says_nothing_is_taken_for_one_of_the_first_provider(cloud):
    cloud.s3.objects["fence/a1"] = b"{"
    assert kinds(cloud.reaper().reap_once()) == ["fence"]
    assert cloud.s3.objects == {}


def test_a_claim_of_a_provider_that_is_not_configured_is_left_and_the_next_is_seen_to(cloud):
    fence(cloud).claim("a1", provider="elsewhere", name="ml-aaaaaaaaaaaa-g1-0")
    fence(cloud).claim("a2", provider="ironic", name="ml-aaaaaaaaaaaa-g1-1")
    cloud.clock.sleep(cloud.settings.lease.renew_for_s)
    report = cloud.reaper().reap_once()
    assert [due.resource for due in report.due] == ["a2"]
    assert list(cloud.s3.objects) == ["fence/a1"]


def test_a_dead_claim_on_a_lease_that_is_held_leaves_it_to_its_lease(cloud):
    leased(cloud)
    (allocation,) = cloud.allocations.values()
    claimed = fence(cloud).claim(allocation.id, provider="ironic", name=allocation.name)
    assert claimed is not None
    fence(cloud).yield_up(claimed)
    fence(cloud).yield_up(claimed)
    report = cloud.reaper().reap_once()
    assert kinds(report) == []
    assert cloud.held != {}


class StopAfter(threading.Event):
    """Lets the fake clock pass instead of waiting, and stops after some time of it."""

    def __init__(self, cloud: FakeCloud, seconds: float) -> None:
        super().__init__()
        self.waited: list[float] = []
        self._cloud = cloud
        self._end = cloud.clock.monotonic() + seconds

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout or 0.0)
        self._cloud.clock.sleep(timeout or 0.0)
        if self._cloud.clock.monotonic() >= self._end:
            self.set()
        return self.is_set()


def test_with_nothing_to_do_it_looks_once_a_period(cloud):
    period = cloud.settings.lease.reaper_period_s
    stop = StopAfter(cloud, 10 * period)
    cloud.reaper().run(stop)
    assert cloud.faults.calls.count("list_allocations") == 10
    assert stop.waited == pytest.approx([period] * 10)


def test_while_something_is_under_way_it_watches_it_more_often(cloud):
    died(cloud)
    stop = StopAfter(cloud, 2)
    cloud.reaper().run(stop)
    assert stop.waited[0] == cloud.settings.lease.poll_s


def test_while_something_does_not_answer_it_looks_less_and_less_often_up_to_a_limit(cloud):
    period = cloud.settings.lease.reaper_period_s
    for k in range(1, 5):
        cloud.faults.fail_at("list_allocations", k, error=DOWN)
    stop = StopAfter(cloud, 90)
    cloud.reaper().run(stop)
    assert stop.waited[:7] == pytest.approx([2 * period, 4 * period, 8 * period, 8 * period, period, period, period])


def test_a_long_period_is_not_made_longer_than_a_minute_nor_shorter():
    for period, waits in ((20.0, [40.0, 60.0, 60.0]), (90.0, [90.0, 90.0, 90.0])):
        settings = fake_settings()
        lease = settings.lease.model_copy(update={"reaper_period_s": period})
        cloud = FakeCloud(settings=settings.model_copy(update={"lease": lease}))
        for k in range(1, 9):
            cloud.faults.fail_at("list_allocations", k, error=DOWN)
        stop = StopAfter(cloud, 250)
        cloud.reaper().run(stop)
        assert stop.waited[:3] == pytest.approx(waits)


def test_one_pass_ends_when_the_cleaning_time_is_up_and_leaves_the_rest_to_the_next(cloud):
    died(cloud)
    (machine,) = [m for m in cloud.machines.values() if m.shown.allocation_id]
    machine.shown = replace(machine.shown, provision_state="deleting")  # and stays there
    begun, limit = cloud.clock.monotonic(), cloud.settings.lease.clean_timeout_s
    report = cloud.reaper().reap_once()
    passed = cloud.clock.monotonic() - begun
    assert limit <= passed < limit + 2 * cloud.settings.lease.poll_s
    assert report.evidence == ()


@pytest.fixture
def audited(cloud: FakeCloud) -> Iterator[Reaper]:
    services = cloud.services()
    services.broker.audit = Audit(memory_store(cloud.s3), "reaper", now=cloud.clock.now)
    yield Reaper(services)
    services.broker.audit.flush()


def test_each_machine_that_it_took_back_is_in_the_audit_log_with_its_result(cloud, audited):
    run = died(cloud, nodes=2)
    bad = next(m for m in cloud.machines.values() if m.shown.allocation_id)
    bad.fails.add("clean")
    begun = cloud.clock.now()
    audited.reap_once()
    audited._broker.audit.flush()
    since, until = begun - timedelta(minutes=1), cloud.clock.now() + timedelta(minutes=1)
    told = list(read_audit(memory_store(cloud.s3), since=since, until=until))
    results = {entry.resource: entry.result.value for entry in told if entry.action == "machine.release"}
    assert sorted(results) == [f"ml-{run.key}-g1-0", f"ml-{run.key}-g1-1"]
    assert sorted(results.values()) == ["done", "failed"]
    details = [entry.detail for entry in told if entry.action == "machine.release"]
    assert {detail["reason"] for detail in details} == {"not_renewed"}
    assert {detail["outcome"] for detail in details} == {"cleaned", "not_clean"}


def test_it_logs_in_as_the_reaper():
    assert "reaper" in Reaper.connect(fake_settings())._broker.audit._who


def test_as_a_process_it_runs_with_the_settings_of_its_place_until_it_is_stopped(monkeypatch, cloud):
    seen: list[tuple[object, bool]] = []

    def load() -> object:
        return cloud.settings

    def connect(settings: object) -> Reaper:
        reaper = cloud.reaper()
        monkeypatch.setattr(reaper, "run", lambda stop: seen.append((settings, stop.is_set())))
        return reaper

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(Settings, "load", load)
    assert main([], connect=connect) == 0
    assert seen == [(cloud.settings, False)]
