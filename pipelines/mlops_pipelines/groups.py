"""The loop as Airflow sees it: the Params form of a spec, and the tasks of one turn. The only module with Airflow."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, TaskGroup, chain, task
from pydantic import BaseModel

from mlops_hooks.deployment import DeploymentHook
from mlops_operators.capacity import ProvisionOperator, ReleaseOperator
from mlops_operators.data import PinDataOperator, ValidateDataOperator
from mlops_operators.drift import KeepReferenceOperator, drift_asset
from mlops_operators.failures import airflow_failures
from mlops_operators.registry import GateOperator, RegisterModelOperator
from mlops_operators.serving import DeployOperator
from mlops_operators.tests import RunTestsOperator
from mlops_operators.training import TrainOperator
from mlops_pipelines.forms import form_of, parse_form
from mlops_pipelines.recipes.planning import ServingModel, plan_turn
from mlops_pipelines.specs import RetrainSpec
from mlops_sdk.registry.champion import Champion, read_champion

PROGRAM_TESTS = ("tests/unit/code_lm",)
_TRY_AGAIN: dict[str, Any] = {"retries": 3, "retry_delay": timedelta(seconds=5)}
_PROGRAM = "mlops_pipelines.programs.code_lm"


def params_of(spec: type[BaseModel]) -> dict[str, Any]:
    """A spec as the Params of a DAG: a form with sections, limits and words.

    Example:
        DAG("retrain_lm", params=params_of(RetrainSpec))
    """
    return {name: Param(field.default, **field.schema) for name, field in form_of(spec).items()}


def turn_of_the_loop(model: str, *, data_repository: str) -> None:
    """One turn: plan, test, validate and pin the data, train on leased machines, register, gate, roll out.

    Machines are given back as soon as the training is over, however it ended; what follows needs none.

    Args:
        model: Name of the registered model; names the asset whose events start a turn.
        data_repository: Clone URL of DVC's repository. Templated.
    """
    plan: Any = plan_the_turn(model)  # what a task returns is known to be so when it has run
    tests = RunTestsOperator(
        task_id="run_tests", repository=plan["repository"], commit=plan["commit"], paths=PROGRAM_TESTS, **_TRY_AGAIN
    )
    pin = _data(plan, data_repository)
    provision, train = _machines(plan, model, code=tests.output, data=pin.output)
    register = RegisterModelOperator(task_id="register", **_TRY_AGAIN)
    gate = GateOperator(task_id="gate", worse_by=plan["worse_by"], **_TRY_AGAIN)
    normal = KeepReferenceOperator(
        task_id="keep_reference",
        reference=f"{_PROGRAM}.prompts:prompt_reference",
        kinds=plan["kinds"],
        **_TRY_AGAIN,
    )
    prompts: Any = normal.output
    deploy = DeployOperator(task_id="deploy", reference=prompts["sha256"], **_TRY_AGAIN)
    chain([tests, pin], [provision, normal])  # what is normal is made while the machines train
    chain(train, register, gate, deploy)


def _data(plan: Any, repository: str) -> PinDataOperator:
    """Validate, then pin; the last task."""
    with TaskGroup("data", prefix_group_id=False):
        validate = ValidateDataOperator(
            task_id="validate_data",
            rows=f"{_PROGRAM}.table:rows",
            suite=f"{_PROGRAM}.table:SUITE",
            arguments=plan["corpus"],
            **_TRY_AGAIN,
        )
        pin = PinDataOperator(
            task_id="pin_data",
            build=f"{_PROGRAM}.corpus:build",
            repository=repository,
            arguments=plan["data"],
            **_TRY_AGAIN,
        )
        chain(validate, pin)
    return pin


def _machines(plan: Any, model: str, *, code: Any, data: Any) -> tuple[ProvisionOperator, TrainOperator]:
    """Lease, train, give back; the first and the training task."""
    with TaskGroup("machines", prefix_group_id=False):
        provision = ProvisionOperator(
            task_id="provision",
            nodes=plan["nodes"],
            resource_class=plan["resource_class"],
            traits=plan["traits"],
            hours=plan["hours"],
            wait_s=plan["wait_s"],
            priority=plan["priority"],
            preemptible=plan["preemptible"],
            spares=plan["spares"],
            provider=plan["provider"],
            hold_on_failure_s=plan["hold_on_failure_s"],
            **_TRY_AGAIN,
        ).as_setup()
        train = TrainOperator(
            task_id="train", model_name=model, program=plan["program"], code=code, data=data, **_TRY_AGAIN
        )
        release = ReleaseOperator(task_id="release", keep_warm_s=plan["keep_warm_s"], **_TRY_AGAIN).as_teardown(
            setups=provision
        )
        chain(provision, train, release)
    return provision, train


@task(multiple_outputs=True, retries=3, retry_delay=timedelta(seconds=5))
def plan_the_turn(
    model: str, params: dict[str, Any] | None = None, triggering_asset_events: Any = None
) -> dict[str, Any]:
    """Decide what this turn trains, from the form, the model that serves, and the events that started it."""
    with airflow_failures():
        spec = parse_form(RetrainSpec, dict(params or {}))
        champion = read_champion(DeploymentHook().settings().mlflow, model)
        events = (triggering_asset_events or {}).get(drift_asset(model), [])
        drifted = sorted({kind for event in events for kind in event.extra.get("widen_to", [])})
        plan = plan_turn(spec, serving=_serving(champion), drifted=drifted)
    program = spec.program.model_dump(mode="json")
    if champion is not None:
        program["arguments"] = {"warm_start": True, **program["arguments"], "champion": champion.argument()}
    return {
        **plan.model_dump(mode="json", include={"repository", "commit", "why"}),
        "kinds": list(plan.corpora),
        "corpus": {"kinds": list(plan.corpora)},
        "data": {"kinds": list(plan.corpora), "vocabulary": spec.data.vocabulary},
        "program": program,
        "worse_by": spec.gate.worse_by,
        **spec.capacity.model_dump(mode="json"),
    }


def _serving(champion: Champion | None) -> ServingModel | None:
    if champion is None:
        return None
    return ServingModel(
        version=champion.version, repository=champion.repository, commit=champion.commit, corpora=champion.kinds
    )
