"""Drift of served prompts: false alarms, delay until another kind of text is seen, and what profiling a prompt costs.

The reference is made of held-out text, as for a served model; the traffic is cut from the training part, which no
reference has seen. *Few files* is traffic of one person who works on three files: prompts that resemble each other.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import Goal, Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.report import Options
    from mlops_sdk.drift.detector import Verdict
    from mlops_sdk.drift.profile import Reference

_WINDOW = 50
_GOALS = {
    "false_alarms_per_window": Goal(op="<=", goal=0.001),
    "few_files_retrainings_per_window": Goal(op="<=", goal=0.001),
    "delay_prompts_p95": Goal(op="<=", goal=100),
    "added_us_per_prompt": Goal(op="<=", goal=200),
}


def run(options: Options) -> Report:
    """Measure on real text of two kinds; the model was trained on Python alone."""
    from mlops_pipelines.programs.code_lm.prompts import prompt_reference  # noqa: PLC0415 - `--list` needs no library

    windows = 400 if options.quick else 10_000
    print(f"prompts: {windows} windows of {_WINDOW} prompts; reference: held-out text, traffic: other text", flush=True)
    rng = random.Random(options.seed)  # noqa: S311 - draws windows, protects nothing
    traffic = _Traffic(prompt_reference(["python"]), rng, 4000 if options.quick else 20_000)
    figures = {
        **_alarms(traffic, windows),
        **_delay(traffic, 60 if options.quick else 300),
        **asyncio.run(_cost(traffic)),
    }
    for name, value in figures.items():
        print(f"{name:<36}{value:>12}")
    return Report(figures=figures, goals=_GOALS)


class _Traffic:
    """Prompts of both kinds, with their bins: a window is drawn from them without replacement."""

    def __init__(self, reference: Reference, rng: random.Random, prompts: int) -> None:
        from mlops_pipelines.programs.code_lm.sources import corpus_files, is_held_out  # noqa: PLC0415 - see above
        from mlops_sdk.drift.prompts import cut_prompts  # noqa: PLC0415

        self.reference, self.rng = reference, rng
        self.files = {
            kind: [f.text.decode() for f in corpus_files([kind]) if not is_held_out(f.path)] for kind in reference.kinds
        }
        self.prompts = {
            k: cut_prompts(texts, count=prompts, seed=rng.randrange(1000)) for k, texts in self.files.items()
        }
        self._rows = {kind: [reference.bins_of(text) for text in texts] for kind, texts in self.prompts.items()}

    def draw(self, kind: str, count: int) -> list[list[tuple[str, int]]]:
        return self.rng.sample(self._rows[kind], count)

    def few_files(self, files: int, count: int) -> list[list[tuple[str, int]]]:
        from mlops_sdk.drift.prompts import cut_prompts  # noqa: PLC0415

        chosen = self.rng.sample(self.files["python"], files)
        return [self.reference.bins_of(t) for t in cut_prompts(chosen, count=count, seed=self.rng.randrange(10**6))]

    def judge(self, rows: Sequence[list[tuple[str, int]]]) -> Verdict:
        from mlops_sdk.drift.detector import detect  # noqa: PLC0415
        from mlops_sdk.drift.profile import Counts  # noqa: PLC0415

        bins = {name: [0] * (len(edges) + 1) for name, edges in self.reference.edges.items()}
        for row in rows:
            for name, index in row:
                bins[name][index] += 1
        counts = Counts(prompts=len(rows), bins={name: tuple(row) for name, row in bins.items()})
        return detect(counts, self.reference)


def _alarms(traffic: _Traffic, windows: int) -> dict[str, float]:
    from mlops_sdk.drift.detector import State  # noqa: PLC0415

    same = [traffic.judge(traffic.draw("python", _WINDOW)) for _ in range(windows)]
    few = [traffic.judge(traffic.few_files(3, _WINDOW)) for _ in range(windows // 10)]
    half = _WINDOW // 2
    mixed = [traffic.judge([*traffic.draw("python", half), *traffic.draw("cpp", half)]) for _ in range(windows // 10)]
    other = [traffic.judge(traffic.draw("cpp", _WINDOW)) for _ in range(windows // 10)]
    return {
        "windows": windows,
        "false_alarms_per_window": statistics.mean(v.state is State.DRIFT for v in same),
        "few_files_alarms_per_window": statistics.mean(v.state is State.DRIFT for v in few),
        "few_files_retrainings_per_window": statistics.mean(bool(v.widen_to) for v in few),
        "half_cpp_seen_per_window": statistics.mean(bool(v.widen_to) for v in mixed),
        "all_cpp_seen_per_window": statistics.mean(bool(v.widen_to) for v in other),
    }


def _delay(traffic: _Traffic, changes: int) -> dict[str, float]:
    """C++ prompts until a training is called for; the change falls anywhere in a window, looks come every 5 prompts."""
    delays: list[int] = []
    for _ in range(changes):
        pending, sent, seen = traffic.draw("python", traffic.rng.randrange(_WINDOW)), 0, False
        while not seen:
            pending += traffic.draw("cpp", 5)
            sent += 5
            if len(pending) >= _WINDOW:
                seen, pending = bool(traffic.judge(pending).widen_to), []
        delays.append(sent)
    delays.sort()
    return {"delay_prompts_median": statistics.median(delays), "delay_prompts_p95": delays[int(len(delays) * 0.95)]}


async def _cost(traffic: _Traffic) -> dict[str, float]:
    """CPU microseconds per prompt of real length: features alone, and all that the middleware adds to a request."""
    from mlops_sdk.drift.features import features  # noqa: PLC0415

    texts = list(dict.fromkeys(traffic.prompts["python"]))
    bodies = [json.dumps({"model": "m", "prompt": t, "max_tokens": 16, "stream": True}).encode() for t in texts]
    began = time.process_time()
    for text in texts:
        features(text)
    alone = time.process_time() - began
    rounds = [await _round(traffic.reference, bodies) for _ in range(3)]
    return {
        "features_us_per_prompt": round(alone / len(texts) * 1e6, 1),
        "added_us_per_prompt": round(statistics.median(rounds), 1),
    }


async def _round(reference: Reference, bodies: Sequence[bytes]) -> float:
    from mlops_sdk.drift.middleware import PromptProfiler  # noqa: PLC0415
    from mlops_sdk.drift.recorder import MODEL_VERSION, PROFILE_DIR, PROFILE_REFERENCE  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "reference.json"
        known.write_bytes(reference.to_bytes())
        os.environ.update({PROFILE_DIR: folder, PROFILE_REFERENCE: str(known), MODEL_VERSION: "1"})
        without = await _seconds(_answer, bodies)
        return (await _seconds(PromptProfiler(_answer), bodies) - without) / len(bodies) * 1e6


async def _seconds(app: Any, bodies: Sequence[bytes]) -> float:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "headers": [(b"host", b"h"), (b"accept", b"*")],
    }

    async def send(_message: Any) -> None:
        return

    began = time.process_time()
    for body in bodies:
        message = {"type": "http.request", "body": body, "more_body": False}
        await app(scope, lambda message=message: _given(message), send)
    return time.process_time() - began


async def _given(message: Any) -> Any:
    return message


async def _answer(_scope: Any, receive: Any, send: Any) -> None:
    """Sixteen pieces, as a stream of as many tokens."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(16):
        await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b""})
