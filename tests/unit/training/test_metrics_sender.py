"""What a job measures reaches MLflow from its controller: a server that is away costs nothing but the metrics."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import SecretStr

from mlops_sdk.config import MlflowSettings
from mlops_sdk.errors import AccessDenied, ServiceUnavailable
from mlops_sdk.registry.mlflow_api import MlflowFailure
from mlops_sdk.training import metrics
from mlops_sdk.training.metrics import MetricsSender, Tracking

TRACKING = Tracking(settings=MlflowSettings(tracking_uri="http://m", password=SecretStr("hush")), run_id="r")


class Server:
    """Answers as told, each answer once; then it takes everything."""

    def __init__(self, *answers: Exception) -> None:
        self.answers = list(answers)
        self.points: list[tuple[str, int, float]] = []

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        assert (path, body["run_id"]) == ("runs/log-batch", "r")
        if self.answers:
            raise self.answers.pop(0)
        self.points += [(point["key"], point["step"], point["value"]) for point in body["metrics"]]
        return {}


def sender_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> MetricsSender:
    monkeypatch.setattr(metrics, "MlflowApi", lambda *_, **__: server)
    monkeypatch.setattr(metrics, "_RETRY_S", 0.001)
    return MetricsSender(TRACKING)


def test_metrics_arrive_after_an_outage(monkeypatch):
    server = Server(ServiceUnavailable("away", seen="refused"), ServiceUnavailable("away", seen="refused"))
    sender = sender_to(server, monkeypatch)
    sender.add(0, {"loss": 2.5})
    sender.add(1, {"loss": 2.0})
    assert sender.close() == ""
    assert server.points == [("loss", 0, 2.5), ("loss", 1, 2.0)]


def test_what_is_no_number_is_counted_and_the_rest_sent(monkeypatch):
    server = Server()
    sender = sender_to(server, monkeypatch)
    sender.add(0, {"loss": math.nan, "rate": 1.0})
    assert "1 metric values did not reach MLflow" in sender.close()
    assert server.points == [("rate", 0, 1.0)]


@pytest.mark.parametrize(
    "refusal",
    [
        AccessDenied("no", seen="403 PERMISSION_DENIED"),
        MlflowFailure("log", status=400, code="INVALID_PARAMETER_VALUE", message="403 PERMISSION_DENIED"),
    ],
)
def test_a_refusal_is_told_and_not_tried_again(monkeypatch, refusal):
    server = Server(refusal)
    sender = sender_to(server, monkeypatch)
    sender.add(0, {"loss": 2.5})
    warning = sender.close()
    assert "1 metric values did not reach MLflow" in warning
    assert "403 PERMISSION_DENIED" in warning
    assert server.points == []


def test_a_server_that_stays_away_is_given_up(monkeypatch):
    server = Server(*(ServiceUnavailable("away", seen="refused") for _ in range(100_000)))
    sender = sender_to(server, monkeypatch)
    sender.add(0, {"loss": 2.5})
    assert sender.close(timeout_s=0.05) == "1 metric values did not reach MLflow: refused"
