"""Metrics from inside a job to MLflow, in the background: a tracking server that is down never fails a training."""

from __future__ import annotations

import base64
import json
import math
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from mlops_sdk.training.jobfile import Tracking

_WAITING = 20_000
_BATCH = 500
_RETRY_S = 2.0
_TIMEOUT_S = 5.0
_CLIENT_ERRORS = range(400, 500)


@dataclass(frozen=True, slots=True)
class _Point:
    name: str
    value: float
    time_ms: int
    step: int


class MetricsSender:
    """Sends metrics by MLflow's REST call `runs/log-batch`; keeps them while the server is down.

    Thread-safe. At most 20 000 points wait; further ones are dropped and counted.
    """

    def __init__(self, tracking: Tracking) -> None:
        settings = tracking.settings
        self._url = (settings.node_tracking_uri or settings.tracking_uri).rstrip("/") + "/api/2.0/mlflow/runs/log-batch"
        secret = f"{settings.username}:{settings.password.get_secret_value()}".encode()
        self._authorization = f"Basic {base64.b64encode(secret).decode()}"
        self._run_id = tracking.run_id
        self._queue: queue.Queue[_Point] = queue.Queue(_WAITING)
        self._closing = threading.Event()
        self._give_up = math.inf
        self.dropped = 0
        self.last_error = ""
        self._thread = threading.Thread(target=self._send_all, name="mlflow-metrics", daemon=True)
        self._thread.start()

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand over the metrics of one step; returns at once. Values that are not finite are dropped and counted."""
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            if not math.isfinite(value) or self._queue.full():
                self.dropped += 1
                continue
            self._queue.put(_Point(name, float(value), now, step))

    def close(self, timeout_s: float = 5.0) -> str:
        """Send what waits, for at most about `timeout_s`. A warning, or "" when every point arrived."""
        self._give_up = time.monotonic() + timeout_s
        self._closing.set()
        self._thread.join(timeout_s + _TIMEOUT_S)
        lost = self.dropped + self._queue.qsize()
        return f"{lost} metric values did not reach MLflow: {self.last_error or 'too many at once'}" if lost else ""

    def _send_all(self) -> None:
        while batch := self._next_batch():
            while not self._send(batch):
                if time.monotonic() > self._give_up:
                    self.dropped += len(batch)
                    return
                self._closing.wait(_RETRY_S)
                if self._closing.is_set():
                    time.sleep(min(0.5, _RETRY_S))

    def _next_batch(self) -> list[_Point]:
        batch: list[_Point] = []
        while not batch:
            try:
                batch.append(self._queue.get(timeout=0.2))
            except queue.Empty:
                if self._closing.is_set():
                    return []
        while len(batch) < _BATCH:
            try:
                batch.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return batch

    def _send(self, batch: list[_Point]) -> bool:
        """Whether the batch is done with: stored, or refused for good."""
        points = [{"key": p.name, "value": p.value, "timestamp": p.time_ms, "step": p.step} for p in batch]
        request = urllib.request.Request(  # noqa: S310 - the URL is the deployment's own setting
            self._url,
            data=json.dumps({"run_id": self._run_id, "metrics": points}).encode(),
            headers={"Content-Type": "application/json", "Authorization": self._authorization},
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310 - same
                return True
        except urllib.error.HTTPError as error:
            self.last_error = f"HTTP {error.code} {error.reason}"
            if error.code in _CLIENT_ERRORS:
                self.dropped += len(batch)
                return True
            return False
        except OSError as error:
            self.last_error = str(error)
            return False
