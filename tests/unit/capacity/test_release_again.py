"""A machine that does not come back at once: asked for again so often, handed over, or taken out of the pool."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.providers.ironic_api import NotYet
from mlops_sdk.errors import AccessDenied
from support_given_back import DOWN, Given, asked, losing


@pytest.fixture
def given() -> Given:
    return Given()


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


@pytest.mark.parametrize(("tries", "call"), [(0, "manage"), (3, "put_out")])
def test_who_loses_the_claim_at_the_last_moment_asks_for_nothing(given, tries, call):
    given.machine.fails.add("clean")
    held = given.held()
    given.finish(given.by("run", held))
    made = given.fence().claim(held.allocation_id, recleans=tries)
    assert made is not None
    given.fence().yield_up(made)
    assert given.by("reaper", held, fence=losing(given)).step() is None
    assert asked(given, call) == 0


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


def test_the_claim_of_who_handed_over_goes_when_the_machine_is_back_by_itself(given):
    given.machine.fails.add("clean")
    held = given.held()
    given.finish(given.by("run", held))
    assert given.claims != []
    given.show(provision_state="available", maintenance=False)  # a person saw to it
    evidence = given.by("reaper", held).step()
    assert evidence is not None
    assert given.claims == []
