"""The dispatcher as a process that is killed, and the part of Airflow's REST API that it talks to."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from mlops_sdk.webhooks.entry import Arrival, EntryState
from mlops_sdk.webhooks.inbox import Inbox
from support import eventually

PASSWORD = "of the dispatcher"
TOKEN = "the token of this Airflow"


class SmallAirflow(ThreadingHTTPServer):
    """Log-in and the creation of DAG runs, as Airflow 3 answers them.

    `before` and `after` are called with the run's id before it is created, and before its creation is answered.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.password = PASSWORD
        self.runs = {}
        self.attempts = []
        self.before = self.after = lambda run_id: None
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.serve_forever, args=(0.05,)).start()

    def close(self):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """The client was killed: as intended."""


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/auth/token":
            good = body == {"username": "dispatcher", "password": server.password}
            self.answer(201 if good else 401, {"access_token": TOKEN} if good else {"detail": "no"})
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer(401, {"detail": "no token"})
        else:
            assert self.path == "/api/v2/dags/retrain_lm/dagRuns"
            run_id = body["dag_run_id"]
            server.attempts.append(run_id)
            server.before(run_id)
            created = run_id not in server.runs
            server.runs.setdefault(run_id, body["conf"])
            server.after(run_id)
            self.answer(200 if created else 409, {"dag_run_id": run_id})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Nothing."""


class World:
    """An inbox, an Airflow, and dispatchers between them."""

    def __init__(self, folder):
        self.folder = folder
        self.inbox = Inbox(f"sqlite:///{folder}/inbox.db")
        self.airflow = SmallAirflow()
        self.processes = []

    def start(self):
        access = {"url": self.airflow.url, "username": "dispatcher", "password": PASSWORD}
        environment = {
            **os.environ,
            "MLOPS_WEBHOOK_INBOX_URL": f"sqlite:///{self.folder}/inbox.db",
            "MLOPS_WEBHOOK_ROUTES": json.dumps({"lab/code": {"clone_url": "/srv/code.git", "dag_id": "retrain_lm"}}),
            "MLOPS_WEBHOOK_AIRFLOW": json.dumps(access),
        }
        log = (self.folder / "log").open("a")
        process = subprocess.Popen([sys.executable, "-m", "mlops_sdk.webhooks.dispatch"], env=environment, stderr=log)
        log.close()
        self.processes.append(process)
        return process

    def arrives(self, letter):
        ref = "refs/heads/main"
        self.inbox.store(
            Arrival(key=letter * 64, event="push", delivery="d", repository="lab/code", ref=ref, after=letter * 40)
        )

    def states(self):
        return [entry.state for entry in self.inbox.entries()]

    def all_dispatched(self):
        return set(self.states()) == {EntryState.DISPATCHED}

    def log(self):
        return (self.folder / "log").read_text()

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.airflow.close()
        self.inbox.close()


@pytest.fixture
def world(tmp_path):
    with closing(World(tmp_path)) as made:
        yield made


@pytest.mark.parametrize("boundary", ["before", "after"])
def test_killed_around_the_start_of_a_run_the_next_dispatcher_starts_it_exactly_once(world, boundary):
    """Before: between storing and starting. After: the run exists, and nobody has noted it."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(_run_id):
        reached.set()
        go_on.wait(20)

    setattr(world.airflow, boundary, hold)
    world.arrives("a")
    world.arrives("b")
    killed = world.start()
    assert reached.wait(20)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(10) == -signal.SIGKILL
    assert world.states() == [EntryState.RECEIVED] * 2
    existed = set(world.airflow.runs)
    if boundary == "before":  # the request died with its sender: what was held back must not be created later
        world.airflow.before = lambda _run_id: None
        assert existed == set()
    else:
        assert len(existed) == 1
        go_on.set()
        world.airflow.after = lambda _run_id: None
    world.start()
    eventually(world.all_dispatched, within_s=20, what="the next dispatcher finishes")
    go_on.set()
    assert sorted(run[14:20] for run in world.airflow.runs) == ["aaaaaa", "bbbbbb"]
    assert world.airflow.runs["push-lab-code-aaaaaaaaaaaa-aaaaaaaa"]["commit"] == "a" * 40


def test_while_airflow_is_down_nothing_is_lost_and_it_catches_up(world):
    world.airflow.close()
    world.arrives("a")
    world.arrives("b")
    dispatcher = world.start()
    eventually(lambda: world.inbox.entries()[-1].attempts >= 2, within_s=20, what="it tries again")
    assert dispatcher.poll() is None
    assert "Connection refused" in world.inbox.entries()[-1].last_error
    world.airflow = SmallAirflow(world.airflow.port)
    eventually(world.all_dispatched, within_s=20, what="it catches up")
    assert len(world.airflow.runs) == 2


def test_it_is_quick_when_something_arrives_and_costs_next_to_nothing_when_nothing_does(world):
    process = world.start()
    world.arrives("a")
    eventually(world.all_dispatched, within_s=20, what="the first one, with log-in")
    watched = psutil.Process(process.pid)
    before = sum(watched.cpu_times()[:2])
    stop = threading.Event()
    stop.wait(2.0)
    assert sum(watched.cpu_times()[:2]) - before < 0.1
    world.arrives("b")
    assert eventually(world.all_dispatched, within_s=20, what="the second one") < 1.0
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.mark.slow
def test_two_dispatchers_start_each_run_once(world):
    for letter in "abcdef0123456789":
        world.arrives(letter)
    world.start()
    world.start()
    eventually(world.all_dispatched, within_s=30, what="all are started")
    assert len(world.airflow.runs) == 16


@pytest.mark.slow
def test_a_wrong_password_is_said_and_shown_nowhere(world):
    world.airflow.password = "another"
    world.arrives("a")
    world.start()
    eventually(lambda: "does not accept the login" in world.log(), within_s=20, what="it says so")
    assert PASSWORD not in world.log()
    world.airflow.password = PASSWORD
    eventually(world.all_dispatched, within_s=20, what="it goes on when the password is right")


def test_without_its_settings_it_ends_and_names_them(world):
    environment = {**os.environ, "MLOPS_WEBHOOK_INBOX_URL": f"sqlite:///{world.folder}/inbox.db"}
    argv = [sys.executable, "-m", "mlops_sdk.webhooks.dispatch"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MLOPS_WEBHOOK_AIRFLOW" in done.stderr
    assert "Traceback" not in done.stderr
