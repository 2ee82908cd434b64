"""A push by git: through the repository's hook, the receiver in Airflow and the dispatcher, to a DAG run."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import tomllib
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from mlops_sdk.errors import RemoteError, ServiceUnavailable
from mlops_sdk.local import control
from mlops_sdk.webhooks import send
from mlops_sdk.webhooks.entry import EntryState
from mlops_sdk.webhooks.inbox import Inbox
from mlops_sdk.webhooks.send import Receiver, RefUpdate, push_payload
from mlops_sdk.webhooks.verify import sign
from support import eventually

pytestmark = pytest.mark.stack

DAG = "retrain_lm"


class Pushes:
    """Who pushes to the stack, and what became of it. The DAG is paused: its runs wait, and are deleted."""

    def __init__(self, stack: Any, airflow: Any, folder: Any) -> None:
        self.layout, self.rest, self.folder = stack.layout, airflow.rest, folder
        self.receiver = Receiver.model_validate(airflow.webhook)
        self.settings = tomllib.loads((stack.state_dir / "git" / "webhook.toml").read_text())
        self.commits: list[str] = []
        self.git("init", "--quiet", "--initial-branch=main")
        eventually(self.paused, within_s=30, what="the DAG is paused")

    def paused(self) -> bool:
        """Airflow on SQLite may answer with 500 while it loads its DAGs; the dispatcher takes that for being away."""
        try:
            self.rest.pause(DAG)
        except ServiceUnavailable:
            return False
        return True

    def git(self, *args: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example")
        done = subprocess.run(["git", "-C", self.folder, *who, *args], check=True, capture_output=True, text=True)
        return done.stdout.strip() + done.stderr

    def push(self, branch: str = "main") -> str:
        """A commit that nobody has seen; what git and the hook said is in `said`."""
        self.git("commit", "--quiet", "--allow-empty", "--message", str(uuid.uuid4()))
        bare = self.layout.state_dir / "git" / "code.git"
        self.said = self.git("push", "--force", str(bare), f"HEAD:refs/heads/{branch}")
        self.commits.append(self.git("rev-parse", "HEAD"))
        return self.commits[-1]

    def entry(self, commit: str) -> Any:
        with closing(Inbox(self.settings["inbox_url"])) as inbox:
            found = [entry for entry in inbox.entries() if entry.arrival.after == commit]
        return found[0] if found else None

    def state(self, commit: str) -> EntryState | None:
        entry = self.entry(commit)
        return None if entry is None else entry.state

    def dispatched(self, commit: str) -> dict[str, Any]:
        """The DAG run of a commit, once there is one."""
        eventually(lambda: self.state(commit) is EntryState.DISPATCHED, within_s=30, what=f"{commit} is dispatched")
        return self.rest.dag_run(DAG, self.entry(commit).run_id)

    def runs(self, commit: str) -> list[dict[str, Any]]:
        return [run for run in self.rest.dag_runs(DAG) if commit[:12] in run["dag_run_id"]]

    def send(self, body: bytes, **headers: str) -> tuple[int, str]:
        where = urllib.parse.urlsplit(self.receiver.url)
        signature = sign(self.receiver.secrets[0].get_secret_value().encode(), body)
        signed = {"Content-Type": "application/json", "X-GitHub-Event": "push", "X-Hub-Signature-256": signature}
        with closing(http.client.HTTPConnection(where.hostname or "", where.port, timeout=20)) as connection:
            connection.request("POST", where.path, body=body, headers={**signed, **headers})
            reply = connection.getresponse()
            return reply.status, reply.read().decode()

    def dispatcher(self) -> int:
        """Its process id, 0 while it is not ready."""
        services = {service.name: service for service in control.status(self.layout).services}
        service = services["dispatcher"]
        return service.pid if service.state == "ready" else 0

    def forget(self) -> None:
        for commit in self.commits:
            for run in self.runs(commit):
                self.rest.delete_run(DAG, run["dag_run_id"])


@pytest.fixture
def pushes(stack: Any, airflow: Any, tmp_path: Any) -> Iterator[Pushes]:
    made = Pushes(stack, airflow, tmp_path)
    yield made
    made.forget()


def test_a_push_starts_one_run_of_exactly_that_commit_and_no_replay_or_forgery_starts_another(pushes: Pushes) -> None:
    commit = pushes.push()
    assert "received" in pushes.said
    run = pushes.dispatched(commit)
    assert run["dag_run_id"].startswith(f"push-local-code-{commit[:12]}-")
    assert (run["conf"]["commit"], run["conf"]["repository"]) == (
        commit,
        pushes.settings["routes"]["local/code"]["clone_url"],
    )
    body = push_payload(RefUpdate(before="0" * 40, after=commit, ref="refs/heads/main"), "local/code")
    answer = send.deliver(pushes.receiver, "push", body)
    assert (answer["duplicate"], answer["state"]) == (True, "dispatched")
    forged = push_payload(RefUpdate(before="0" * 40, after="f" * 40, ref="refs/heads/main"), "local/code")
    assert pushes.send(forged, **{"X-Hub-Signature-256": sign(b"a guess", forged)})[0] == 401
    assert pushes.send(b"{")[0] == 400
    assert pushes.send(b" " * (6 * 2**20))[0] == 413
    assert pushes.state("f" * 40) is None
    assert len(pushes.runs(commit)) == 1


@pytest.mark.slow
def test_a_dispatcher_that_is_killed_between_storing_and_starting_starts_it_when_it_is_back(pushes: Pushes) -> None:
    commit = pushes.push()
    pushes.dispatched(commit)
    with control.held(pushes.layout, "dispatcher"):
        waiting = pushes.push()
        assert pushes.state(waiting) is EntryState.RECEIVED
        assert pushes.runs(waiting) == []
    eventually(lambda: pushes.dispatcher() > 0, within_s=30, what="the dispatcher is back")
    os.kill(pushes.dispatcher(), signal.SIGKILL)
    also = pushes.push()
    pushes.dispatched(waiting)
    pushes.dispatched(also)
    assert [len(pushes.runs(commit)) for commit in (waiting, also)] == [1, 1]


@pytest.mark.slow
def test_a_push_elsewhere_is_recorded_and_starts_nothing(pushes: Pushes) -> None:
    commit = pushes.push("topic")
    assert pushes.state(commit) is EntryState.IGNORED
    assert pushes.runs(commit) == []
    pushes.commits.remove(commit)
    with pytest.raises(RemoteError):
        pushes.rest.dag_run(DAG, f"push-local-code-{commit[:12]}-{pushes.entry(commit).arrival.key[:8]}")


@pytest.mark.slow
def test_neither_secret_nor_body_is_in_any_log(pushes: Pushes) -> None:
    commit = pushes.push()
    pushes.dispatched(commit)
    mark = f"a mark {uuid.uuid4()}"
    body = json.dumps({"ref": 7, "mark": mark}).encode()
    assert pushes.send(body)[0] == 400
    logs = [path.read_text(errors="replace") for path in pushes.layout.log("x").parent.glob("*.log")]
    hidden = [secret.get_secret_value() for secret in pushes.receiver.secrets]
    hidden += [mark, pushes.settings["airflow"]["password"]]
    assert [text for text in hidden if any(text in log for log in logs)] == []
