"""Train on the machines that the DAG run holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from airflow.sdk import Context
from pydantic import JsonValue

from mlops_operators.base import MlopsOperator
from mlops_operators.failures import error_from_json
from mlops_operators.links import MlflowRunLink
from mlops_operators.triggers.capacity import ProvisionTrigger
from mlops_operators.triggers.training import TrainTrigger, summary
from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.capacity.lifecycle import END_RETRY, Retry, reason_of
from mlops_sdk.client import Client
from mlops_sdk.data.versioning import DataVersion
from mlops_sdk.errors import LeaseLost, MlopsError, SettingsError
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

    A lease that ends at its deadline stops the program with a checkpoint and fails the task at once: the time that was
    asked for is over. One that ends for somebody of a higher priority does not: the task waits in the queue for as many
    machines, as the run's next generation, until that deadline, and goes on there.

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
        return self._train()

    def trained(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """It is trained, or not."""
        del context
        with self.failures(hopeless=(LeaseLost,)):
            if "error" in event:
                error = error_from_json(event["error"])
                self._lease_again(error)
                raise error
        return dict(event)

    def leased_again(self, context: Context, event: Mapping[str, Any]) -> NoReturn:
        """The machines of the next generation are there, or not."""
        del context
        with self.failures(hopeless=(LeaseLost,)):
            if "error" in event:
                raise error_from_json(event["error"])
        return self._train()

    def _train(self) -> NoReturn:
        trigger = TrainTrigger(**self.connections, run_name=self.run_name)
        return self.defer(trigger=trigger, method_name=self.trained.__name__, timeout=self.execution_timeout)

    def _lease_again(self, error: MlopsError) -> None:
        """If the run lost its machines to somebody else: wait for as many, until the deadline that it had.

        Raises:
            TaskDeferred: it waits; else the error is why the task fails.
        """
        client = self.hook.client()
        run = client.find(self.run_name)
        latest = run.history().latest if run is not None else None
        if run is None or latest is None or latest.request is None:
            return
        lost = isinstance(error, LeaseLost) and latest.preempted  # between two tasks, or before its job could stop
        if END_RETRY[reason_of(error)] is not Retry.QUEUE_AGAIN and not lost:
            return
        request = latest.request
        left_s = (request.deadline - client.services.now()).total_seconds()
        if left_s <= client.settings.lease.notice_s:
            return
        self.log.info("%s; waiting for %s in the queue", error, request)
        trigger = ProvisionTrigger(
            generation=latest.number + 1,
            asked_by="",
            quote="",
            nodes=request.nodes,
            resource_class=request.resource_class,
            traits=list(request.traits),
            hours=left_s / 3600,
            until=to_iso(request.deadline),
            wait_s=left_s,
            priority=request.priority.name.lower(),
            preemptible=request.preemptible,
            hold_on_failure_s=request.hold_on_failure_s,
            spares=request.spares,
            provider=request.provider,
            **self.connections,
            run_name=self.run_name,
        )
        self.defer(trigger=trigger, method_name=self.leased_again.__name__, timeout=self.execution_timeout)

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
