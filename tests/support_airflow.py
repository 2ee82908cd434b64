"""Airflow's part in memory: run a task, its trigger and its continuation as scheduler, worker and triggerer would."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.module_loading import import_string
from airflow.sdk.serde import deserialize, serialize

from mlops_sdk.config import Settings


class StateStore:
    """`task_state_store`: outlives retries and clears."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.values[key] = value


class TaskInstance:
    """What links need of a task instance."""

    dag_id, run_id, task_id, map_index = "retrain_lm", "r1", "t", -1

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, *, key: str, value: Any) -> None:
        self.pushed[key] = value


class Task:
    """One task instance of a DAG run, tried as often as the test says."""

    def __init__(self, operator: BaseOperator) -> None:
        self.operator = operator
        self.store = StateStore()
        self.ti = TaskInstance()

    def context(self) -> dict[str, Any]:
        return {"task_state_store": self.store, "ti": self.ti}

    def defer(self) -> TaskDeferred:
        """The first half of a try: it must defer."""
        with pytest.raises(TaskDeferred) as caught:
            self.operator.execute(self.context())
        return caught.value

    def resume(self, deferred: TaskDeferred, event: Any) -> Any:
        return getattr(self.operator, deferred.method_name)(self.context(), event=event)

    def run(self) -> Any:
        """A whole try, deferred as often as it wants."""
        try:
            return self.operator.execute(self.context())
        except TaskDeferred as deferred:
            return self.finish(deferred)

    def finish(self, deferred: TaskDeferred) -> Any:
        """The rest of a try, deferred again as often as it wants."""
        while True:
            event = asyncio.run(event_of(stored(deferred)))
            try:
                return self.resume(deferred, event)
            except TaskDeferred as again:
                deferred = again


def stored(deferred: TaskDeferred) -> Any:
    """The trigger as another process makes it again from its row in the database."""
    path, arguments = deferred.trigger.serialize()
    return import_string(path)(**deserialize(serialize(arguments)))


async def event_of(trigger: Any) -> Any:
    """The payload of its only event, as the database keeps it."""
    events = [event.payload async for event in trigger.run()]
    assert len(events) == 1
    return deserialize(serialize(events[0]))


def connections_of(settings: Settings) -> dict[str, str]:
    """Airflow's environment variables for the connections to a deployment."""
    keystone, s3, mlflow = settings.keystone, settings.s3, settings.mlflow
    found: dict[str, dict[str, Any]] = {
        "mlops_openstack": {
            "host": keystone.auth_url,
            "login": keystone.username,
            "password": keystone.password.get_secret_value(),
            "extra": {
                "region": keystone.region,
                "project_name": keystone.project_name,
                "deployment_id": str(settings.deployment_id),
                "broker_secret": settings.broker_key.get_secret_value(),
                "node_seconds_price": settings.node_seconds_price,
                "cost": settings.cost.model_dump(),
                "budget": settings.budget.model_dump(),
                "lease": settings.lease.model_dump(),
                "ironic_images": {kind: image.model_dump() for kind, image in settings.ironic_images.items()},
            },
        },
        "mlops_s3": {
            "host": s3.endpoint,
            "login": s3.access_key_id,
            "password": s3.secret_access_key.get_secret_value(),
            "extra": s3.model_dump(include={"node_endpoint", "region", "bucket", "per_run", "run_role", "token_s"}),
        },
        "mlops_mlflow": {
            "host": mlflow.tracking_uri,
            "login": mlflow.username,
            "password": mlflow.password.get_secret_value(),
            "extra": {"alias": mlflow.alias},
        },
    }
    return {f"AIRFLOW_CONN_{name.upper()}": json.dumps({"conn_type": name, **c}) for name, c in found.items()}
