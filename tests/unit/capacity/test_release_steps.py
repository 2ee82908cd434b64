"""How one machine of Ironic is given back, step by step: who may act, what is asked for, and what is said of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import EndReason, Marker
from mlops_sdk.capacity.provider import Returning
from mlops_sdk.capacity.providers.ironic_api import NotYet
from mlops_sdk.errors import ServiceUnavailable
from support_given_back import DOWN, Given, asked


@pytest.fixture
def given() -> Given:
    return Given()


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


def test_a_machine_that_is_locked_is_asked_again_and_what_ironic_said_is_forgotten(given):
    given.cloud.faults.fail_at("tear_down", asked(given, "tear_down") + 1, error=NotYet("it is locked"))
    release = given.by("run")
    assert release.step() is None
    assert given.state == "active"
    evidence = given.finish(release)
    assert (evidence.outcome, evidence.last_error) == (Outcome.CLEANED, "")
    assert asked(given, "tear_down") == 2


def test_a_claim_that_cannot_be_removed_does_not_hide_that_it_is_over(given):
    given.cloud.faults.fail_at("delete_object", asked(given, "delete_object") + 1, error=DOWN)
    assert given.finish(given.by("run")).outcome is Outcome.CLEANED
    assert given.claims != []


def told(given: Given, *, mine: tuple[bool, ...] = ()) -> tuple[Returning, list[tuple[str, str, dict[str, Any]]]]:
    """A release, and what it tells of each call that changes something, with how that came out."""
    calls: list[tuple[str, str, dict[str, Any]]] = []
    answers = list(mine)

    @contextmanager
    def boundary(step: str, resource: str, **detail: Any) -> Generator[dict[str, Any]]:
        calls.append((step, resource, detail))
        yield detail

    def entitled(_name: str, _marker: Marker | None) -> bool:
        return answers.pop(0) if answers else not mine

    provider = given.services.provider("ironic", by="run", fence=given.fence(), boundary=boundary)
    held = given.held()
    return provider.returning(held, reason=EndReason.FINISHED, entitled=entitled, run_key=given.key), calls


def test_each_change_is_told_with_the_machine_it_is_about(given):
    held = given.held()
    release, calls = told(given)
    release.step()
    assert calls == [("machine.tear_down", held.name, {"node_id": held.node_id})]
    given = Given(deployed=False)
    held = given.held()
    release, calls = told(given)
    release.step()
    assert calls == [("allocation.delete", held.name, {"node_id": held.node_id, "provision_state": "available"})]


@pytest.mark.parametrize("deployed", [True, False])
def test_what_changed_hands_meanwhile_is_told_and_left(deployed):
    given = Given(deployed=deployed)
    release, calls = told(given, mine=(True, False))
    evidence = release.step()
    assert evidence is not None
    assert evidence.outcome is Outcome.PENDING
    assert [detail["changed"] for _, _, detail in calls] == [True]
    assert given.cloud.held != {}


def test_what_a_machine_was_to_be_deployed_with_is_forgotten_with_its_allocation():
    given = Given(deployed=False)
    assert given.machine.shown.instance != {}
    given.finish(given.by("run"))
    assert given.machine.shown.instance == {}
