"""What runs cost, read from a deployment: journals, checkpoints, roll-outs, model versions."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner

from mlops_sdk.capacity import accounts
from mlops_sdk.capacity.accounts import cost_of_run, cost_of_runs, recent_costs, store_costs, tag_versions
from mlops_sdk.capacity.cost_lines import GIB, MONTH_S, Line, by_line
from mlops_sdk.capacity.cost_report import CostReport, ago, split_uri
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.checkpoint.manifest import Manifest, Shard, manifest_key
from mlops_sdk.cli.main import main
from mlops_sdk.client import Client
from mlops_sdk.config import CostSettings
from mlops_sdk.errors import MlopsError, SettingsError
from mlops_sdk.journal import EntryKind
from mlops_sdk.run import Run
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.settings import fake_settings

MODELS = "models:/code-lm/"


@pytest.fixture
def cloud() -> FakeCloud:
    prices = CostSettings(storage_gib_month=2.0, serving_second=0.5)
    return FakeCloud(settings=fake_settings().model_copy(update={"cost": prices}))


def train(cloud: FakeCloud, run: Run, *causes: str) -> None:
    """Attempts of ten seconds each, ended like this."""
    for number, cause in enumerate(causes, start=1):
        run.journal.append(EntryKind.INTENT, "attempt", generation=run.generation, attempt=number)
        cloud.clock.sleep(10)
        run.journal.append(EntryKind.OUTCOME, "attempt", generation=run.generation, attempt=number, cause=cause)


def a_run(cloud: FakeCloud, name: str, *causes: str, version: int = 0, owner: str = "ada") -> str:
    """A run that trained, gave its two machines back, and registered a version."""
    deadline = cloud.clock.now() + timedelta(hours=1)
    with cloud.client().start_run(name=name, owner=owner) as run:
        run.lease(LeaseRequest(nodes=2, resource_class="gpu.h200.8x", deadline=deadline))
        run.journal.append(EntryKind.INTENT, "train", generation=1, order={"model_name": "code-lm"})
        train(cloud, run, *causes)
    if version:
        run.journal.append(EntryKind.OUTCOME, "register", f"{MODELS}{version}", generation=1)
    return run.key


def serve(cloud: FakeCloud, key: str, version: int) -> None:
    run = cloud.client().attach(key)
    run.journal.append(EntryKind.OUTCOME, "deploy", "http://serve/v1", generation=1, version=str(version))


def test_a_run_is_charged_line_by_line_and_as_much_as_its_summary_says(cloud):
    key = a_run(cloud, "nightly", "killed", "succeeded")
    (run,) = cost_of_run(cloud.client(), key).runs
    lines = by_line(run.portions)
    assert lines[Line.TRAINING] == pytest.approx(0.2)
    assert lines[Line.FAILED] == pytest.approx(0.2)
    assert lines[Line.IDLE] > 0  # deploying and cleaning
    assert (run.name, run.owner, run.state, run.model) == ("nightly", "ada", "released", "code-lm")
    assert run.cost == pytest.approx(cloud.client().summary(key).cost)


def test_checkpoints_that_are_in_the_bucket_are_charged_since_their_commit(cloud):
    key = a_run(cloud, "nightly", "succeeded")
    prefix = f"runs/{key}/checkpoints"
    shard = Shard(key=f"{prefix}/a", bytes=3 * GIB, sha256="0" * 64, tensors=("w",))
    kept = Manifest(run_id="1", step=4, attempt=1, world_size=1, created=cloud.clock.now(), shards=(shard,))
    store = cloud.client().store
    store.put(manifest_key(prefix, 4), kept.to_bytes())
    store.put(manifest_key(prefix, 5), b"damaged")
    cloud.clock.sleep(MONTH_S / 2)
    (run,) = cost_of_run(cloud.client(), key).runs
    assert by_line(run.portions)[Line.STORAGE] == pytest.approx(3.0)


def test_a_version_is_charged_for_the_host_until_the_next_one_serves(cloud):
    first, second = a_run(cloud, "one", "succeeded", version=1), a_run(cloud, "two", "succeeded", version=2)
    serve(cloud, first, 1)
    cloud.clock.sleep(20)
    serve(cloud, second, 2)
    cloud.clock.sleep(30)
    for key, seconds in ((first, 20), (second, 30)):
        (run,) = cost_of_run(cloud.client(), key).runs
        assert by_line(run.portions)[Line.SERVING] == pytest.approx(seconds * 0.5)


def test_versions_and_what_led_to_none_add_up_to_the_runs(cloud):
    a_run(cloud, "one", "succeeded", version=9)
    a_run(cloud, "two", "killed", "succeeded", version=10)
    a_run(cloud, "three", "killed")
    report = cost_of_runs(cloud.client())
    versions = report.versions()
    assert [v.uri for v in versions] == ["", f"{MODELS}9", f"{MODELS}10"]
    assert {v.model for v in versions} == {"code-lm"}
    assert sum(v.cost for v in versions) == pytest.approx(report.cost)
    assert report.of_model("code-lm").cost == pytest.approx(report.cost)
    assert report.of_model("another").runs == ()


def test_only_what_was_spent_lately_can_be_asked_for(cloud):
    a_run(cloud, "old", "succeeded")
    cloud.clock.sleep(8 * 86400)
    a_run(cloud, "new", "succeeded")
    since = cloud.clock.now() - ago("7d")
    assert [run.name for run in cost_of_runs(cloud.client(), since=since).runs] == ["new"]
    assert [run.name for run in cost_of_runs(cloud.client()).runs] == ["old", "new"]


def test_lengths_of_time_and_uris_are_read_or_refused():
    assert ago("90m") == timedelta(minutes=90)
    with pytest.raises(SettingsError, match="7 days"):
        ago("7 days")
    assert split_uri(f"{MODELS}12") == ("code-lm", 12)
    assert split_uri("runs:/x/model") == ("", 0)


def test_an_unknown_run_is_an_error(cloud):
    with pytest.raises(MlopsError, match="there is no run"):
        cost_of_run(cloud.client(), "aaaaaaaaaaaa")


def test_a_version_is_tagged_with_each_line_in_mlflow(cloud, monkeypatch):
    tagged = {}
    monkeypatch.setattr(accounts, "tag_version", lambda _s, name, number, tags: tagged.update({(name, number): tags}))
    key = a_run(cloud, "nightly", "succeeded", version=3)
    assert tag_versions(cloud.client(), cost_of_run(cloud.client(), key)) == (f"{MODELS}3",)
    tags = tagged["code-lm", 3]
    assert tags["mlops.cost.training"] == "0.2000"
    lines = sum(float(tags[f"mlops.cost.{line.value}"]) for line in Line)
    assert float(tags["mlops.cost.total"]) == pytest.approx(lines, abs=0.0005)
    assert tags["mlops.cost.currency"] == "EUR"


def test_by_night_those_are_told_that_spent_something_lately_and_with_all_that_they_cost(cloud):
    a_run(cloud, "long ago", "succeeded", version=1)
    still_serving = a_run(cloud, "serving", "succeeded", version=2)
    serve(cloud, still_serving, 2)
    cloud.clock.sleep(8 * 86400)
    a_run(cloud, "new", "succeeded", version=3)
    client = cloud.client()
    report = recent_costs(client, days=1)
    assert [run.name for run in report.runs] == ["serving", "new"]
    assert report.runs[0].cost > 8 * 86400 * 0.5
    uri = store_costs(client, report)
    assert json.loads(client.store.get(uri.removeprefix("s3://mlops/"))) == report.to_json()


def test_a_person_reads_a_table_and_a_program_json(cloud, monkeypatch):
    monkeypatch.setattr("mlops_sdk.cli.cost.Client", cloud.client)
    key = a_run(cloud, "nightly", "killed", "succeeded", version=3)
    shown = CliRunner().invoke(main, ["cost"])
    assert shown.exit_code == 0, shown.output
    heading = shown.output.splitlines()[0].split()
    assert heading == ["run", "name", "owner", "state", *(line.value for line in Line), "sum", "EUR"]
    assert f"{MODELS}3" in shown.output
    answer = json.loads(CliRunner().invoke(main, ["cost", "--run", key, "--json"]).output)
    assert answer["cost"] == pytest.approx(sum(answer["lines"].values()), abs=1e-5)
    assert answer["versions"][0]["version"] == f"{MODELS}3"
    refused = CliRunner().invoke(main, ["cost", "--tag", "--since", "7d"])
    assert refused.exit_code == 1
    assert "in all" in refused.output


def test_old_entries_are_read_once_and_new_ones_still_seen(cloud):
    key = a_run(cloud, "nightly", "killed", "succeeded", version=3)
    first = cost_of_runs(cloud.client())
    cloud.faults.calls.clear()
    again = cost_of_runs(cloud.client())
    assert cloud.faults.calls.count("get_object") <= 2
    assert again.to_json()["runs"] == first.to_json()["runs"]
    serve(cloud, key, 3)
    cloud.clock.sleep(10)
    (run,) = cost_of_runs(cloud.client()).runs
    assert by_line(run.portions)[Line.SERVING] == pytest.approx(5)


@pytest.mark.parametrize("kept", [b"damaged", b'{"version": 2}', b'{"entries": [{}]}'])
def test_what_was_kept_of_a_journal_may_be_damaged(cloud, kept):
    key = a_run(cloud, "nightly", "succeeded")
    expected = cost_of_run(cloud.client(), key).cost
    cloud.client().store.put(f"cache/journals/{key}.json", kept)
    assert cost_of_run(cloud.client(), key).cost == pytest.approx(expected)


def test_nothing_is_a_report_too(cloud):
    client: Client = cloud.client()
    report = cost_of_runs(client)
    assert isinstance(report, CostReport)
    assert (report.cost, report.runs, report.versions()) == (0, (), ())
