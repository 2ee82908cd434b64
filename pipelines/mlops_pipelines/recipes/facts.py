"""What each task of a turn left behind, as lines that a person reads. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def facts(task_id: str, result: Any) -> Sequence[str]:
    """Evidence for the closing table, from a task of `retrain_lm` and what it returned."""
    told = _TOLD.get(task_id)
    return [] if told is None or not isinstance(result, Mapping) else told(result)  # pyright: ignore[reportUnknownVariableType] - JSON


def _plan(result: Result) -> Sequence[str]:
    return [f"{result['why']}; corpora {', '.join(result['corpus']['kinds'])}; {result['nodes']} machines"]


def _run_tests(result: Result) -> Sequence[str]:
    return [f"commit {result['commit'][:12]}: {result['summary']}", f"log {result['log']}"]


def _validate_data(result: Result) -> Sequence[str]:
    return [f"every expectation holds: {result['uri']}"]


def _pin_data(result: Result) -> Sequence[str]:
    version = f"SHA-256 {result['sha256'][:12]}, revision {result['revision'][:12]}"
    return [f"{result['name']}: {result['size']:,} bytes, {version}"]


def _keep_reference(result: Result) -> Sequence[str]:
    return [f"normal prompts: {', '.join(result['kinds'])}; SHA-256 {result['sha256'][:12]}"]


def _provision(result: Result) -> Sequence[str]:
    leased = f"run {result['run']}, generation {result['generation']}: {', '.join(result['nodes'])}"
    return [f"quote: {result['quote']}", leased] if result["quote"] else [leased]


def _train(result: Result) -> Sequence[str]:
    losses = ", ".join(f"{kind} {value:.3f}" for kind, value in result["held_out"].items())
    resumed = f", the last one from step {result['resumed_from']}" if result["attempts"] > 1 else ""
    return [f"held out, bits per byte: {losses}", f"{result['attempts']} attempts{resumed}"]


def _release(result: Result) -> Sequence[str]:
    return [f"{name}: {outcome}" for name, outcome in result["machines"].items()]


def _register(result: Result) -> Sequence[str]:
    return [f"{result['uri']} (MLflow run {result['mlflow_run_id']})"]


def _gate(result: Result) -> Sequence[str]:
    return [f"against {result['against']}", *(figures["reason"] for figures in result["kinds"])]


def _deploy(result: Result) -> Sequence[str]:
    return [f"{result['model']} version {result['version']} serves at {result['endpoint']}, slot {result['slot']}"]


_TOLD: Mapping[str, Callable[[Result], Sequence[str]]] = {
    "plan_the_turn": _plan,
    "run_tests": _run_tests,
    "validate_data": _validate_data,
    "pin_data": _pin_data,
    "keep_reference": _keep_reference,
    "provision": _provision,
    "train": _train,
    "release": _release,
    "register": _register,
    "gate": _gate,
    "deploy": _deploy,
}
