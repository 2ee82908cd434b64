"""What is decided about a lease while it is held, against the real Ironic, Keystone and RGW of the embedded stack."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mlops_sdk.capacity.cost_lines import Line, by_line, portions
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.records import one_record, prices_of
from mlops_sdk.cli.main import main
from mlops_sdk.client import Client
from mlops_sdk.cloud import Cloud
from mlops_sdk.identity.keystone import KeystoneCredentials
from mlops_sdk.run import Run
from support import eventually

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def client(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("MLOPS_CONFIG", str(stack.layout.client_toml))
    return Client(stack.settings)


def request(*, lasts_s: float = 600, **changes: Any) -> LeaseRequest:
    deadline = datetime.now(UTC) + timedelta(seconds=lasts_s)
    return LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=deadline, wait_s=60.0, **changes)


def mlops(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["lease", *arguments], catch_exceptions=False)


def credentials(client: Client, run: Run) -> list[str]:
    found = KeystoneCredentials(Cloud(client.settings.keystone)).list()
    return sorted(item.name.rpartition("-")[2] for item in found if run.key in item.name)


def reason(run: Run) -> str:
    (piece,) = run.history().generations[1].pieces.values()
    assert piece.evidence is not None
    return piece.evidence.reason.value


def test_a_lease_that_another_process_extends_outlives_its_first_deadline(client: Client):
    with client.start_run() as run:
        first = run.lease(request(lasts_s=45)).deadline
        assert credentials(client, run) == ["cred"]
        shown = mlops("extend", run.key, "--hours", "0.1", "--json")
        later = datetime.fromisoformat(json.loads(shown.output)["deadline"])
        assert later == first + timedelta(minutes=6)
        # the process that holds it follows at its next beat, through a credential that lasts as long
        eventually(lambda: run.held is not None and run.held.deadline == later, within_s=15, what="it follows")
        assert credentials(client, run) == ["cred1"]
        assert run.credential.expires_at > later
        time.sleep(max(0.0, (first - client.services.now()).total_seconds()) + 8)  # two periods of the reaper
        run.raise_if_lost()
        eventually(lambda: run._heartbeat.renewed == 1 and run._heartbeat.silent_for_s < 5, within_s=10)
    assert run.prove().complete
    assert credentials(client, run) == []


def test_after_a_failure_a_person_logs_in_and_then_the_machines_end_by_themselves(client: Client):
    def work() -> None:
        with run:
            node = run.lease(request(hold_on_failure_s=30)).nodes[0]
            assert node.name
            raise ZeroDivisionError

    run = client.start_run()
    with pytest.raises(ZeroDivisionError):
        work()
    assert credentials(client, run) == []
    rows = [row for row in json.loads(mlops("list", "--json").output) if run.key in row["held_by"]]
    assert [f"mlops lease login {run.key}" in row["note"] for row in rows] == [True]
    script = "import sys; from mlops_sdk.cli.main import main; main(sys.argv[1:])"
    seen = subprocess.run(
        [sys.executable, "-c", script, "lease", "login", run.key, "--", "id -un; nproc"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.split()[0] == "root"
    assert run.history().generations[1].state.value == "held_for_debug"
    limit = 30 + 2 * client.settings.lease.reaper_period_s + client.settings.lease.clean_timeout_s / 4
    eventually(lambda: client.summary(run.key).state == "released", within_s=limit, what="the machine is back")
    assert reason(run) == "work_failed"
    assert run.prove().complete
    record = one_record(client.services, run.key, client.services.now())
    costs = by_line(portions(record.spending, prices_of(client.settings)))
    assert costs[Line.DEBUG] > 25 * client.settings.node_seconds_price["gpu.h200.8x"]


def test_machines_kept_warm_are_there_at_once_and_else_go_back(client: Client):
    with client.start_run() as run:
        node = run.lease(request()).nodes[0]
        run.park(60)
    began = time.monotonic()
    with client.attach(run.key) as again:
        assert again.lease(request()).nodes[0] == node
        took = time.monotonic() - began
        print(f"\nleased again in {took:.2f} s")  # noqa: T201 - a figure for whoever runs this
        assert took < 5  # a deployment takes longer, with its cleaning much longer
        assert len([entry for entry in again.journal.entries() if entry.action == "machine.deploy"]) == 2
        again.park(5)
    limit = 5 + 2 * client.settings.lease.reaper_period_s + client.settings.lease.clean_timeout_s / 4
    eventually(lambda: client.summary(run.key).state == "released", within_s=limit, what="the machine is back")
    assert reason(run) == "idle"
    assert run.prove().complete
