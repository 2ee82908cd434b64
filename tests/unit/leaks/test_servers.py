"""The same of servers of Nova: nothing leaks, nobody is touched, and who says so would see it."""

import re

import pytest

from benchmarks.leaks import SCENES, run_chunk
from benchmarks.leaks_nova_peer import servers_leak_by_hand
from benchmarks.leaks_run import Result, run_schedule, stage
from benchmarks.leaks_schedules import Schedule, draw
from benchmarks.leaks_wire import HttpWire
from mlops_sdk.capacity import reaper as reaper_module
from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import EndReason
from mlops_sdk.capacity.providers import nova_release
from mlops_sdk.capacity.reaper import Reaper

NOVA = SCENES["nova"]


def result(line: str, *, traced: bool = False) -> Result:
    with stage():
        return run_schedule(Schedule.parse(line), scene=NOVA, traced=traced)


@pytest.mark.parametrize(("provider", "first", "number"), [("nova", 0, 90), ("nova-root", 100, 30)])
def test_nothing_leaks_and_nobody_is_touched(provider, first, number):
    shape = SCENES[provider].shape
    assert run_chunk([str(draw(seed, shape)) for seed in range(first, first + number)], provider).failures == []


@pytest.mark.parametrize(
    "line",
    [
        "3;release;1;1;0;;70=crash_after:0",
        pytest.param("4;replace;2;1;0;;60=lost_reply:0,150=crash_before:0", marks=pytest.mark.slow),
        pytest.param("5;extend;1;2;1;end:2;50=duplicate:2,80=expired:0,120=stale:2", marks=pytest.mark.slow),
    ],
)
def test_keystoneauth_requests_and_botocore_send_the_same_calls(line):
    def traced(wire: HttpWire | None = None) -> list[str]:
        with stage():
            found = run_schedule(Schedule.parse(line), scene=NOVA, wire=wire, traced=True).trace
        return [re.sub(r"audit/\S+", "audit/", each) for each in found]

    assert traced(HttpWire()) == traced()


def test_without_any_reaper_a_crash_leaves_everything():
    left = result("3;release;1;0;0;;70=crash_before:0").left
    assert {words.split()[0] for words in left} >= {"server", "port", "volume", "credential"}


def test_a_reaper_that_takes_everything_is_seen(monkeypatch):
    monkeypatch.setattr(Reaper, "_entitled", lambda *_: True)
    monkeypatch.setattr(
        reaper_module, "due_for_return", lambda owned, **_: [(item, EndReason.NOT_RENEWED) for item in owned]
    )
    wrong = result("1;release;1;1;0;;").wrong
    assert any("server" in words and "which is renewed" in words for words in wrong)


def test_who_says_that_a_guest_is_gone_that_runs_is_seen(monkeypatch):
    monkeypatch.setattr(nova_release, "judge", lambda *_args, **_: (Outcome.CLEANED, "", "trust me"))
    assert any("said to be clean" in words for words in result("1;release;1;1;0;down:1;").wrong)


def test_servers_made_by_hand_leak():
    with stage():
        assert sum(servers_leak_by_hand(draw(seed, NOVA.shape)) for seed in range(20)) > 0


@pytest.mark.parametrize("spoiled", sorted(filter(None, set(NOVA.shape.spoils))))
def test_whatever_fails_on_a_host_leaves_nothing(spoiled):
    """A recycle bin, which no list shows, kept all that was deleted; a volume that failed to go kept its claim."""
    lines = [f"{number};{life};1;1;0;{spoiled}:2;" for number, life in enumerate(("release", "begin", "replace"))]
    assert run_chunk(lines, "nova").failures == []


@pytest.mark.parametrize("kind", ["conflict", "throttled", "error", "error_done", "expired", "lost_reply", "timeout"])
def test_no_single_failure_of_a_renewal_costs_the_lease(kind):
    """Seeds 0 and 81: Neutron's 409 or 429 to a renewal ended the thread that renews."""
    trace = result("5;release;1;1;0;;", traced=True).trace
    renewals = [line.split()[1] for line in trace if re.search(r" PUT /v2.0/ports/\S+ -> 200", line)]
    assert renewals
    assert [k for k in renewals if (found := result(f"5;release;1;1;0;;{k}={kind}:0")).ended or not found.ok] == []
