"""People who use the model: threads that stream completions with the unmodified openai client, and count failures."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from mlops_sdk.errors import SettingsError

if TYPE_CHECKING:
    from openai import OpenAI

VERSION_HEADER = "x-mlops-model-version"
_TIMEOUT_S = 60.0


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the clients saw.

    Attributes:
        by_version: Completed streams for each model version that answered.
        failures: One line for each request that failed or whose stream broke off.
        first_token_s: Seconds to the first token of each request.
    """

    by_version: Counter[str] = field(default_factory=Counter[str])
    failures: list[str] = field(default_factory=list[str])
    first_token_s: list[float] = field(default_factory=list[float])

    @property
    def completed(self) -> int:
        """Streams that ended as they should."""
        return sum(self.by_version.values())

    def __str__(self) -> str:
        versions = ", ".join(f"{count} by version {version}" for version, count in sorted(self.by_version.items()))
        return f"{self.completed} streams completed ({versions or 'none'}), {len(self.failures)} failed"


class StreamingClients:
    """Clients that ask one completion after another, each in a thread of its own, until `stop`.

    No request is tried again: what fails is counted.

    Args:
        base_url: Of the proxy, as in ``http://10.84.1.30:8000``.
        model: The served name.
        prompts: What they send, round and round.
        clients: How many threads.
        pause_s: Between two requests of one client.
        max_tokens: Of each completion.

    Example:
        with StreamingClients("http://10.84.1.30:8000", "code-lm", prompts) as clients:
            ...
        print(clients.tally)
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        prompts: Sequence[str],
        *,
        clients: int = 2,
        pause_s: float = 1.0,
        max_tokens: int = 16,
    ) -> None:
        self.tally = Tally()
        self._model = model
        self._pause_s = pause_s
        self._max_tokens = max_tokens
        self._openai = _client(base_url)
        self._prompts = itertools.cycle(tuple(prompts))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, name=f"client-{i}", daemon=True) for i in range(clients)]

    def send_from_now_on(self, prompts: Sequence[str]) -> None:
        """Change what the clients send: their traffic becomes another kind."""
        with self._lock:
            self._prompts = itertools.cycle(tuple(prompts))

    def pause(self, seconds: float) -> None:
        """From now on each client rests this long between two requests."""
        self._pause_s = seconds

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def wait_for_version(self, version: str, *, timeout_s: float = 60.0) -> None:
        """Wait until this model version has answered somebody; or until the time is up, which the tally then shows."""
        deadline = time.monotonic() + timeout_s
        while not self.tally.by_version[version] and time.monotonic() < deadline:
            self._stop.wait(self._pause_s)

    def stop(self) -> Tally:
        """End after the streams that are open now; what was seen in all."""
        self._stop.set()
        for thread in self._threads:
            thread.join()  # idempotent
        return self.tally

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                prompt = next(self._prompts)
            self._ask(prompt)
            self._stop.wait(self._pause_s)

    def _ask(self, prompt: str) -> None:
        from httpx import HTTPError  # noqa: PLC0415 - extra [serve]
        from openai import OpenAIError  # noqa: PLC0415 - same

        began = time.monotonic()
        first = 0.0
        version = ""
        try:
            raw = self._openai.completions.with_raw_response.create(
                model=self._model, prompt=prompt, max_tokens=self._max_tokens, stream=True
            )
            version = raw.headers.get(VERSION_HEADER, "")
            finished = False
            for chunk in raw.parse():
                first = first or time.monotonic() - began
                finished = finished or any(choice.finish_reason for choice in chunk.choices)
        except (OpenAIError, HTTPError, OSError) as error:  # a stream that breaks off raises httpx's own kinds
            self._failed(f"version {version or '?'}: {type(error).__name__}: {error}")
            return
        if not finished:
            self._failed(f"version {version or '?'}: the stream broke off")
            return
        with self._lock:
            self.tally.by_version[version] += 1
            self.tally.first_token_s.append(first)

    def _failed(self, why: str) -> None:
        with self._lock:
            self.tally.failures.append(why)


def _client(base_url: str) -> OpenAI:
    try:
        from openai import OpenAI  # noqa: PLC0415 - extra [serve]
    except ImportError as error:
        raise SettingsError(
            "the package openai is not installed", next_step="install openinfra-mlops with its extra [serve]"
        ) from error
    return OpenAI(base_url=f"{base_url.rstrip('/')}/v1", api_key="none", max_retries=0, timeout=_TIMEOUT_S)
