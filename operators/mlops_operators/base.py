"""What all our operators share: the run that they work for, and the three connections that say where everything is."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

from airflow.sdk import BaseOperator

from mlops_hooks.deployment import DeploymentHook
from mlops_operators.failures import airflow_failures
from mlops_sdk.errors import MlopsError

RUN_NAME = "{{ dag.dag_id }}/{{ run_id }}"


class MlopsOperator(BaseOperator):
    """Base of the operators of this provider.

    Subclasses extend `template_fields` and call the library within `failures`.

    Args:
        run_name: Which run. By default one per DAG run; only a DAG with several leases names them apart. Templated.
        openstack_conn_id: Of type ``mlops_openstack``. Templated.
        s3_conn_id: Of type ``mlops_s3``. Templated.
        mlflow_conn_id: Of type ``mlops_mlflow``. Templated.
        kwargs: Of `BaseOperator`.
    """

    template_fields: Collection[str] = ("run_name", "openstack_conn_id", "s3_conn_id", "mlflow_conn_id")

    def __init__(
        self,
        *,
        run_name: str = RUN_NAME,
        openstack_conn_id: str = "mlops_openstack",
        s3_conn_id: str = "mlops_s3",
        mlflow_conn_id: str = "mlops_mlflow",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.run_name = run_name
        self.openstack_conn_id = openstack_conn_id
        self.s3_conn_id = s3_conn_id
        self.mlflow_conn_id = mlflow_conn_id

    @property
    def hook(self) -> DeploymentHook:
        """The deployment."""
        return DeploymentHook(**self.connections)

    def failures(self, *, hopeless: tuple[type[MlopsError], ...] = ()) -> AbstractContextManager[None]:
        """`failures.airflow_failures` of this task."""
        return airflow_failures(hopeless=hopeless, connections=self.connections.values())

    @property
    def connections(self) -> dict[str, str]:
        """The three connection ids by name, as hook and triggers take them."""
        return {
            "openstack_conn_id": self.openstack_conn_id,
            "s3_conn_id": self.s3_conn_id,
            "mlflow_conn_id": self.mlflow_conn_id,
        }
