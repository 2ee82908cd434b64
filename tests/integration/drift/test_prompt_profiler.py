"""The middleware in a real uvicorn: clients stream at once, everything is counted, nothing is changed or kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from mlops_sdk.drift.middleware import PROBE_HEADER, PromptProfiler
from mlops_sdk.drift.profile import Profile
from mlops_sdk.drift.recorder import MODEL_VERSION, PROFILE_DIR, PROFILE_REFERENCE
from support import eventually
from support_drift import reference, traffic

PIECES = 20


async def model(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Stands for the model: reads the body in pieces, streams back its hash, refuses what is no JSON."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message["body"]
        more = message.get("more_body", False)
    try:
        json.loads(body)
        status = 200
    except ValueError:
        status = 400
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/event-stream")]})
    for number in range(PIECES):
        await send({"type": "http.response.body", "body": f"data: {number}\n\n".encode(), "more_body": True})
        await asyncio.sleep(0.002)
    await send({"type": "http.response.body", "body": hashlib.sha256(body).hexdigest().encode(), "more_body": False})


@contextmanager
def served(app: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started, within_s=10)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "reference.json").write_bytes(reference("python").to_bytes())
    monkeypatch.setenv(PROFILE_DIR, str(tmp_path / "profiles"))
    monkeypatch.setenv(PROFILE_REFERENCE, str(tmp_path / "reference.json"))
    monkeypatch.setenv(MODEL_VERSION, "code-lm/7")
    return tmp_path / "profiles"


def stored(folder: Path) -> Profile:
    (path,) = folder.glob("*.json")
    return Profile.parse(path.read_bytes())


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def block(folder: Path) -> None:
    """A file where the folder was."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("in the way")


def unblock(folder: Path) -> None:
    folder.unlink()


async def ask(client: httpx.AsyncClient, body: bytes, *, path: str = "/v1/completions", probe: bool = False) -> str:
    headers = {"content-type": "application/json", **({PROBE_HEADER: "1"} if probe else {})}

    async def in_pieces() -> AsyncIterator[bytes]:
        step = max(97, len(body) // 10)
        for start in range(0, len(body), step):
            yield body[start : start + step]

    async with client.stream("POST", path, content=in_pieces(), headers=headers) as reply:
        lines = [line async for line in reply.aiter_lines() if line]
    assert lines[:PIECES] == [f"data: {number}" for number in range(PIECES)]
    assert lines[-1] == hashlib.sha256(body).hexdigest()  # the application saw exactly what was sent
    return str(reply.status_code)


async def test_concurrent_streams_are_untouched_and_all_counted(folder: Path) -> None:
    prompts = traffic("python", 120, seed=1)
    assert len(set(prompts)) == 120
    bodies = [json.dumps({"model": "m", "prompt": text, "stream": True}).encode() for text in prompts]
    with served(PromptProfiler(model)) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            assert set(await asyncio.gather(*(ask(client, body) for body in bodies))) == {"200"}
            await asyncio.to_thread(
                eventually, lambda: stored(folder).counts.prompts == 120, within_s=3, what="flushed while serving"
            )
            await ask(client, bodies[0])
    found = stored(folder)  # at shutdown
    assert found.counts == reference("python").count(prompts)
    assert (found.repeats, found.skipped, found.model_version) == (1, {}, "code-lm/7")
    assert found.reference == reference("python").sha256
    assert found.first_at
    assert found.last_at
    assert list(contents(folder)) == [f"code-lm-7-{found.instance}.json"]


async def test_what_is_no_prompt_passes_through_and_is_counted_as_that(folder: Path) -> None:
    chat = {
        "messages": [
            {"role": "user", "content": "an earlier question"},
            {"role": "assistant", "content": "an answer"},
            {"role": "user", "content": [{"type": "text", "text": "def f(x):"}, {"type": "image_url"}]},
        ]
    }
    with served(PromptProfiler(model)) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            assert await ask(client, b'{"prompt": "cut o') == "400"
            assert await ask(client, b"\xff\xfe") == "400"
            assert await ask(client, b'"text"') == "200"
            assert await ask(client, json.dumps({"prompt": [1, 2, 3]}).encode()) == "200"
            assert await ask(client, json.dumps({"prompt": ""}).encode()) == "200"
            assert await ask(client, b'{"prompt": "\\ud800 lone"}') == "200"
            assert await ask(client, json.dumps({"prompt": ["a = 1", "b = 2"]}).encode()) == "200"
            assert await ask(client, json.dumps(chat).encode(), path="/v1/chat/completions") == "200"
            assert await ask(client, json.dumps({"prompt": "x" * 1_100_000}).encode()) == "200"
            assert await ask(client, json.dumps({"prompt": "from the roll-out"}).encode(), probe=True) == "200"
            assert await ask(client, json.dumps({"prompt": "elsewhere"}).encode(), path="/v1/embeddings") == "200"
    found = stored(folder)
    assert found.skipped == {"malformed": 1, "tokens": 1, "no text": 1, "oversize": 1}
    assert found.counts == reference("python").count(["\ud800 lone", "a = 1", "b = 2", "def f(x):"])


async def test_neither_file_nor_log_holds_text_of_a_prompt(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    secret = "very_private_identifier"
    with served(PromptProfiler(model)) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            await ask(client, json.dumps({"prompt": f"{secret} = 1"}).encode())
            await ask(client, f'{{"prompt": "{secret}'.encode())
    assert stored(folder).counts.prompts == 1
    assert secret not in "".join(contents(folder).values())
    assert secret not in caplog.text


@pytest.mark.parametrize("trouble", ["no variable", "no reference", "damaged reference", "folder is a file"])
async def test_without_what_it_needs_it_serves_and_says_once_that_it_does_not_count(
    folder: Path, trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = folder.parent / "reference.json"
    if trouble == "no variable":
        monkeypatch.delenv(MODEL_VERSION)
    elif trouble == "no reference":
        known.unlink()
    elif trouble == "damaged reference":
        known.write_bytes(known.read_bytes()[:-20])
    else:
        block(folder)
    with served(PromptProfiler(model)) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            assert await ask(client, b'{"prompt": "x"}') == "200"
    assert sum("prompts are not profiled" in line for line in caplog.messages) == 1


async def test_a_disk_that_fails_while_serving_costs_counts_not_answers(folder: Path) -> None:
    with served(PromptProfiler(model)) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            block(folder)
            assert await ask(client, b'{"prompt": "first"}') == "200"
            await asyncio.sleep(1.2)  # the flush in between, which fails
            unblock(folder)
            assert await ask(client, b'{"prompt": "second"}') == "200"
    assert stored(folder).counts.prompts == 2
