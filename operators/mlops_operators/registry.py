"""After the training: registered with its lineage, then admitted by the gate or refused."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from airflow.sdk import Context
from pydantic import JsonValue

from mlops_operators.base import MlopsOperator
from mlops_operators.links import ModelVersionLink
from mlops_sdk.registry.gate import GateBounds
from mlops_sdk.registry.registration import admit_trained, register_trained, run_named


class RegisterModelOperator(MlopsOperator):
    """Register what this DAG run has trained as a version in MLflow, with its lineage; once, however often it is tried.

    Pushes back ``{"name", "version", "uri", "mlflow_run_id", "run"}``.
    """

    operator_extra_links = (ModelVersionLink(),)
    ui_color = "#f3eef8"

    def execute(self, context: Context) -> dict[str, JsonValue]:
        """Register."""
        with self.failures():
            client = self.hook.client()
            run = run_named(client, self.run_name)
            model = register_trained(client, run)
        ModelVersionLink().show(context, model.page(client.mlflow))
        return {
            "name": model.name,
            "version": model.version,
            "uri": model.uri,
            "mlflow_run_id": model.mlflow_run_id,
            "run": run.key,
        }


class GateOperator(MlopsOperator):
    """Decide whether the version that this DAG run has registered may serve, by held-out loss per corpus.

    Pushes back a `mlops_sdk.registry.gate.Verdict` as JSON. A refusal fails the task at once, with the table of
    figures; the verdict is on the version in MLflow too. The champion's alias moves after the roll-out, not here.

    Args:
        worse_by: By which share the loss on a corpus that the champion knows may grow. Templated.
        kwargs: Of `MlopsOperator`.
    """

    template_fields: Collection[str] = (*MlopsOperator.template_fields, "worse_by")
    ui_color = "#f8f0e0"

    def __init__(self, *, worse_by: float | str = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.worse_by = worse_by

    def execute(self, context: Context) -> dict[str, JsonValue]:
        """Decide."""
        del context
        with self.failures():
            client = self.hook.client()
            bounds = GateBounds(worse_by=float(self.worse_by))
            verdict = admit_trained(client, run_named(client, self.run_name), bounds)
        self.log.info("The gate lets it pass:\n%s", verdict.table())
        return verdict.model_dump(mode="json")
