"""`mlops alerts list` shows what people must know, oldest first."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from mlops_sdk.cli import alerts as command
from mlops_sdk.cli.main import main
from mlops_sdk.config import Settings
from mlops_sdk.drift.store import Alert, raise_alert
from mlops_sdk.objects import ObjectStore
from mlops_sdk.testing.memory_s3 import memory_store
from mlops_sdk.testing.settings import fake_settings


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    found = memory_store()
    monkeypatch.setattr(Settings, "load", fake_settings)
    monkeypatch.setattr(command.ObjectStore, "open", lambda _settings: found)
    return found


def alert(number: int) -> Alert:
    return Alert(
        id=f"code-lm-{number}-drift-1",
        kind="drift",
        at=datetime(2026, 3, 10 - number, 12, tzinfo=UTC),
        subject=f"code-lm {number}",
        words=f"more semicolons than expected ({number})",
        details={"widen_to": ["python", "cpp"]},
    )


def test_they_are_listed_oldest_first_in_words_and_as_json(store: ObjectStore) -> None:
    assert CliRunner().invoke(main, ["alerts", "list"]).output == "no alerts\n"
    assert raise_alert(store, alert(1))
    assert raise_alert(store, alert(2))
    shown = CliRunner().invoke(main, ["alerts", "list"])
    assert shown.exit_code == 0
    assert shown.output.splitlines() == [
        "2026-03-08 12:00:00  drift  code-lm 2  code-lm-2-drift-1",
        "    more semicolons than expected (2)",
        "2026-03-09 12:00:00  drift  code-lm 1  code-lm-1-drift-1",
        "    more semicolons than expected (1)",
    ]
    raw = json.loads(CliRunner().invoke(main, ["alerts", "list", "--json"]).output)
    assert raw == [alert(2).to_json(), alert(1).to_json()]


def test_the_same_event_is_one_alert(store: ObjectStore) -> None:
    assert raise_alert(store, alert(1))
    later = Alert(**{**{name: getattr(alert(1), name) for name in Alert.__slots__}, "words": "other words"})
    assert not raise_alert(store, later)
    assert "more semicolons" in CliRunner().invoke(main, ["alerts", "list"]).output
