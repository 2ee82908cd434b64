"""Profiles the prompts that vLLM serves: ``vllm serve --middleware mlops_sdk.drift.middleware.PromptProfiler``.

A pure ASGI middleware that looks on: what a client sends and gets passes through unchanged and unbuffered, and nothing
that goes wrong in here reaches a request. Settings are the environment variables named in `mlops_sdk.drift.recorder`.
The standard library only: it runs in the serving environment, where nothing else of ours is.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, cast

from mlops_sdk.drift.recorder import Recorder

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PROBE_HEADER = "x-mlops-probe"
_LOG = logging.getLogger("mlops.drift")
_PATHS = ("/v1/completions", "/v1/chat/completions")
_LARGEST = 1024 * 1024
_OK, _NOT_OK = 200, 300


class PromptProfiler:
    """Counts the prompts of completions that were answered with success.

    Not counted: requests with the header ``x-mlops-probe`` (the roll-out's own), prompts given as token ids, bodies
    over 1 MiB, and what the server refused. Of a chat only the newest message of the user counts; the earlier ones
    were counted when they came.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._recorder = Recorder.from_environment(os.environ)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request, or the server's life."""
        if self._recorder is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, self._flush_at_shutdown(receive, self._recorder), send)
        elif _is_wanted(scope):
            watched = _Exchange(self._recorder, receive, send)
            await self._app(scope, watched.receive, watched.send)
        else:
            await self._app(scope, receive, send)

    def _flush_at_shutdown(self, receive: Receive, recorder: Recorder) -> Receive:
        async def watched() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                try:
                    recorder.flush()
                except OSError as error:
                    _LOG.warning("the last profile of prompts was not written: %s", error)
            return message

        return watched


class _Exchange:
    """One request, looked at as it passes."""

    def __init__(self, recorder: Recorder, receive: Receive, send: Send) -> None:
        self._recorder, self._receive, self._send = recorder, receive, send
        self._chunks: list[bytes] = []
        self._size = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            chunk: bytes = message.get("body", b"")
            self._size += len(chunk)
            if self._size <= _LARGEST:
                self._chunks.append(chunk)
            else:
                self._chunks.clear()
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            if _OK <= int(message["status"]) < _NOT_OK:
                self._count()
            self._chunks.clear()

    def _count(self) -> None:
        try:
            found = "oversize" if self._size > _LARGEST else prompts_of(b"".join(self._chunks))
            if isinstance(found, str):
                self._recorder.skip(found)
            else:
                self._recorder.add(found)
        except Exception as error:  # noqa: BLE001 - a request must not fail, whatever went wrong in counting it
            _LOG.warning("a prompt was not counted: %s", type(error).__name__)  # not its text: it may quote the prompt


def prompts_of(body: bytes) -> list[str] | str:
    """The prompts in the body of a completion or chat completion request, or why there is none to count."""
    try:
        data: Any = json.loads(body)
    except (ValueError, RecursionError):
        return "malformed"
    if not isinstance(data, dict):
        return "malformed"
    request = cast("dict[str, Any]", data)
    if "messages" in request:
        text = _newest_of_user(request["messages"])
        return [text] if text else "no text"
    prompt = request.get("prompt")
    texts = _texts([prompt] if isinstance(prompt, str) else prompt)
    if texts:
        return texts
    return "tokens" if prompt else "no text"


def _newest_of_user(messages: object) -> str:
    for message in reversed(_dicts(messages)):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            return "\n".join(_texts([part.get("text") for part in _dicts(content)]))
    return ""


def _texts(values: object) -> list[str]:
    if not isinstance(values, list):
        return []
    return [value for value in cast("Sequence[object]", values) if isinstance(value, str) and value]


def _dicts(values: object) -> list[dict[str, Any]]:
    if not isinstance(values, list):
        return []
    return [cast("dict[str, Any]", v) for v in cast("Sequence[object]", values) if isinstance(v, dict)]


def _is_wanted(scope: MutableMapping[str, Any]) -> bool:
    if scope["type"] != "http" or scope.get("method") != "POST":
        return False
    if not str(scope.get("path", "")).rstrip("/").endswith(_PATHS):
        return False
    return all(name.lower() != PROBE_HEADER.encode() for name, _ in scope.get("headers", ()))
