"""Machines for a DAG run: leased by a setup task, given back by its teardown.

machines = ProvisionOperator(task_id="provision", nodes=2, resource_class="gpu.h200.8x").as_setup()
machines >> train >> ReleaseOperator(task_id="release").as_teardown(setups=machines)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NoReturn

from airflow.sdk import Context

from mlops_operators.base import MlopsOperator
from mlops_operators.failures import error_from_json
from mlops_operators.links import NodeLink
from mlops_operators.triggers.capacity import ProvisionTrigger, ReleaseTrigger
from mlops_operators.triggers.machines import MachinesTrigger
from mlops_sdk.capacity.lease import DEFAULT_PROVIDER, LeaseRequest
from mlops_sdk.client import Client
from mlops_sdk.errors import BudgetExceeded, CapacityError, LeaseLost, MlopsError, SettingsError
from mlops_sdk.history import History
from mlops_sdk.run import Run
from mlops_sdk.steps import drive_briefly

GENERATION = "generation"  # in the task's state store
_AT_ONCE_S: Final = 2.0  # Ironic answers an allocation within a second; what takes longer is waited for deferred


class ProvisionOperator(MlopsOperator):
    """Lease machines, all or none; waits deferred. Cleared, retried or killed in any state, it never leases twice.

    The machines are quoted and asked for before the task defers, so they deploy while Airflow starts the trigger.

    Which generation of the run's lease this try works on is written into the task's state store before anything is
    created. A later try adopts what is healthy of it, or opens the next one. What fails gives back what it got; what is
    killed is not renewed, and the reaper returns it.

    Pushes back ``{"run", "generation", "nodes", "deadline", "quote"}``, the machines by name; no quote
    when an earlier try has asked for them.

    Args:
        nodes: How many machines. Templated.
        resource_class: The provider's word for what each is (Ironic: resource class). Templated.
        traits: That each must have. Templated.
        hours: Hard limit of the lease. Templated.
        wait_s: How long to wait for capacity. Templated.
        priority: Its class while there are too few: ``batch``, ``normal``, ``urgent``. Templated.
        preemptible: Whether the lease may be ended, with notice, for a higher priority. Templated.
        spares: How many more to keep ready for the place of a lost one; fewer, where there are not so many. Templated.
        hold_on_failure_s: How long the machines stay for a person when a job on them failed; 0: not at all. Templated.
        provider: Whose machines: ``ironic``, or another one that the deployment has. Templated.
        kwargs: Of `MlopsOperator`.
    """

    template_fields: Collection[str] = (
        *MlopsOperator.template_fields,
        "nodes",
        "resource_class",
        "traits",
        "hours",
        "wait_s",
        "priority",
        "preemptible",
        "hold_on_failure_s",
        "spares",
        "provider",
    )
    operator_extra_links = (NodeLink(),)
    ui_color = "#e6eefc"

    def __init__(
        self,
        *,
        nodes: int | str,
        resource_class: str,
        traits: Sequence[str] = (),
        hours: float | str = 1.0,
        wait_s: float | str = 60.0,
        priority: str = "normal",
        preemptible: bool | str = False,
        hold_on_failure_s: float | str = 0.0,
        spares: int | str = 0,
        provider: str = DEFAULT_PROVIDER,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.nodes = nodes
        self.resource_class = resource_class
        self.traits = traits
        self.hours = hours
        self.wait_s = wait_s
        self.priority = priority
        self.preemptible = preemptible
        self.hold_on_failure_s = hold_on_failure_s
        self.spares = spares
        self.provider = provider

    def execute(self, context: Context) -> NoReturn:
        """Decide on the generation, write it down, ask for the machines, wait."""
        with self.failures():
            client = self.hook.client()
            run = client.start_run(self.run_name)
            history = run.history()
            if not _stored(context):
                self._check_that_it_is_ours(history)
        wanted = self._trigger(run, 0).request(client.services.now())
        self._lease(context, client, run, history.generation_to_try(_stored(context), wanted=wanted))

    def provisioned(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """The machines are there, or not."""
        with self.failures():
            if "error" not in event:
                NodeLink().show(context, event["link"])
                return {key: event[key] for key in ("run", "generation", "nodes", "deadline", "quote")}
            error = error_from_json(event["error"])
            if not (event.get("adopted") and isinstance(error, CapacityError)):
                raise error
        self.log.warning("an earlier try's machines are lost, opening the next generation: %s", error)
        with self.failures():
            client = self.hook.client()
            run = client.start_run(self.run_name)
        return self._lease(context, client, run, 1 + _stored(context))

    def _check_that_it_is_ours(self, history: History) -> None:
        """At the first try of this task: a lease that lasts and is for something else belongs to another task."""
        wanted = (int(self.nodes), self.resource_class, tuple(self.traits), self.provider)
        found = history.lasting
        if found is not None and (found.nodes, found.resource_class, found.traits, found.provider) != wanted:
            raise SettingsError(
                f"run {self.run_name!r} holds machines for another task already",
                seen=f"{found}, wanted {self.nodes} x {self.resource_class} of {self.provider}",
                next_step="give each task that leases a run_name of its own, and its release the same",
            )

    def _lease(self, context: Context, client: Client, run: Run, generation: int) -> NoReturn:
        _store(context).set(GENERATION, generation)
        trigger = self._trigger(run, generation)
        with self.failures():
            trigger.quote = self._ask(client, run, generation, trigger.request(client.services.now()))
        self.defer(trigger=trigger, method_name=self.provisioned.__name__, timeout=self.execution_timeout)

    def _trigger(self, run: Run, generation: int) -> ProvisionTrigger:
        return ProvisionTrigger(
            generation=generation,
            asked_by=run.journal.writer,
            quote="",
            nodes=int(self.nodes),
            resource_class=self.resource_class,
            traits=list(self.traits),
            hours=float(self.hours),
            wait_s=float(self.wait_s),
            priority=self.priority,
            preemptible=str(self.preemptible).lower() == "true",
            hold_on_failure_s=float(self.hold_on_failure_s),
            spares=int(self.spares),
            provider=self.provider,
            **self.connections,
            run_name=self.run_name,
        )

    def _ask(self, client: Client, run: Run, generation: int, request: LeaseRequest) -> str:
        """Ask for the machines; the quote, empty when an earlier try has asked for them already.

        What goes wrong here goes wrong in the trigger again, which gives back what there is. A task that is killed
        before there is a trigger renews nothing: its next try adopts, or the reaper returns what it got.
        """
        earlier = run.history().generations.get(generation)
        quote = "" if earlier and earlier.request else str(client.quote(request))
        self.log.info("%s", quote or "an earlier try has asked for them already")
        try:
            drive_briefly(run.beginning_in(generation, request), client.services.clock, at_most_s=_AT_ONCE_S)
        except BudgetExceeded:
            raise  # nothing was asked for
        except MlopsError as error:
            self.log.info("not all could be asked for at once: %s", error)
        finally:
            run.close()
        return quote


class WaitForMachinesOperator(MlopsOperator):
    """Wait until the machines that another run leases are ready; waits deferred. Renews nothing, gives nothing back.

    Pushes back ``{"run", "generation", "nodes"}``, the machines by name.

    Args:
        wait_s: How long to wait. Templated.
        kwargs: Of `MlopsOperator`; `run_name` says whose machines.
    """

    template_fields: Collection[str] = (*MlopsOperator.template_fields, "wait_s")
    ui_color = "#e6eefc"

    def __init__(self, *, run_name: str, wait_s: float | str = 3600.0, **kwargs: Any) -> None:
        super().__init__(run_name=run_name, **kwargs)
        self.wait_s = wait_s

    def execute(self, context: Context) -> NoReturn:
        """Find out what is leased, wait for it."""
        del context
        with self.failures():
            run = self.hook.client().find(self.run_name)
            latest = run.history().latest if run is not None else None
            if latest is None or latest.request is None or latest.over:
                raise LeaseLost(f"run {self.run_name!r} leases no machines", next_step="let it lease them first")
        trigger = MachinesTrigger(
            generation=latest.number,
            nodes=latest.request.nodes,
            wait_s=float(self.wait_s),
            provider=latest.request.provider,
            **self.connections,
            run_name=self.run_name,
        )
        self.defer(trigger=trigger, method_name=self.ready.__name__, timeout=self.execution_timeout)

    def ready(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """The machines are ready, or not."""
        del context
        with self.failures():
            if "error" in event:
                raise error_from_json(event["error"])
        return dict(event)


class ReleaseOperator(MlopsOperator):
    """Give back all machines of a run, revoke its credential, prove it; waits deferred.

    Idempotent, and right in whatever state the run is: leased, half-way there, given back by the reaper, never begun.
    Pushes back ``{"run", "machines": {name: outcome}}``. Fails while something is not back, or not clean.

    What a failed job left for a person to look at (`hold_on_failure_s`) stays until it ends by itself, or is ended by
    `mlops lease release`; so does, with `keep_warm_s`, what a later task of this DAG run may want: one that provisions
    the same again gets it as it is.

    Args:
        keep_warm_s: How long to keep the machines for that; 0: not at all. Templated.
        kwargs: Of `MlopsOperator`.
    """

    template_fields: Collection[str] = (*MlopsOperator.template_fields, "keep_warm_s")
    ui_color = "#e6eefc"

    def __init__(self, *, keep_warm_s: float | str = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keep_warm_s = keep_warm_s

    def execute(self, context: Context) -> dict[str, Any]:
        """Nothing to wait for, or wait."""
        del context
        with self.failures():
            if self.hook.client().find(self.run_name) is None:
                return {"run": "", "machines": {}}
        trigger = ReleaseTrigger(keep_warm_s=float(self.keep_warm_s), **self.connections, run_name=self.run_name)
        return self.defer(trigger=trigger, method_name=self.released.__name__, timeout=self.execution_timeout)

    def released(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Everything is back, or not."""
        del context
        with self.failures():
            if "error" in event:
                raise error_from_json(event["error"])
        return dict(event)


def _store(context: Context) -> Any:
    """What outlives retries of a task; `Context` is typed for what may be missing outside of a task."""
    return dict(context)["task_state_store"]


def _stored(context: Context) -> int:
    return int(_store(context).get(GENERATION, 0))
