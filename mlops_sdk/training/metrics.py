"""Metrics of a job to MLflow, from its controller and in the background: a server that is down never fails a training.

Machines have no login to MLflow: ranks tell their controller, which knows it anyway.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from mlops_sdk.config import MlflowSettings
from mlops_sdk.errors import MlopsError, ServiceUnavailable
from mlops_sdk.registry.mlflow_api import MlflowApi, MlflowFailure

_WAITING = 20_000
_BATCH = 500
_RETRY_S = 2.0
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """An MLflow run that metrics go to."""

    settings: MlflowSettings
    run_id: str


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
        self._api = MlflowApi(tracking.settings, timeout_s=_TIMEOUT_S)
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
        try:
            self._api.post("runs/log-batch", run_id=self._run_id, metrics=points)
        except ServiceUnavailable as error:
            self.last_error = error.seen
            return False
        except (MlopsError, MlflowFailure) as error:
            self.last_error = error.seen if isinstance(error, MlopsError) else f"{error.status} {error.message}"
            self.dropped += len(batch)
        return True
