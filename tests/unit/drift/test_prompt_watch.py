"""Looking again and again: nothing counted twice, one alert an episode, an announcement that is not lost."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from botocore.exceptions import EndpointConnectionError

from mlops_sdk.drift import watcher
from mlops_sdk.drift.detector import State
from mlops_sdk.drift.profile import Profile
from mlops_sdk.drift.store import alerts, get_reference, put_reference, reference_key, report_key, state_key
from mlops_sdk.drift.watch import Look
from mlops_sdk.drift.watcher import Reading, look, parse_profiles
from mlops_sdk.errors import DriftError, ProfileDamaged, ServiceUnavailable
from mlops_sdk.objects import ObjectStore
from mlops_sdk.testing.faults import Crash
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from support_drift import reference, traffic

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Host:
    """A serving host whose processes count what they are sent."""

    def __init__(self, version: str = "1", trained: tuple[str, ...] = ("python",)) -> None:
        self.reference = reference(*trained)
        self.version = version
        self.sent: dict[str, list[str]] = {}
        self.started: dict[str, datetime] = {}
        self.seeds = 0

    def serve(self, kind: str, count: int, *, instance: str = "1-a") -> None:
        self.seeds += 1
        self.started.setdefault(instance, START + timedelta(minutes=len(self.started)))
        self.sent.setdefault(instance, []).extend(traffic(kind, count, seed=self.seeds))

    def read(self) -> Reading:
        return Reading(
            profiles=tuple(
                Profile(
                    model_version=self.version,
                    instance=instance,
                    reference=self.reference.sha256,
                    counts=self.reference.count(prompts),
                    started_at=self.started[instance],
                )
                for instance, prompts in self.sent.items()
            )
        )


@pytest.fixture
def s3() -> MemoryS3:
    return MemoryS3()


@pytest.fixture
def store(s3: MemoryS3) -> ObjectStore:
    store = memory_store(s3)
    for trained in (("python",), ("python", "cpp")):
        put_reference(store, reference(*trained))
    return store


def see(store: ObjectStore, host: Host, *, by: str = "run-1", minutes: int = 0) -> Look:
    return look(store, "code-lm", host.read(), by=by, now=START + timedelta(minutes=minutes))


def test_a_host_that_serves_nothing_is_no_drift(store: ObjectStore, s3: MemoryS3) -> None:
    before = s3.snapshot()
    found = see(store, Host())
    assert (found.announce, found.judged, found.verdict.state) == (False, False, State.TOO_FEW)
    assert "no profile" in found.words()
    assert s3.snapshot() == before


def test_prompts_wait_until_a_window_is_full_and_are_counted_once(store: ObjectStore) -> None:
    host = Host()
    host.serve("python", 30)
    first = see(store, host)
    assert (first.fresh, first.judged) == (30, False)
    assert (see(store, host).fresh, see(store, host).judged) == (0, False)
    host.serve("python", 25, instance="2-b")
    second = see(store, host)
    assert (second.fresh, second.judged, second.verdict.prompts) == (25, True, 55)
    assert second.verdict.state is State.STABLE
    report = store.get_json(report_key("code-lm", 1))
    assert report["window"]["prompts"] == 55
    assert second.report == f"s3://mlops/{report_key('code-lm', 1)}"
    etag = store.get_with_etag(state_key("code-lm"))
    assert see(store, host).fresh == 0
    assert store.get_with_etag(state_key("code-lm")) == etag  # nothing new, nothing written


def test_a_restarted_process_is_another_counter_and_a_file_that_was_away_is_not_counted_again(
    store: ObjectStore,
) -> None:
    host = Host()
    host.serve("python", 20)
    assert see(store, host).fresh == 20
    host.serve("python", 10, instance="9-z")  # restarted: begins at zero
    away = host.sent.pop("1-a")
    assert see(store, host).fresh == 10
    host.sent["1-a"] = away
    assert see(store, host).fresh == 0
    host.sent["1-a"] = away[:5]  # an old file came back
    assert see(store, host).fresh == 0


def test_drift_opens_one_episode_with_one_alert_and_is_announced_by_one(store: ObjectStore) -> None:
    host = Host()
    host.serve("python", 60)
    assert see(store, host).announce is False
    host.serve("cpp", 60)
    found = see(store, host, by="run-2", minutes=1)
    assert (found.opened, found.announce, found.alert) == (True, True, "code-lm-1-drift-1")
    assert found.widen_to == ("python", "cpp")
    assert found.closest == ("cpp",)
    host.serve("cpp", 60)
    again = see(store, host, by="run-3", minutes=2)
    assert (again.opened, again.announce, again.alert) == (False, False, found.alert)
    (alert,) = alerts(store)
    assert (alert.id, alert.kind, alert.subject) == (found.alert, "drift", "code-lm 1")
    assert "share of semicolons" in alert.words
    assert alert.details["report"] == found.report


def test_whoever_announces_and_dies_announces_when_tried_again(store: ObjectStore) -> None:
    host = Host()
    host.serve("cpp", 60)
    assert see(store, host, by="run-1").announce is True
    retried = see(store, host, by="run-1", minutes=1)
    assert (retried.fresh, retried.judged, retried.announce) == (0, False, True)
    assert retried.widen_to == ("python", "cpp")
    assert retried.report.endswith(report_key("code-lm", 1))
    assert see(store, host, by="run-2", minutes=2).announce is False
    assert see(store, host, by="run-3", minutes=6 * 60 + 1).announce is True  # nothing came of it


def test_a_new_version_that_learned_the_new_text_ends_the_episode(store: ObjectStore) -> None:
    host = Host()
    host.serve("cpp", 60)
    assert see(store, host).alert
    successor = Host(version="2", trained=("python", "cpp"))
    successor.seeds = 100
    successor.started = {"5-e": START + timedelta(hours=1)}
    successor.serve("cpp", 60, instance="5-e")
    both = Reading(profiles=(*host.read().profiles, *successor.read().profiles))
    found = look(store, "code-lm", both, by="run-9", now=START)
    assert (found.model_version, found.verdict.state, found.alert) == ("2", State.STABLE, "")
    assert len(alerts(store)) == 1


def test_an_episode_ends_after_calm_windows_and_the_next_one_has_an_alert_of_its_own(store: ObjectStore) -> None:
    host = Host()
    host.serve("cpp", 60)
    assert see(store, host).opened
    for window in range(3):
        assert see(store, host).alert == "code-lm-1-drift-1"
        host.serve("python", 60)
        assert see(store, host).alert == ("code-lm-1-drift-1" if window < 2 else "")
    host.serve("cpp", 60)
    assert see(store, host).alert == "code-lm-1-drift-2"
    assert [alert.id for alert in alerts(store)] == ["code-lm-1-drift-1", "code-lm-1-drift-2"]


def test_drift_towards_nothing_known_alerts_but_announces_nothing(store: ObjectStore) -> None:
    host = Host()
    host.sent["1-a"] = [f"żółw {n} " * (5 + n % 9) for n in range(60)]
    host.started["1-a"] = START
    found = see(store, host)
    assert (found.opened, found.announce, found.widen_to) == (True, False, ())
    assert "a person must look" in alerts(store)[0].words


@pytest.mark.parametrize("call", ["put_object", "get_object"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_look_that_dies_anywhere_and_is_repeated_leaves_one_alert_and_every_prompt_counted_once(
    call: str, when: Literal["before", "after"]
) -> None:
    host = Host()
    host.serve("cpp", 60)
    for number in range(1, 12):
        s3 = MemoryS3()
        put_reference(memory_store(s3), host.reference)
        s3.faults.clear()
        s3.faults.fail_at(call, number, error=Crash("killed"), when=when)
        died = False
        try:
            look(memory_store(s3), "code-lm", host.read(), by="run-1", now=START)
        except Crash:
            died = True
        s3.faults.clear()
        found = look(memory_store(s3), "code-lm", host.read(), by="run-1", now=START + timedelta(minutes=1))
        assert found.announce is True
        assert [alert.id for alert in alerts(memory_store(s3))] == ["code-lm-1-drift-1"]
        state = memory_store(s3).get_json(state_key("code-lm"))
        assert (state["windows"], state["pending"]) == (1, None)
        if not died:
            assert number > 1
            return
    pytest.fail("the fault was always met")


def test_two_watchers_at_once_count_each_prompt_once(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    host.serve("python", 30)
    faster: list[Look] = []
    remembered = watcher._Watch._remembered

    def interrupted(self: watcher._Watch):
        found = remembered(self)
        monkeypatch.setattr(watcher._Watch, "_remembered", remembered)
        faster.append(see(store, host, by="other"))
        return found

    monkeypatch.setattr(watcher._Watch, "_remembered", interrupted)
    mine = see(store, host, by="me")
    assert (faster[0].fresh, mine.fresh) == (30, 0)


def test_damaged_files_are_named_and_the_others_count(store: ObjectStore) -> None:
    host = Host()
    host.serve("python", 60)
    good = host.read().profiles[0].to_bytes().decode()
    reading = parse_profiles(f"{{oops\n{good}\n\n[]\n{good[:-40]}\n")
    assert len(reading.profiles) == 1
    assert len(reading.ignored) == 3
    found = look(store, "code-lm", reading, by="run-1")
    assert (found.fresh, len(found.to_json()["ignored"])) == (60, 3)


def test_a_reference_that_is_missing_or_another_one_is_an_error(store: ObjectStore) -> None:
    host = Host()
    host.serve("python", 60)
    store.delete(reference_key(host.reference.sha256))
    with pytest.raises(DriftError, match="is not in bucket"):
        see(store, host)
    store.put(reference_key(host.reference.sha256), reference("python", "cpp").to_bytes())
    with pytest.raises(ProfileDamaged, match="another one"):
        get_reference(store, host.reference.sha256)


def test_a_state_that_cannot_be_read_is_an_error_that_says_what_to_do(store: ObjectStore) -> None:
    host = Host()
    host.serve("python", 60)
    for body in (b"{", b"{}", json.dumps({"version": 1, "model_version": "1", "seen": [], "pending": 7}).encode()):
        store.put(state_key("code-lm"), body)
        with pytest.raises(ProfileDamaged, match="delete"):
            see(store, host)


def test_s3_that_does_not_answer_is_an_error_and_loses_nothing(store: ObjectStore, s3: MemoryS3) -> None:
    host = Host()
    host.serve("python", 60)
    s3.faults.clear()
    s3.faults.fail_at("put_object", 1, error=EndpointConnectionError(endpoint_url="http://s3"))
    with pytest.raises(ServiceUnavailable):
        see(store, host)
    s3.faults.clear()
    assert see(store, host).fresh == 60
