"""The durable inbox, on SQLite files."""

import contextlib
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from mlops_sdk.errors import ServiceUnavailable, SettingsError
from mlops_sdk.webhooks.entry import Arrival, EntryState, Retention
from mlops_sdk.webhooks.inbox import Inbox


class Now:
    """A time that passes when told to."""

    def __init__(self):
        self.at = datetime(2026, 11, 22, 12, tzinfo=UTC)

    def __call__(self):
        return self.at


@pytest.fixture
def now():
    return Now()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/inbox.db"


@pytest.fixture
def inbox(url, now):
    opened = Inbox(url, now=now)
    yield opened
    opened.close()


def arrival(key="k1", **changes):
    whole = {"event": "push", "delivery": "d-1", "repository": "lab/code", "ref": "refs/heads/main", "after": "1" * 40}
    return Arrival(key=key, **{**whole, **changes})


def test_what_arrived_waits_in_order_and_outlives_the_process(inbox, url, now):
    for key in ("b", "a", "c"):
        inbox.store(arrival(key))
    again = Inbox(url, now=now)
    assert [entry.arrival.key for entry in again.due()] == ["b", "a", "c"]
    assert again.due()[0].received_at == now.at
    again.close()


def test_a_replay_under_a_new_delivery_id_is_counted_and_starts_nothing(inbox, now):
    assert not inbox.store(arrival()).duplicate
    inbox.dispatched("k1", "run-1")
    replay = inbox.store(arrival(delivery="d-2"))
    assert (replay.duplicate, replay.state) == (True, EntryState.DISPATCHED)
    assert inbox.due() == []
    [entry] = inbox.entries()
    assert (entry.duplicates, entry.run_id, entry.arrival.delivery) == (1, "run-1", "d-1")


def test_an_attempt_that_failed_waits_for_its_time(inbox, now):
    inbox.store(arrival())
    inbox.tried("k1", "down", due_at=now.at + timedelta(seconds=5), refused=False)
    assert inbox.due() == []
    assert inbox.next_due() == now.at + timedelta(seconds=5)
    now.at += timedelta(seconds=5)
    [entry] = inbox.due()
    assert (entry.attempts, entry.refusals, entry.last_error) == (1, 0, "down")


def test_what_is_settled_stays_settled(inbox, now):
    inbox.store(arrival())
    inbox.dispatched("k1", "run-1")
    inbox.failed("k1", "late news of another dispatcher")
    [entry] = inbox.entries()
    assert (entry.state, entry.last_error, entry.settled_at) == (EntryState.DISPATCHED, "", now.at)
    assert inbox.next_due() is None


def test_a_push_that_failed_can_be_tried_again(inbox):
    inbox.store(arrival())
    inbox.failed("k1", "no such DAG")
    assert inbox.due() == []
    assert inbox.retry("k1")
    assert [entry.state for entry in inbox.due()] == [EntryState.RECEIVED]
    assert not inbox.retry("k1")


def test_an_event_that_is_no_push_cannot_be_started(inbox):
    inbox.store(arrival("other", event="issues", ref="", after="", ignored="not a push"))
    assert not inbox.retry("other")
    assert inbox.entries()[0].state is EntryState.IGNORED


def test_what_was_ignored_starts_when_it_arrives_again_after_a_route_was_added(inbox):
    inbox.store(arrival(ignored="no route"))
    assert inbox.store(arrival(ignored="no route")).state is EntryState.IGNORED
    stored = inbox.store(arrival())
    assert (stored.duplicate, stored.state) == (False, EntryState.RECEIVED)
    assert len(inbox.due()) == 1


def test_another_process_sees_that_something_arrived(inbox, url):
    watching = Inbox(url)
    seen = watching.version()
    assert watching.version() == seen
    inbox.store(arrival())
    assert watching.version() != seen
    watching.close()


def store_from_a_process_of_its_own(url, key):
    with contextlib.closing(Inbox(url)) as opened:
        return opened.store(arrival(key)).duplicate


def test_processes_that_open_a_new_inbox_at_once_store_each_event_once(url):
    with ProcessPoolExecutor(6) as pool:
        duplicates = list(pool.map(partial(store_from_a_process_of_its_own, url), [str(n % 4) for n in range(24)]))
    assert duplicates.count(False) == 4


def test_keys_may_be_shortened(inbox):
    inbox.store(arrival("abc"))
    inbox.store(arrival("abd"))
    assert [entry.arrival.key for entry in inbox.find("abc")] == ["abc"]
    assert len(inbox.find("ab")) == 2
    assert inbox.find("%") == []


def test_a_database_that_cannot_be_used_is_one_clear_error(tmp_path):
    with pytest.raises(ServiceUnavailable, match="unable to open"):
        Inbox(f"sqlite:///{tmp_path}/none/inbox.db").entries()
    (tmp_path / "text.db").write_text("this is no database, it is a text that somebody wrote" * 50)
    with pytest.raises(ServiceUnavailable, match="not a database"):
        Inbox(f"sqlite:///{tmp_path}/text.db").store(arrival())


@pytest.mark.parametrize("url", ["", "nonsense", "nosuchdatabase://host/x"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(SettingsError):
        Inbox(url)


def test_what_is_settled_is_forgotten_after_its_time_and_what_waits_never(inbox, now):
    inbox.store(arrival("other", ignored="not a push"))
    inbox.store(arrival("started"))
    inbox.dispatched("started", "run-1")
    inbox.store(arrival("failed"))
    inbox.failed("failed", "no such DAG")
    inbox.store(arrival("waits"))
    retention = Retention(ignored=timedelta(days=2), pushes=timedelta(days=9))

    def left():
        return sorted(entry.arrival.key for entry in inbox.entries())

    now.at += timedelta(days=1)
    assert inbox.forget(retention) == 0
    now.at += timedelta(days=2)
    assert inbox.forget(retention) == 1
    assert left() == ["failed", "started", "waits"]
    assert inbox.store(arrival("started", delivery="again")).duplicate  # from now on it is young again
    now.at += timedelta(days=8)
    assert inbox.forget(retention) == 1
    assert left() == ["started", "waits"]
    now.at += timedelta(days=9)
    assert inbox.forget(retention) == 1
    assert left() == ["waits"]
