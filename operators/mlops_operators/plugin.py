"""What Airflow loads from this distribution: the webhook receiver in its api-server, and what a scheduler preloads."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from mlops_operators import preload
from mlops_sdk.webhooks.receiver import PREFIX, LazyReceiver


class MlopsPlugin(AirflowPlugin):
    """Mounts ``POST /webhooks/github``. Deliveries authenticate themselves: Airflow's login does not apply there."""

    name = "mlops"
    fastapi_apps: list[Any] = [  # noqa: RUF012 - as the base class declares it
        {"app": LazyReceiver(), "url_prefix": PREFIX, "name": "MLOps webhooks"}
    ]
    listeners: list[Any] = [preload]  # noqa: RUF012 - same
