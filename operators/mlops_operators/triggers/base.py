"""What our triggers share: names only in their rows, the library's errors as events, leases cared for."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from mlops_hooks.deployment import DeploymentHook
from mlops_operators.failures import error_to_json
from mlops_operators.triggers.keeping import Caretaker, Progress, caretaker, progress_of
from mlops_sdk.client import Client
from mlops_sdk.errors import MlopsError
from mlops_sdk.run import Run
from mlops_sdk.steps import Steps, T, adrive


class MlopsTrigger(BaseTrigger):
    """Base of our triggers. Its row in Airflow's database holds names and connection ids, never a secret.

    The event is the result of `work`, or ``{"error": ...}`` (see `failures.error_from_json`).

    Args:
        run_name: Which run.
        openstack_conn_id: Of type ``mlops_openstack``.
        s3_conn_id: Of type ``mlops_s3``.
        mlflow_conn_id: Of type ``mlops_mlflow``.
    """

    def __init__(self, *, run_name: str, openstack_conn_id: str, s3_conn_id: str, mlflow_conn_id: str) -> None:
        super().__init__()
        self.run_name = run_name
        self.openstack_conn_id = openstack_conn_id
        self.s3_conn_id = s3_conn_id
        self.mlflow_conn_id = mlflow_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class and arguments."""
        return f"{type(self).__module__}.{type(self).__qualname__}", self.arguments()

    def arguments(self) -> dict[str, Any]:
        """What makes this trigger again, in another process."""
        return {
            "run_name": self.run_name,
            "openstack_conn_id": self.openstack_conn_id,
            "s3_conn_id": self.s3_conn_id,
            "mlflow_conn_id": self.mlflow_conn_id,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:  # pyright: ignore[reportIncompatibleMethodOverride] - Airflow's base is typed as a coroutine but awaited as a generator
        """Work, and tell what came of it."""
        try:
            payload = await self.work()
        except MlopsError as error:
            payload = self.failed(error)
        yield TriggerEvent(payload)

    @abstractmethod
    async def work(self) -> dict[str, Any]:
        """Do what the task waits for; small plain values."""

    def failed(self, error: MlopsError) -> dict[str, Any]:
        """The event of a failure."""
        return {"error": error_to_json(error)}

    async def client(self) -> Client:
        """The deployment: one client of this process, its leases renewed by the keeper of this process."""
        names = (self.openstack_conn_id, self.s3_conn_id, self.mlflow_conn_id)
        keeper = self.caretaker.keeper

        async def make(earlier: Client | None) -> Client:
            return await DeploymentHook(*names).aclient(keeper=keeper, earlier=earlier)

        return await self.caretaker.client(names, make)

    async def drive(self, steps: Steps[T], client: Client) -> T:
        """`steps.adrive` of this deployment; what waits for a cloud shares one poller with all other triggers."""
        services = client.services
        return await adrive(steps, services.clock, self.caretaker.pollers.pause(services))

    @property
    def caretaker(self) -> Caretaker:
        """Of this process."""
        return caretaker()

    def hand_over(self, run: Run) -> None:
        """The work is done and the run goes on: renew its lease until the next task takes over."""
        if self.task_instance is None:  # nobody to ask what the DAG run does: the next task has one renewal's time
            self.caretaker.let_go(run)
            return
        self.caretaker.hand_over(run, self._progress)

    async def _progress(self) -> Progress:
        from airflow.sdk.execution_time import task_runner  # noqa: PLC0415 - set up by the triggerer when it starts
        from airflow.sdk.execution_time.comms import GetTaskStates, TaskStatesResult  # noqa: PLC0415 - as above

        ti = self.task_instance
        if ti is None:
            return Progress.ENDED
        message = GetTaskStates(dag_id=ti.dag_id, run_ids=[ti.run_id])
        response: Any = await task_runner.SUPERVISOR_COMMS.asend(message)  # pyright: ignore[reportArgumentType, reportCallIssue] - typed for tasks; the triggerer's takes this too
        if not isinstance(response, TaskStatesResult):
            raise TypeError(f"asked for task states, Airflow answered {response!r}")
        return progress_of(dict(response.task_states.get(ti.run_id, {})).values())

    async def blocking(self, call: Any, *args: Any) -> Any:
        """Call something that blocks, beside the event loop."""
        return await asyncio.to_thread(call, *args)
