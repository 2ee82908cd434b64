"""The receiver behind a real HTTP server: what any sender on the network can do to it."""

import http.client
import json
import socket
import sqlite3
import threading
import uuid
from contextlib import closing

import pytest
import uvicorn
from fastapi import FastAPI

from mlops_sdk.errors import AccessDenied, SettingsError
from mlops_sdk.webhooks import send
from mlops_sdk.webhooks.config import WebhookSettings
from mlops_sdk.webhooks.inbox import Inbox
from mlops_sdk.webhooks.receiver import PREFIX, LazyReceiver, create_app
from mlops_sdk.webhooks.send import RefUpdate, push_payload
from mlops_sdk.webhooks.verify import sign
from support import eventually

SECRET = "the secret of these tests"
NEXT_SECRET = "the one that replaces it"
MAX_BYTES = 100_000
PUSH = push_payload(RefUpdate(before="0" * 40, after="1a" * 20, ref="refs/heads/main"), "lab/code")


class Served:
    """A running receiver, mounted as Airflow mounts it."""

    def __init__(self, database):
        self.database = database
        self.inbox_url = f"sqlite:///{database}"
        routes = {"lab/code": {"clone_url": "/srv/git/code.git", "dag_id": "retrain_lm"}}
        self.settings = WebhookSettings.model_validate(
            {
                "inbox_url": self.inbox_url,
                "secrets": [SECRET, NEXT_SECRET],
                "max_bytes": MAX_BYTES,
                "read_timeout_s": 1.0,
                "routes": routes,
            }
        )
        self.broken = False
        outer = FastAPI()
        outer.mount(PREFIX, LazyReceiver(lambda: create_app(self.load)))
        self.server = uvicorn.Server(uvicorn.Config(outer, host="127.0.0.1", port=0, log_level="info"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        eventually(lambda: self.server.started, within_s=20, what="the receiver is up")
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}{PREFIX}/github"

    def load(self):
        if self.broken:
            raise SettingsError("no settings today")
        return self.settings

    def close(self):
        self.server.should_exit = True
        self.thread.join(20)

    def post(self, body, *, event="push", secret=SECRET, method="POST", **headers):
        signed = {
            "Content-Type": "application/json",
            "X-GitHub-Event": event,
            "X-GitHub-Delivery": str(uuid.uuid4()),
            "X-Hub-Signature-256": sign(secret.encode(), body),
        }
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request(method, f"{PREFIX}/github", body=body, headers={**signed, **headers})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())

    def raw(self, *parts):
        """The status line that answers these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            for part in parts:
                connection.sendall(part)
            return connection.makefile("rb").readline().decode()

    def entries(self):
        with closing(Inbox(self.inbox_url)) as inbox:
            return inbox.entries()


@pytest.fixture
def served(tmp_path):
    running = Served(tmp_path / "inbox.db")
    yield running
    running.close()


def test_a_push_is_stored_before_it_is_answered_and_a_replay_starts_nothing(served):
    status, answer = served.post(PUSH)
    assert (status, answer["state"], answer["duplicate"]) == (202, "received", False)
    again = served.post(PUSH, secret=NEXT_SECRET)
    assert again == (202, {**answer, "duplicate": True})
    [entry] = served.entries()
    assert (entry.arrival.key, entry.duplicates) == (answer["key"], 1)


def test_senders_at_once_store_each_push_once(served):
    bodies = [
        push_payload(RefUpdate(before="0" * 40, after=f"{n % 5:040x}", ref="refs/heads/x"), "a/b") for n in range(20)
    ]
    answers = []
    threads = [threading.Thread(target=lambda body=body: answers.append(served.post(body)[0])) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [202] * 20
    assert sorted(entry.duplicates for entry in served.entries()) == [3] * 5


def test_every_kind_of_refusal_has_its_status_and_stores_nothing(served, caplog):
    assert served.post(PUSH, secret="a secret of somebody else")[0] == 401
    assert served.post(PUSH, **{"X-Hub-Signature-256": ""})[0] == 401
    assert served.post(b"{", secret="x")[0] == 401  # not parsed before it is authenticated
    assert served.post(b"{")[0] == 400
    assert served.post(b"[" * 50_000)[0] == 400
    assert served.post(PUSH, **{"Content-Type": "text/plain"})[0] == 400
    assert served.post(PUSH, event="push; drop table")[0] == 400
    assert served.post(PUSH, method="GET")[0] == 405
    assert served.post(PUSH, method="PUT")[0] == 405
    assert served.post(b"x" * (MAX_BYTES + 1))[0] == 413
    assert served.post(b"x" * 20_000_000)[0] == 413  # the sender sees it, though most of it was never wanted
    assert served.entries() == []
    told = caplog.text
    assert SECRET not in told
    assert "1a1a1a" not in told
    assert "Traceback" not in told


def test_a_body_that_is_too_large_is_refused_before_it_is_read(served):
    """The sender declares ten gigabytes and sends nothing: the answer does not wait for it."""
    head = f"POST {PREFIX}/github HTTP/1.1\r\nHost: x\r\nContent-Length: {10 * 2**30}\r\n\r\n"
    assert " 413 " in served.raw(head.encode())


def test_a_chunked_body_is_cut_off_where_it_becomes_too_large(served):
    head = f"POST {PREFIX}/github HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"4e20\r\n" + b"x" * 20_000 + b"\r\n"
    assert " 413 " in served.raw(head.encode(), *[chunk] * 6)


def test_a_body_that_does_not_arrive_is_not_waited_for(served):
    head = f"POST {PREFIX}/github HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this"
    assert " 408 " in served.raw(head.encode())
    assert served.post(PUSH)[0] == 202


@pytest.mark.parametrize("length", ["-1", "ten", "1e3", "99999999999999999999"])
def test_a_wrong_length_is_refused(served, length):
    head = f"POST {PREFIX}/github HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    assert any(status in served.raw(head.encode()) for status in (" 400 ", " 413 "))
    assert served.post(PUSH)[0] == 202


def test_a_sender_that_goes_away_leaves_nothing(served):
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(f"POST {PREFIX}/github HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf".encode())
    assert served.post(PUSH, event="ping")[0] == 200
    assert served.entries() == []


def test_unknown_events_repositories_and_refs_are_recorded_and_answered(served):
    other = push_payload(RefUpdate(before="0" * 40, after="2" * 40, ref="refs/heads/main"), "lab/unknown")
    tag = push_payload(RefUpdate(before="0" * 40, after="2" * 40, ref="refs/tags/v1"), "lab/code")
    assert served.post(b'{"action": "opened"}', event="issues")[0] == 202
    assert served.post(other)[0] == 202
    status, answer = served.post(tag)
    assert (status, answer["state"], answer["reason"]) == (202, "ignored", "a tag, not a branch")
    assert [entry.state.value for entry in served.entries()] == ["ignored"] * 3


def test_while_the_inbox_cannot_be_written_the_sender_is_told_to_come_back(served, caplog):
    assert served.post(PUSH)[0] == 202
    with closing(sqlite3.connect(served.database)) as database:
        database.execute("DROP TABLE mlops_webhook_inbox")
        database.commit()
    status, answer = served.post(PUSH)
    assert (status, answer) == (503, {"error": "the event cannot be stored now"})
    assert "Traceback" not in caplog.text


def test_missing_settings_are_said_in_the_log_and_looked_for_again(served, caplog):
    served.broken = True
    assert served.post(PUSH)[0] == 503
    assert "no settings today" in caplog.text
    served.broken = False
    assert served.post(PUSH)[0] == 202


def test_the_sender_of_a_git_hook(served, tmp_path, monkeypatch, capsys):
    config = tmp_path / "webhook.json"
    config.write_text(json.dumps({"url": served.url, "secrets": [SECRET], "repository": "lab/code"}))
    lines = f"{'0' * 40} {'3' * 40} refs/heads/main\n{'3' * 40} {'0' * 40} refs/heads/gone\n"
    monkeypatch.setattr("sys.stdin", lines.splitlines(keepends=True))
    assert send.main(["--config", str(config)]) == 0
    assert [entry.state.value for entry in served.entries()] == ["ignored", "received"]
    assert "received" in capsys.readouterr().out
    assert send.main(["--config", str(config), "--ping"]) == 0
    forged = send.Receiver.model_validate({"url": served.url, "secrets": ["not the secret"]})
    with pytest.raises(AccessDenied):
        send.deliver(forged, "push", PUSH)
