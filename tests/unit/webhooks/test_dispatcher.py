"""What the dispatcher does with what waits."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from mlops_sdk.errors import RemoteError, ServiceUnavailable
from mlops_sdk.webhooks.dispatch import Dispatcher, Pace
from mlops_sdk.webhooks.entry import Arrival, EntryState
from mlops_sdk.webhooks.inbox import Inbox
from mlops_sdk.webhooks.routing import Route

ROUTES = {"lab/code": Route(clone_url="/srv/git/code.git", dag_id="retrain_lm")}


class Airflow:
    """Remembers the runs that it was told to start; fails as told."""

    def __init__(self):
        self.runs = {}
        self.calls = []
        self.failing = {}

    def trigger(self, dag_id, run_id, conf):
        self.calls.append(run_id)
        for part, error in self.failing.items():
            if part in run_id:
                raise error
        created = run_id not in self.runs
        self.runs.setdefault(run_id, (dag_id, conf))
        return created


class World:
    """An inbox, an Airflow, a time and the dispatcher between them."""

    def __init__(self, url):
        self.at = datetime(2026, 11, 22, 12, tzinfo=UTC)
        self.airflow = Airflow()
        self.inbox = Inbox(url, now=lambda: self.at)
        self.dispatcher = Dispatcher(self.inbox, self.airflow, ROUTES, pace=Pace(refusals=3), now=lambda: self.at)

    def arrives(self, commit, repository="lab/code"):
        self.inbox.store(
            Arrival(
                key=commit * 4, event="push", delivery="d", repository=repository, ref="refs/heads/main", after=commit
            )
        )

    def states(self):
        return {entry.arrival.after[0]: entry.state for entry in self.inbox.entries()}

    def later(self, seconds):
        self.at += timedelta(seconds=seconds)
        return self.dispatcher.dispatch()


@pytest.fixture
def world(tmp_path):
    made = World(f"sqlite:///{tmp_path}/inbox.db")
    yield made
    made.inbox.close()


def test_each_push_starts_its_run_in_order_of_arrival(world):
    for letter in "bac":
        world.arrives(letter * 40)
    world.dispatcher.dispatch()
    assert [run.split("-")[3][0] for run in world.airflow.calls] == ["b", "a", "c"]
    assert set(world.states().values()) == {EntryState.DISPATCHED}
    dag_id, conf = world.airflow.runs[world.airflow.calls[0]]
    assert (dag_id, conf["repository"], conf["commit"]) == ("retrain_lm", "/srv/git/code.git", "b" * 40)
    world.dispatcher.dispatch()
    assert len(world.airflow.calls) == 3


def test_a_run_that_exists_counts_as_started(world):
    """Its dispatcher was killed between starting the run and noting it."""
    world.arrives("a" * 40)
    world.airflow.trigger("retrain_lm", f"push-lab-code-{'a' * 12}-{'a' * 8}", {"first": "one"})
    world.dispatcher.dispatch()
    assert world.states() == {"a": EntryState.DISPATCHED}
    assert [conf for _, conf in world.airflow.runs.values()] == [{"first": "one"}]


def test_while_airflow_is_away_it_tries_ever_less_often_and_loses_nothing(world):
    world.arrives("a" * 40)
    world.arrives("b" * 40)
    world.airflow.failing["push"] = ServiceUnavailable("Airflow did not answer", seen="connection refused")
    pauses = [world.dispatcher.dispatch()]
    for _ in range(10):
        pauses.append(world.later(pauses[-1]))
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(pauses) == 15.0
    assert world.states() == {"a": EntryState.RECEIVED, "b": EntryState.RECEIVED}
    world.airflow.failing.clear()
    world.later(60)
    assert set(world.states().values()) == {EntryState.DISPATCHED}
    assert len(world.airflow.runs) == 2


def test_what_airflow_refuses_holds_nothing_else_up_and_is_failed_in_the_end(world):
    world.arrives("a" * 40)
    world.arrives("b" * 40)
    world.airflow.failing["aaaa"] = RemoteError("Airflow refused", seen="status 404: no such DAG")
    world.dispatcher.dispatch()
    assert world.states() == {"a": EntryState.RECEIVED, "b": EntryState.DISPATCHED}
    world.later(60)
    world.later(60)
    assert world.states()["a"] is EntryState.FAILED
    [entry] = [entry for entry in world.inbox.entries() if entry.state is EntryState.FAILED]
    assert "no such DAG" in entry.last_error
    world.airflow.failing.clear()
    world.inbox.retry(entry.arrival.key)
    world.dispatcher.dispatch()
    assert world.states()["a"] is EntryState.DISPATCHED


def test_a_push_whose_route_is_gone_is_failed(world):
    world.arrives("a" * 40, repository="lab/gone")
    world.dispatcher.dispatch()
    assert world.states() == {"a": EntryState.FAILED}
    assert world.airflow.calls == []


def test_it_notices_an_arrival_at_once_and_ends_when_told(tmp_path):
    url = f"sqlite:///{tmp_path}/inbox.db"
    started, stop = threading.Event(), threading.Event()

    class Noticing(Airflow):
        def trigger(self, dag_id, run_id, conf):
            started.set()
            return super().trigger(dag_id, run_id, conf)

    inbox = Inbox(url)
    dispatcher = Dispatcher(inbox, Noticing(), ROUTES, pace=Pace(look_s=0.001))
    thread = threading.Thread(target=dispatcher.run, args=(stop,))
    thread.start()
    try:
        Inbox(url).store(
            Arrival(
                key="k" * 64, event="push", delivery="d", repository="lab/code", ref="refs/heads/main", after="a" * 40
            )
        )
        assert started.wait(5.0)
    finally:
        stop.set()
        thread.join(5.0)
    assert not thread.is_alive()


def test_old_events_are_forgotten_while_the_dispatcher_works_and_new_ones_start_as_before(world):
    world.arrives("a" * 40)
    world.dispatcher.dispatch()
    world.later(364 * 86400.0)
    assert world.states() == {"a": EntryState.DISPATCHED}
    world.arrives("b" * 40)
    world.later(2 * 86400.0)
    assert world.states() == {"b": EntryState.DISPATCHED}
    world.arrives("a" * 40)  # a delivery that somebody has recorded: Airflow still has its run
    world.dispatcher.dispatch()
    assert len(world.airflow.runs) == 2
