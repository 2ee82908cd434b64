"""vLLM behind haproxy on the serving host, for real: rolled out, killed, restarted, refused, while users stream."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mlops_pipelines.recipes.clients import StreamingClients
from mlops_sdk.errors import RolledBack, ServingError
from mlops_sdk.objects import ObjectStore
from mlops_sdk.remote.ssh import run_once
from mlops_sdk.serving.deploy import roll_out_and_wait
from mlops_sdk.serving.host import connected_host
from mlops_sdk.serving.rollout import Slot
from mlops_sdk.serving.target import ServedModel, VllmTarget
from support import eventually
from support_models import stored_model

pytestmark = pytest.mark.stack

NAME = "tiny-lm"
PROMPTS = ("import os", "def f(x):", "for i in range")
CONTROLLER = Path(__file__).with_name("roll_out_controller.py")


@pytest.fixture(scope="module")
def models(stack, tmp_path_factory) -> dict[int, ServedModel]:
    """Versions 1 and 2 work, version 3 never gets ready."""
    store, scratch = ObjectStore.open(stack.settings.s3), tmp_path_factory.mktemp("models")
    return {v: stored_model(store, scratch, name=NAME, version=v, broken=v == 3) for v in (1, 2, 3)}


@pytest.fixture
def serves(serving: VllmTarget, stack, models) -> str:
    """The version that serves: 1, unless a test before has left another."""
    for slot in look(serving).values():
        if slot.live and slot.server.up and slot.instance and slot.instance.version in {"1", "2"}:
            return slot.instance.version
    return roll_out_and_wait(serving, models[1], stack.settings.s3).version


def look(target: VllmTarget) -> dict[str, Slot]:
    async def ask() -> dict[str, Slot]:
        async with connected_host(target) as host:
            return await host.look()

    return asyncio.run(ask())


def pid_in(target: VllmTarget, slot: str) -> int:
    async def ask() -> dict[str, Any]:
        async with connected_host(target) as host:
            return await host.order("look")

    return int(asyncio.run(ask())["slots"][slot]["pid"])


def answer(target: VllmTarget) -> tuple[str, str]:
    """Version in the header, and model in the body, of one completion through the proxy."""
    body = json.dumps({"model": NAME, "prompt": "import", "max_tokens": 3}).encode()
    request = urllib.request.Request(  # noqa: S310 - the stack's own proxy
        f"{target.base_url}/v1/completions", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310 - as above
        return reply.headers["x-mlops-model-version"], json.load(reply)["model"]


def answers(target: VllmTarget) -> bool:
    try:
        return bool(answer(target))
    except OSError:
        return False


def users(target: VllmTarget) -> StreamingClients:
    return StreamingClients(target.base_url, NAME, PROMPTS, clients=3, pause_s=0.1, max_tokens=24)


def test_a_version_is_served_says_who_it_is_and_survives_a_dead_haproxy(serving, stack, models, serves):
    assert answer(serving) == (serves, f"{NAME}@{serves}")
    again = roll_out_and_wait(serving, models[int(serves)], stack.settings.s3)
    before = pid_in(serving, again.slot)
    run_once(serving.host, ["sh", "-c", "kill -9 $(pidof haproxy)"])
    eventually(lambda: answers(serving), within_s=15, what="haproxy is back, with its state")
    assert answer(serving)[0] == serves
    assert pid_in(serving, again.slot) == before


@pytest.mark.slow
def test_users_stream_through_a_roll_out_that_is_killed_at_every_step(serving, stack, models, serves):
    wanted = models[1 if serves == "2" else 2]
    steps = ("place", "ask", "admit", "drain", "wait", "stop", "rest", "settle")
    with users(serving) as clients:
        for step in steps:
            if killed_after(step, stack.state_dir, wanted):
                break
        done = roll_out_and_wait(serving, wanted, stack.settings.s3)
        seen = len(clients.tally.first_token_s)
        eventually(lambda: len(clients.tally.first_token_s) > seen + 9, within_s=60, what="users are served on")
    assert clients.tally.failures == []
    assert clients.tally.by_version.keys() == {serves, wanted.version}
    slots = look(serving)
    assert [slot.name for slot in slots.values() if not slot.empty] == [done.slot]


@pytest.mark.slow
def test_one_that_never_gets_ready_is_taken_back_while_users_stream(serving, stack, models, serves):
    with users(serving) as clients, pytest.raises(RolledBack, match="exit status 1; its last words") as refusal:
        roll_out_and_wait(serving, models[3], stack.settings.s3)
    assert f"version {serves!r} still serves" in refusal.value.what
    assert clients.tally.failures == []
    assert set(clients.tally.by_version) <= {serves}
    assert [slot.instance.version for slot in look(serving).values() if slot.instance] == [serves]
    folders = run_once(serving.host, ["ls", serving.path("models")]).split()
    assert folders == [models[int(serves)].sha256[:32]]


@pytest.mark.slow
def test_files_that_cannot_be_brought_change_nothing(serving, stack, models, serves):
    damaged = ObjectStore.open(stack.settings.s3)
    other = models[1 if serves == "2" else 2]
    key = f"{other.prefix}/model.safetensors"
    whole = damaged.get(key)
    assert whole is not None
    damaged.put(key, whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(ServingError, match="damaged"):
            roll_out_and_wait(serving, other, stack.settings.s3)
    finally:
        damaged.put(key, whole)
    assert answer(serving)[0] == serves
    assert [slot.name for slot in look(serving).values() if not slot.empty and not slot.live] == []


@pytest.mark.slow
def test_vllm_that_dies_mid_stream_comes_back(serving, serves):
    slot = next(slot.name for slot in look(serving).values() if slot.live)
    with users(serving) as clients:
        eventually(lambda: clients.tally.completed > 3, within_s=60, what="users are served")
        run_once(serving.host, ["kill", "-9", str(pid_in(serving, slot))])
        eventually(lambda: not answers(serving), within_s=30, what="it is down")
        eventually(lambda: answers(serving), within_s=150, what="it is back")
    assert clients.tally.failures  # it is said, not hidden
    assert answer(serving)[0] == serves


def killed_after(step: str, state_dir: Path, model: ServedModel) -> bool:
    """Start a roll-out, and kill -9 it as soon as it says that it does `step`; True when it ended before."""
    argv = [sys.executable, str(CONTROLLER), str(state_dir), json.dumps(asdict(model))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(step):
                process.kill()
                return False
            if line.startswith("serves"):
                return True
    assert process.returncode == 0
    return True
