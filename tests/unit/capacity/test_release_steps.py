"""How one machine of Ironic is given back, step by step: who may act, what is asked for, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

import pytest

from mlops_sdk.capacity.evidence import NodeEvidence, Outcome
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.lease import EndReason, LeaseRequest, Marker
from mlops_sdk.capacity.owned import Held
from mlops_sdk.capacity.provider import Returning
from mlops_sdk.capacity.providers.ironic_api import NotYet
from mlops_sdk.capacity.providers.ironic_view import Allocation
from mlops_sdk.errors import AccessDenied, ServiceUnavailable
from mlops_sdk.testing.cloud import FakeCloud, FakeMachine
from mlops_sdk.testing.memory_s3 import memory_store

DOWN = ServiceUnavailable("no answer")


class Given:
    """A run holds one machine; somebody gives it back."""

    def __init__(self, *, deployed: bool = True) -> None:
        self.cloud = FakeCloud()
        self.services = self.cloud.services()
        deadline = self.cloud.clock.now() + timedelta(hours=1)
        with self.cloud.client().start_run(name="one") as run:
            run.lease(LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=deadline))
            run.keep()
        self.key = run.key
        self.leased_at = self.cloud.clock.now()
        self.mine = True
        if not deployed:
            self.show(provision_state="available", power_state="power off")

    @property
    def allocation(self) -> Allocation:
        (found,) = self.cloud.allocations.values()
        return found

    @property
    def machine(self) -> FakeMachine:
        return self.cloud.machines[next(iter(self.cloud.machines))]

    @property
    def state(self) -> str:
        self.cloud.settle()
        return self.machine.shown.provision_state

    def show(self, **changes: Any) -> None:
        self.machine.shown = replace(self.machine.shown, **changes)
        self.machine.next = None

    def renewed(self, seconds: float) -> None:
        until = (self.cloud.clock.now() + timedelta(seconds=seconds)).isoformat()
        extra = {"mlops": {**self.allocation.extra["mlops"], "renewed_until": until}}
        self.cloud.allocations[self.allocation.name] = replace(self.allocation, extra=extra)

    def held(self, **changes: Any) -> Held:
        shown = self.allocation
        values = {"name": shown.name, "allocation_id": shown.id, "node_id": shown.node_id, "deployed": True}
        return Held(**{**values, **changes})

    def by(
        self,
        who: Literal["run", "reaper", "person"] = "run",
        held: Held | None = None,
        *,
        fence: Fence | None = None,
        entitled: Callable[[str, Marker | None], bool] | None = None,
    ) -> Returning:
        provider = self.services.provider("ironic", by=who, fence=fence or self.fence())
        allowed = entitled or (lambda _name, _marker: self.mine)
        return provider.returning(held or self.held(), reason=EndReason.FINISHED, entitled=allowed, run_key=self.key)

    def fence(self) -> Fence:
        return Fence(memory_store(self.cloud.s3), now=self.cloud.clock.now, ttl_s=20.0)

    @property
    def claims(self) -> list[str]:
        return [key for key in self.cloud.s3.objects if key.startswith("fence/")]

    def finish(self, release: Returning, *, at_most: int = 300) -> NodeEvidence:
        for _ in range(at_most):
            evidence = release.step()
            if evidence is not None:
                return evidence
            self.cloud.clock.sleep(1)
        raise AssertionError(f"no end: {self.machine.shown}")


@pytest.fixture
def given() -> Given:
    return Given()


def asked(given: Given, call: str) -> int:
    return given.cloud.faults.calls.count(call)


def test_a_machine_in_use_is_torn_down_cleaned_and_proved_clean(given):
    shown = given.held(since=given.leased_at)
    begun = given.cloud.clock.now()
    evidence = given.finish(given.by("run", shown))
    assert (evidence.outcome, evidence.clean) == (Outcome.CLEANED, True)
    assert (evidence.resource, evidence.allocation_id, evidence.node_id) == (
        shown.name,
        shown.allocation_id,
        shown.node_id,
    )
    assert (evidence.reason, evidence.released_by) == (EndReason.FINISHED, "run")
    assert (evidence.node_name, evidence.provision_state) == (given.machine.shown.name, "available")
    assert evidence.power_state == "power off"
    assert evidence.steps == ("deploy.erase_devices",)
    assert (evidence.recleans, evidence.last_error) == (0, "")
    assert begun <= datetime.fromisoformat(evidence.started_at) <= datetime.fromisoformat(evidence.cleaned_at)
    assert datetime.fromisoformat(evidence.cleaned_at) <= datetime.fromisoformat(evidence.finished_at)
    assert given.claims == []
    assert asked(given, "tear_down") == 1


def test_a_machine_that_was_never_deployed_only_loses_its_allocation():
    given = Given(deployed=False)
    evidence = given.finish(given.by("run", given.held(deployed=False)))
    assert evidence.outcome is Outcome.NEVER_DEPLOYED
    assert asked(given, "tear_down") == 0
    assert given.cloud.allocations == {}
    assert given.claims == []


def test_what_is_known_as_deployed_but_is_available_under_its_allocation_was_never_used():
    given = Given(deployed=False)
    assert given.finish(given.by()).outcome is Outcome.NEVER_DEPLOYED


def test_who_is_not_entitled_touches_nothing_and_says_so(given):
    given.mine = False
    release = given.by("reaper")
    evidence = release.step()
    assert evidence is not None
    assert evidence.outcome is Outcome.PENDING
    assert (asked(given, "tear_down"), given.claims) == (0, [])
    assert given.state == "active"


def test_who_finds_it_renewed_after_its_claim_gives_the_claim_up(given):
    answers = [True, False, False, False]
    release = given.by("reaper", entitled=lambda _name, _marker: answers.pop(0))
    evidence = release.step()
    assert evidence is None or evidence.outcome is Outcome.PENDING
    if evidence is None:
        evidence = release.step()
    assert evidence is not None
    assert evidence.outcome is Outcome.PENDING
    assert given.state == "active"
    assert asked(given, "tear_down") == 0


def test_a_claim_of_one_who_finds_it_renewed_later_is_free_for_the_next(given):
    given.cloud.faults.fail_at("tear_down", asked(given, "tear_down") + 1, error=DOWN)
    release = given.by("reaper")
    with pytest.raises(ServiceUnavailable):
        release.step()
    assert given.claims != []
    given.mine = False
    evidence = release.step()
    assert evidence is not None
    assert evidence.outcome is Outcome.PENDING
    claim = given.fence().read(given.allocation.id)
    assert claim is not None
    assert not claim.live(given.cloud.clock.now())


def test_an_allocation_of_the_same_name_with_another_id_is_not_what_was_begun(given):
    held = given.held(allocation_id="another", node_id="")
    evidence = given.by("run", replace(held, deployed=False)).step()
    assert evidence is not None
    assert evidence.outcome is Outcome.NEVER_DEPLOYED
    assert given.state == "active"


def test_while_another_has_the_claim_it_is_only_watched_and_its_end_is_seen(given):
    other = given.fence()
    claim = other.claim(given.allocation.id, name=given.allocation.name)
    assert claim is not None
    watcher = given.by("reaper")
    assert watcher.step() is None
    assert asked(given, "tear_down") == 0
    other.drop(claim)
    first = given.by("run", fence=other)
    assert first.step() is None
    assert watcher.step() is None
    assert asked(given, "tear_down") == 1
    assert given.finish(first).outcome is Outcome.CLEANED
    evidence = watcher.step()
    assert evidence is not None
    assert evidence.outcome is Outcome.CLEANED
    assert evidence.released_by == "reaper"


def test_what_somebody_else_gave_back_before_ended_when_it_was_cleaned(given):
    held = given.held(since=given.leased_at)
    given.finish(given.by("run", held))
    cleaned_at = given.cloud.clock.now()
    given.cloud.clock.sleep(500)
    evidence = given.by("reaper", held).step()
    assert evidence is not None
    assert evidence.outcome is Outcome.CLEANED
    assert evidence.finished_at == evidence.cleaned_at
    assert datetime.fromisoformat(evidence.finished_at) <= cleaned_at
    assert evidence.started_at == given.leased_at.isoformat()


def test_the_claim_says_what_is_given_back_for_who_has_to_finish_it(given):
    given.by().step()
    claim = given.fence().read(given.allocation.id)
    assert claim is not None
    assert dict(claim.details) == {
        "provider": "ironic",
        "name": given.allocation.name,
        "node_id": given.allocation.node_id,
        "run_key": given.key,
    }


@pytest.mark.parametrize(("left_s", "goes_on"), [(60, True), (1.5, False)])
def test_without_s3_only_a_run_that_is_renewed_well_ahead_goes_on(given, left_s, goes_on):
    given.renewed(left_s)
    for k in range(1, 50):
        given.cloud.faults.fail_at("put_object", asked(given, "put_object") + k, error=DOWN)
    if goes_on:
        given.by("run").step()
        assert asked(given, "tear_down") == 1
        return
    with pytest.raises(ServiceUnavailable):
        given.by("run").step()
    assert asked(given, "tear_down") == 0


def test_without_s3_the_reaper_does_nothing(given):
    given.renewed(60)
    given.cloud.faults.fail_at("put_object", asked(given, "put_object") + 1, error=DOWN)
    with pytest.raises(ServiceUnavailable):
        given.by("reaper").step()
    assert asked(given, "tear_down") == 0


def test_a_state_that_is_not_known_is_an_error_after_some_looks_with_the_word_itself(given):
    given.show(provision_state="beaming")
    release = given.by()
    found = [release.step() for _ in range(5)]
    assert found[:4] == [None] * 4
    assert found[4] is not None
    assert found[4].outcome is Outcome.NOT_CLEAN
    assert "beaming" in found[4].last_error


def test_a_state_that_was_not_known_for_a_moment_is_forgotten(given):
    release = given.by()
    for _ in range(2):
        given.show(provision_state="beaming")
        assert [release.step() for _ in range(4)] == [None] * 4
        given.show(provision_state="deleting")
        assert release.step() is None


def test_a_run_whose_machine_cannot_be_cleaned_hands_it_over_with_a_claim_that_anybody_may_take(given):
    given.machine.fails.add("clean")
    evidence = given.finish(given.by("run"))
    assert (evidence.outcome, evidence.recleans) == (Outcome.NOT_CLEAN, 0)
    assert evidence.provision_state == "clean failed"
    assert asked(given, "manage") == 0
    (claim,) = given.fence().claims()
    assert not claim.live(given.cloud.clock.now())


def test_the_reaper_cleans_it_again_so_often_and_then_takes_it_out(given):
    given.machine.fails.add("clean")
    evidence = given.finish(given.by("reaper"))
    tries = given.cloud.settings.lease.reclean_tries
    assert (evidence.outcome, evidence.recleans) == (Outcome.NOT_CLEAN, tries)
    assert asked(given, "manage") == tries
    assert given.machine.shown.maintenance
    assert given.machine.shown.maintenance_reason.startswith("mlops: ")
    assert f"{tries} times" in given.machine.shown.maintenance_reason
    assert given.claims == []


def test_it_is_cleaned_again_at_once_and_then_after_a_pause_that_doubles(given):
    given.machine.fails.add("clean")
    release, pause = given.by("reaper"), given.cloud.settings.lease.renew_for_s
    at: list[float] = []
    while release.step() is None:
        if asked(given, "manage") > len(at):
            at.append(given.cloud.clock.monotonic())
        given.cloud.clock.sleep(0.5)
    assert [pause <= later - earlier < 2 * pause for earlier, later in pairwise(at)] == [True, False]
    assert 2 * pause <= at[2] - at[1] < 4 * pause


def test_the_pause_lasts_for_the_next_reaper_too(given):
    given.machine.fails.add("clean")
    held, pause = given.held(), given.cloud.settings.lease.renew_for_s
    fence = given.fence()
    first = given.by("reaper", held, fence=fence)
    while asked(given, "manage") < 2:
        assert first.step() is None
        given.cloud.clock.sleep(0.5)
    at = given.cloud.clock.monotonic()
    while asked(given, "provide") < 2 or given.state != "clean failed":
        first.step()
        given.cloud.clock.sleep(0.5)
    second = given.by("reaper", held, fence=fence)  # the next pass of the same process
    while asked(given, "manage") < 3:
        assert second.step() is None
        given.cloud.clock.sleep(0.5)
    assert 2 * pause <= given.cloud.clock.monotonic() - at < 4 * pause


def test_a_tear_down_that_fails_is_counted_by_the_reaper_and_then_the_machine_is_out(given):
    given.machine.fails.add("tear_down")
    evidence = given.finish(given.by("reaper"))
    tries = given.cloud.settings.lease.reclean_tries
    assert (evidence.outcome, evidence.recleans) == (Outcome.NOT_CLEAN, tries)
    assert asked(given, "tear_down") == 1 + tries
    assert given.machine.shown.maintenance
    assert evidence.resource in given.machine.shown.maintenance_reason
    assert evidence.provision_state == given.machine.shown.provision_state


def test_without_s3_a_run_still_says_that_its_machine_is_not_clean(given):
    given.machine.fails.add("clean")
    release = given.by("run")
    while given.state != "clean failed":
        assert release.step() is None
        given.cloud.clock.sleep(0.5)
    for k in range(1, 50):
        given.cloud.faults.fail_at("put_object", asked(given, "put_object") + k, error=DOWN)
    assert given.finish(release).outcome is Outcome.NOT_CLEAN


def test_a_person_begins_to_count_anew(given):
    given.machine.fails.add("clean")
    held = given.held()
    given.finish(given.by("reaper", held))
    before = asked(given, "manage")
    given.machine.fails.clear()
    evidence = given.finish(given.by("person", held))
    assert (evidence.outcome, evidence.recleans, evidence.released_by) == (Outcome.CLEANED, 1, "person")
    assert asked(given, "manage") == before + 1


def test_a_tear_down_that_fails_is_asked_for_again_by_the_run_a_few_times(given):
    given.machine.fails.add("tear_down")
    evidence = given.finish(given.by("run"))
    assert evidence.outcome is Outcome.NOT_CLEAN
    assert asked(given, "tear_down") == 3
    (claim,) = given.fence().claims()
    assert not claim.live(given.cloud.clock.now())


def test_a_tear_down_that_fails_once_is_done_again(given):
    given.machine.fails.add("tear_down")
    release = given.by("run")
    while given.state != "error":
        assert release.step() is None
        given.cloud.clock.sleep(1)
    given.machine.fails.clear()
    assert given.finish(release).outcome is Outcome.CLEANED
    assert asked(given, "tear_down") == 2


def test_a_cleaning_that_nobody_ends_is_ended_when_its_time_is_up(given):
    release = given.by("reaper")
    release.step()
    while asked(given, "tear_down") < 1:
        release.step()
    given.cloud.clock.sleep(2)
    given.cloud.settle()
    given.show(provision_state="clean wait", allocation_id="")
    given.cloud.allocations.clear()
    assert release.step() is None
    given.cloud.clock.sleep(given.cloud.settings.lease.clean_timeout_s)
    assert release.step() is None
    assert asked(given, "abort") == 0
    given.cloud.clock.sleep(1)
    release.step()
    assert asked(given, "abort") == 1


def test_a_cleaning_that_cannot_be_ended_is_out_of_the_pool_without_a_word_of_tries(given):
    held = given.held()
    given.cloud.allocations.clear()
    release, evidence = given.by("reaper", held), None
    while evidence is None:
        given.show(provision_state="clean wait", allocation_id="")
        evidence = release.step()
        given.cloud.clock.sleep(10)
    assert (evidence.outcome, evidence.recleans) == (Outcome.NOT_CLEAN, 0)
    assert asked(given, "abort") == 3
    assert given.machine.shown.maintenance
    assert "times" not in given.machine.shown.maintenance_reason


def test_of_a_machine_that_is_gone_nothing_is_said(given):
    held = given.held()
    given.cloud.allocations.clear()
    given.cloud.machines.clear()
    evidence = given.by("reaper", held).step()
    assert evidence is not None
    assert (evidence.outcome, evidence.node_name, evidence.provision_state, evidence.power_state) == (
        Outcome.UNPROVEN,
        "",
        "",
        "",
    )
    assert (evidence.cleaned_at, evidence.steps, evidence.recleans) == ("", (), 0)


def test_a_machine_that_the_next_tenant_has_by_now_is_not_touched(given):
    held = given.held()
    given.cloud.allocations.clear()
    given.show(allocation_id="theirs")
    evidence = given.by("reaper", held).step()
    assert evidence is not None
    assert evidence.outcome is Outcome.UNPROVEN
    assert (asked(given, "tear_down"), given.state) == (0, "active")


def test_a_cleaning_that_erased_nothing_proves_nothing_and_says_what_it_did(given):
    release = given.by("run")
    while given.state != "cleaning":
        assert release.step() is None
        given.cloud.clock.sleep(0.5)
    given.machine.history[0] = replace(
        given.machine.history[0],
        words="Starting automated cleaning with steps=[{'step': 'reset', 'interface': 'bios', 'priority': 10}]",
    )
    evidence = given.finish(release)
    assert evidence.outcome is Outcome.UNPROVEN
    assert "bios.reset" in evidence.last_error


def test_a_machine_that_is_locked_is_asked_again_and_what_ironic_said_is_forgotten(given):
    given.cloud.faults.fail_at("tear_down", asked(given, "tear_down") + 1, error=NotYet("it is locked"))
    release = given.by("run")
    assert release.step() is None
    assert given.state == "active"
    evidence = given.finish(release)
    assert (evidence.outcome, evidence.last_error) == (Outcome.CLEANED, "")
    assert asked(given, "tear_down") == 2


@pytest.mark.parametrize("call", ["manage", "provide"])
def test_a_cleaning_that_ironic_cannot_begin_now_is_begun_later(given, call):
    given.machine.fails.add("clean")
    held = given.held()
    given.finish(given.by("run", held))
    given.machine.fails.clear()
    given.cloud.faults.fail_at(call, 1, error=NotYet("it is locked"))
    evidence = given.finish(given.by("reaper", held))
    assert (evidence.outcome, asked(given, call)) == (Outcome.CLEANED, 2)


def test_a_machine_that_may_not_be_put_out_is_said_to_be_so(given):
    given.machine.fails.add("clean")
    denied = AccessDenied("403", seen="not yours", next_step="ask")
    given.cloud.faults.fail_at("put_out", 1, error=denied)
    evidence = given.finish(given.by("reaper"))
    assert (evidence.outcome, evidence.provision_state) == (Outcome.NOT_CLEAN, "clean failed")
    assert not given.machine.shown.maintenance_reason.startswith("mlops")
    assert given.claims == []


def test_a_machine_that_cannot_be_put_out_now_is_put_out_later(given):
    given.machine.fails.add("clean")
    given.cloud.faults.fail_at("put_out", 1, error=NotYet("it is locked"))
    assert given.finish(given.by("reaper")).outcome is Outcome.NOT_CLEAN
    assert asked(given, "put_out") == 2
    assert given.machine.shown.maintenance


def test_a_claim_that_cannot_be_removed_does_not_hide_that_it_is_over(given):
    given.cloud.faults.fail_at("delete_object", asked(given, "delete_object") + 1, error=DOWN)
    assert given.finish(given.by("run")).outcome is Outcome.CLEANED
    assert given.claims != []


def test_the_claim_of_who_handed_over_goes_when_the_machine_is_back_by_itself(given):
    given.machine.fails.add("clean")
    held = given.held()
    given.finish(given.by("run", held))
    assert given.claims != []
    given.show(provision_state="available", maintenance=False)  # a person saw to it
    evidence = given.by("reaper", held).step()
    assert evidence is not None
    assert given.claims == []
