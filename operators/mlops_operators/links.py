"""Buttons on a task's page. The address is pushed when it is known, so that the button works while the task waits."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperator, BaseOperatorLink, Context
from airflow.sdk.execution_time.xcom import XCom


class MlopsLink(BaseOperatorLink):
    """Base of our links."""

    def show(self, context: Context, address: str) -> None:
        """From now on the button leads there."""
        dict[str, Any](context)["ti"].xcom_push(key=self.xcom_key, value=address)

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """What was shown; "" before that."""
        del operator
        return str(XCom.get_value(ti_key=ti_key, key=self.xcom_key) or "")


class MlflowRunLink(MlopsLink):
    """The MLflow run of a training."""

    @property
    def name(self) -> str:
        """On the button."""
        return "MLflow run"


class ModelVersionLink(MlopsLink):
    """A registered version in MLflow; its page leads on to the MLflow run."""

    @property
    def name(self) -> str:
        """On the button."""
        return "Model version"


class NodeLink(MlopsLink):
    """The first machine of a lease, in Ironic."""

    @property
    def name(self) -> str:
        """On the button."""
        return "Node"


class EndpointLink(MlopsLink):
    """Where a model is served."""

    @property
    def name(self) -> str:
        """On the button."""
        return "Endpoint"
