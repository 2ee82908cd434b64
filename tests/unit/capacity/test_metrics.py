"""Figures for Prometheus: the text, and that it says what is held and what it cost."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.metrics import Family, render
from mlops_sdk.capacity.reaper_figures import ReaperFigures
from mlops_sdk.cli.main import main
from mlops_sdk.config import BudgetSettings
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.settings import fake_settings

REPOSITORY = Path(__file__).parents[3]
# a line of the exposition format 0.0.4
SAMPLE = re.compile(r'^([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)$')


@pytest.fixture
def cloud(monkeypatch) -> FakeCloud:
    budget = BudgetSettings(owners={"tester": 100.0})
    cloud = FakeCloud(settings=fake_settings().model_copy(update={"budget": budget}))
    monkeypatch.setattr("mlops_sdk.cli.metrics.Client", cloud.client)
    return cloud


def values(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            match = SAMPLE.match(line)
            assert match, line
            found[f"{match[1]}{{{match[2] or ''}}}"] = float(match[3])
    return found


def test_what_is_held_what_it_cost_and_what_is_left_are_told(cloud):
    client = cloud.client()
    deadline = cloud.clock.now() + timedelta(hours=1)
    with client.start_run(name="held") as run:
        run.lease(LeaseRequest(nodes=2, resource_class="gpu.h200.8x", deadline=deadline))
        run.keep()
    shown = CliRunner().invoke(main, ["metrics"])
    assert shown.exit_code == 0, shown.output
    found = values(shown.output)
    assert found['mlops_machines_held{owner="tester"}'] == 2
    assert found['mlops_runs{state="active"}'] == 1
    assert found["mlops_orphans{}"] == 0
    seconds = found['mlops_node_seconds{line="idle",owner="tester",resource_class="gpu.h200.8x"}']
    cost = found['mlops_cost{currency="EUR",line="idle",owner="tester",resource_class="gpu.h200.8x"}']
    assert cost == pytest.approx(seconds * 0.01)
    assert found['mlops_budget_left{currency="EUR",month="2026-01",owner="tester"}'] == pytest.approx(28, abs=0.2)
    assert found["mlops_looked_at_timestamp_seconds{}"] == cloud.clock.now().timestamp()
    cloud.clock.sleep(4000)
    overdue = values(CliRunner().invoke(main, ["metrics"]).output)
    assert overdue['mlops_orphans{kind="allocation"}'] == 2


def test_a_file_is_replaced_whole(cloud, tmp_path: Path):
    file = tmp_path / "mlops.prom"
    file.write_text("old")
    shown = CliRunner().invoke(main, ["metrics", "--textfile", str(file)])
    assert (shown.exit_code, shown.output) == (0, "")
    assert values(file.read_text())["mlops_orphans{}"] == 0
    assert [found.name for found in tmp_path.iterdir()] == ["mlops.prom"]


def test_whatever_an_owner_is_called_the_text_can_be_read():
    text = render([Family(name="x", help="a\nb", values={(("owner", 'a"b\\c\nd'),): 1.0})])
    assert text.splitlines()[:2] == ["# HELP x a\\nb", "# TYPE x gauge"]
    assert values(text) == {'x{owner="a\\"b\\\\c\\nd"}': 1.0}


def test_the_alerts_name_only_figures_that_are_written(cloud):
    rules = yaml.safe_load((REPOSITORY / "infra" / "observability" / "mlops-alerts.yaml").read_text())
    alerts = rules["groups"][0]["rules"]
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    for rule in alerts:
        assert rule["labels"]["severity"] in {"page", "warn", "info"}
        assert set(rule["annotations"]) == {"summary", "next"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        assert rule["expr"].count("(") == rule["expr"].count(")")
    named = {name for rule in alerts for name in re.findall(r"mlops_\w+", rule["expr"])}
    reaper = ReaperFigures().after_pass((), held=0, errors=0, at=cloud.clock.now()).families()
    text = CliRunner().invoke(main, ["metrics"]).output + render(reaper)
    written = set(re.findall(r"^# TYPE (\w+)", text, flags=re.MULTILINE))
    assert named
    assert named <= written
