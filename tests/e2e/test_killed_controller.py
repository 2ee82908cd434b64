"""``kill -9`` of the controller at every step boundary of the main job: the reaper returns all, and only that."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from mlops_pipelines.recipes.main_job import MainJob
from mlops_sdk.client import Client
from mlops_sdk.names import run_id_for, run_key
from support import eventually
from support_jobs import held, start_controller

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600), pytest.mark.usefixtures("nothing_is_held")]

RENEW_S = 6.0
CLEANING_S = 25.0  # a machine's cleaning takes about 2 s here; three are cleaned at once on two loaded cores

QUICK = [("lease the machines", "after"), ("training", "amid"), ("register the model", "before")]
BEFORE_A_LEASE = [
    ("test the program", "before"),
    ("test the program", "after"),
    ("prepare the data", "before"),
    ("prepare the data", "after"),
    ("measure the baseline", "before"),
    ("measure the baseline", "after"),
    ("quote", "before"),
    ("quote", "after"),
    ("open the run", "before"),
    ("open the run", "after"),
    ("send the code", "before"),
    ("send the code", "after"),
    ("lease the machines", "before"),
]
HOLDING = [
    ("train", "before"),
    ("train", "after"),
    ("fetch and try the model", "before"),
    ("fetch and try the model", "after"),
    ("register the model", "after"),
    ("give the machines back", "before"),
    ("give the machines back", "after"),
    ("prove that nothing is held", "before"),
    ("prove that nothing is held", "after"),
]
SWEEP = [
    pytest.param(QUICK, id="quick"),
    pytest.param(BEFORE_A_LEASE, id="before-a-lease", marks=pytest.mark.slow),
    pytest.param(HOLDING, id="holding", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("boundaries", SWEEP)
def test_nothing_of_the_run_is_held_afterwards_and_a_strangers_machine_is_untouched(
    boundaries: list[tuple[str, str]],
    client: Client,
    one_machine_job: MainJob,
    stranger: Callable[[], object],
    stack: Any,
):
    before = stranger()
    for first in range(0, len(boundaries), 3):
        kill_and_watch(stack, client, one_machine_job, boundaries[first : first + 3])
    assert stranger() == before


def kill_and_watch(stack: Any, client: Client, job: MainJob, boundaries: list[tuple[str, str]]) -> None:
    """Three controllers with a machine each, killed at a boundary each."""
    controllers = [
        start_controller(stack, job, *boundary, suffix=f"-{i}", renew_for_s=RENEW_S)
        for i, boundary in enumerate(boundaries)
    ]
    for (process, _), boundary in zip(controllers, boundaries, strict=True):
        output, _ = process.communicate(timeout=180)
        assert process.returncode == -signal.SIGKILL, (boundary, output)
    died = time.monotonic()
    ids = [run_id_for(client.settings.deployment_id, name) for _, name in controllers]
    limit = RENEW_S + client.settings.lease.reaper_period_s + client.settings.lease.clock_skew_s + CLEANING_S
    eventually(lambda: held(client, ids) == [], within_s=limit, what=f"given back after {boundaries}")
    opened = [run_id for run_id in ids if client.store.get_json(f"runs/{run_key(run_id)}/journal/00000001.json")]
    for run_id in opened:
        run = client.attach(run_id)
        eventually(lambda run=run: run.prove().complete, within_s=20, what=f"run {run.key} is proven")
    sys.stderr.write(f"given back and proven {time.monotonic() - died:.1f} s after the kill: {boundaries}\n")
