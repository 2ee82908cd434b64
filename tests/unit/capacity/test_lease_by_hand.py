"""`mlops lease`: a person gets machines by hand, sees who waits, and everything comes back."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner, Result

from mlops_sdk.capacity.lease import LeaseRequest, Priority
from mlops_sdk.cli.main import main
from mlops_sdk.testing.cloud import FakeCloud

WANTED = ["--class", "gpu.h200.8x", "--nodes", "2"]


@pytest.fixture
def cloud(monkeypatch) -> FakeCloud:
    cloud = FakeCloud()
    for module in ("hold", "lease"):
        monkeypatch.setattr(f"mlops_sdk.cli.{module}.Client", cloud.client)
    return cloud


def mlops(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["lease", *arguments])


def test_a_quote_asks_for_nothing(cloud):
    shown = json.loads(mlops("quote", *WANTED, "--hours", "2", "--json").output)
    assert shown["available_now"]
    assert (shown["free"], shown["position"], shown["currency"]) == (4, 1, "EUR")
    assert shown["total"] == pytest.approx(2 * 7200 * 0.01, rel=0.01)
    assert not cloud.allocations
    assert not cloud.credentials
    assert "2 x gpu.h200.8x: now; 4 free" in mlops("quote", *WANTED).output


def test_a_quote_recommends_by_workload_how_to_get_cards(cloud):
    shown = mlops("quote", *WANTED, "--memory", "16", "--use", "serving", "--copies", "7").output
    assert "1 x H200 by mig 1g.18gb, 7 a card" in shown
    assert "not run on hardware" in shown
    training = json.loads(mlops("quote", *WANTED, "--memory", "100", "--processes", "16", "--json").output)
    assert training["recommendation"]["method"] == "passthrough"
    assert training["recommendation"]["cards"] == 16
    refused = mlops("quote", *WANTED, "--memory", "200")
    assert refused.exit_code == 1
    assert "does not fit on one H200" in refused.output
    assert json.loads(mlops("quote", *WANTED, "--json").output)["recommendation"] is None


def test_a_command_runs_while_machines_are_held_and_its_exit_status_is_ours(cloud, tmp_path):
    script = f"""
        echo $MLOPS_NODES > {tmp_path}/nodes
        cp "$MLOPS_SSH_CONFIG" {tmp_path}/config
        ssh -G -F "$MLOPS_SSH_CONFIG" gpu-01 > {tmp_path}/read
        ls -l $(dirname "$MLOPS_SSH_CONFIG") > {tmp_path}/files
        exit 3
    """
    done = mlops("acquire", *WANTED, "--name", "by-hand", "--", "sh", "-c", script)
    assert done.exit_code == 3, done.output
    assert "gpu-01: 10.0.0.1, 8 GPUs" in done.output
    assert (tmp_path / "nodes").read_text() == "10.0.0.1,10.0.0.2\n"
    read = (tmp_path / "read").read_text()
    assert "hostname 10.0.0.1" in read
    assert "stricthostkeychecking true" in read
    assert "-rw------- " in (tmp_path / "files").read_text()
    folder = (tmp_path / "config").read_text().split("IdentityFile ")[1].split("/key")[0]
    assert not tmp_path.joinpath(folder).exists()  # the key is gone with the lease
    assert not cloud.held
    assert cloud.client().start_run("by-hand").prove().complete


def test_machines_come_back_whatever_the_command_does(cloud):
    done = mlops("acquire", *WANTED, "--json", "--", "no-such-command")
    assert isinstance(done.exception, FileNotFoundError)
    assert not cloud.held
    assert not cloud.credentials


def test_a_command_whose_lease_is_lost_is_ended(cloud, monkeypatch):
    monkeypatch.setattr("mlops_sdk.cli.hold._LOOK_S", 0.01)

    def lost(_run) -> None:
        cloud.clock.sleep(7200)

    monkeypatch.setattr("mlops_sdk.cli.hold._shown", lambda run, lease, *, as_json: lost(run))
    done = mlops("acquire", *WANTED, "--", "sleep", "600")
    assert done.exit_code == 1
    assert "lost its lease" in done.output
    assert not cloud.held


def test_release_gives_back_what_another_process_holds(cloud):
    run = cloud.client().start_run("elsewhere")
    run.lease(LeaseRequest(nodes=2, resource_class="gpu.h200.8x", deadline=cloud.clock.now() + timedelta(hours=1)))
    run.close()
    shown = json.loads(mlops("release", run.key, "--json").output)
    assert [item["outcome"] for item in shown["evidence"]] == ["cleaned", "cleaned"]
    assert not cloud.held
    assert "everything is given back" in mlops("release", run.key).output


def test_the_queue_shows_who_waits_and_until_when(cloud):
    with cloud.client().start_run("first") as first:
        deadline = cloud.clock.now() + timedelta(hours=1)
        first.lease(LeaseRequest(nodes=4, resource_class="gpu.h200.8x", deadline=deadline))
        urgent = LeaseRequest(
            nodes=1, resource_class="gpu.h200.8x", deadline=deadline, wait_s=60, priority=Priority.URGENT
        )
        next(cloud.client().start_run("second").leasing(urgent))
        (row,) = json.loads(mlops("queue", "--json").output)
        assert (row["position"], row["priority"], row["wants"]) == (1, "urgent", "1 x gpu.h200.8x")
        assert row["expected"] == f"{deadline:%Y-%m-%d %H:%M:%S}"
        assert "1 x gpu.h200.8x" in mlops("queue").output


def test_too_few_machines_say_the_place_in_the_queue(cloud):
    done = mlops("acquire", "--class", "gpu.h200.8x", "--nodes", "9", "--", "true")
    assert done.exit_code == 1
    assert "could not get 9 x gpu.h200.8x" in done.output
    assert "number 1 in the queue: 4 of 9 are free" in done.output
    assert not cloud.held
