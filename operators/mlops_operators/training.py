"""Train on the machines that the DAG run holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from airflow.sdk import Context
from pydantic import JsonValue

from mlops_operators.base import MlopsOperator
from mlops_operators.failures import error_from_json
from mlops_operators.links import MlflowRunLink
from mlops_operators.triggers.training import TrainTrigger, summary
from mlops_sdk.client import Client
from mlops_sdk.data.versioning import DataVersion
from mlops_sdk.errors import LeaseLost, SettingsError
from mlops_sdk.run import Run
from mlops_sdk.source import SourceRef
from mlops_sdk.training.ordering import place_order
from mlops_sdk.training.program import ProgramSpec
from mlops_sdk.training.trained import TrainingOrder, check_same, ordered, remembered


class TrainOperator(MlopsOperator):
    """Send the code, then train; waits deferred while the job runs out of the triggerer.

    A finished training is in the run's journal: however often the task is cleared or retried, it is not done again. One
    that was cut off goes on from its last committed checkpoint. A program that raises fails the task at once; a worker,
    machine or service that fails costs an attempt, of which `program` says how many there are.

    Pushes back ``{"run", "model_name", "bits_per_byte", "held_out", "attempts", "resumed_from"}``.

    Args:
        model_name: Of the model that it is for; also MLflow's experiment. Templated.
        program: A `ProgramSpec` as JSON. Templated.
        code: ``{"repository", "commit"}``, as `RunTestsOperator` pushes it, or the path of a checkout. Templated.
        data: A `DataVersion` as JSON, as `PinDataOperator` pushes it. Templated.
        kwargs: Of `MlopsOperator`.
    """

    template_fields: Collection[str] = (*MlopsOperator.template_fields, "model_name", "program", "code", "data")
    operator_extra_links = (MlflowRunLink(),)
    ui_color = "#fdf0dc"

    def __init__(
        self,
        *,
        model_name: str,
        program: Mapping[str, JsonValue],
        code: Mapping[str, str] | str,
        data: Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_name = model_name
        self.program = program
        self.code = code
        self.data = data

    def execute(self, context: Context) -> dict[str, Any]:
        """Trained already, or order it and wait."""
        with self.failures(hopeless=(LeaseLost,)):
            client, program = self.hook.client(), ProgramSpec.model_validate(self.program)
            run = client.find(self.run_name)
            if run is None:
                raise LeaseLost(f"run {self.run_name!r} holds no machines", next_step="provision them first")
            trained = remembered(run)
            if trained is not None:
                check_same(run, trained, model_name=self.model_name, program=program)
                MlflowRunLink().show(context, ordered(run).tracking_url)
                return summary(run, trained)
            order = self._order(client, run, program)
        MlflowRunLink().show(context, order.tracking_url)
        trigger = TrainTrigger(**self.connections, run_name=self.run_name)
        return self.defer(trigger=trigger, method_name=self.trained.__name__, timeout=self.execution_timeout)

    def trained(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """It is trained, or not."""
        del context
        with self.failures(hopeless=(LeaseLost,)):
            if "error" in event:
                raise error_from_json(event["error"])
        return dict(event)

    def _order(self, client: Client, run: Run, program: ProgramSpec) -> TrainingOrder:
        data = DataVersion(**self.data)
        return place_order(
            client,
            run,
            model_name=self.model_name,
            program=program,
            code=_code(self.code),
            data=[data.ref()],
            data_revision=data.revision,
        )


def _code(code: Mapping[str, str] | str) -> SourceRef | Path:
    if isinstance(code, str):
        return Path(code)
    try:
        return SourceRef(repository=code["repository"], commit=code["commit"])
    except KeyError as error:
        raise SettingsError(
            "the code to train is not named",
            seen=f"{sorted(code)}, without {error}",
            next_step="give repository and commit, or the path of a checkout",
        ) from None
