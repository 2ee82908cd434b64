"""Real text of two kinds for the tests of drift: Python's standard library, and the C++ headers in the torch wheel."""

from __future__ import annotations

import functools
import importlib.util
import sysconfig
from datetime import UTC, datetime
from pathlib import Path

from mlops_sdk.drift.profile import Profile, Reference, build_reference
from mlops_sdk.drift.prompts import cut_prompts


@functools.cache
def python_texts() -> list[str]:
    """Some hundred modules, in path order."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [*sorted(folder.glob("*.py")), *sorted(folder.glob("asyncio/*.py")), *sorted(folder.glob("email/*.py"))]
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


@functools.cache
def cpp_texts() -> list[str]:
    """Some hundred headers, in path order."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "include"
    paths = [*sorted(folder.glob("c10/**/*.h")), *sorted(folder.glob("torch/csrc/jit/**/*.h"))]
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


def reference_texts(texts: list[str]) -> list[str]:
    """The half that references are made of."""
    return texts[::2]


def traffic_texts(texts: list[str]) -> list[str]:
    """The other half: what users send."""
    return texts[1::2]


@functools.cache
def reference(*trained: str) -> Reference:
    """A reference that knows both kinds."""
    prompts = {
        "python": cut_prompts(reference_texts(python_texts()), count=1500),
        "cpp": cut_prompts(reference_texts(cpp_texts()), count=1500),
    }
    return build_reference(prompts, trained=trained)


def traffic(kind: str, count: int, *, seed: int) -> list[str]:
    """Prompts that users send, of text that no reference was made of."""
    texts = {"python": python_texts, "cpp": cpp_texts}[kind]()
    return cut_prompts(traffic_texts(texts), count=count, seed=1000 + seed)


def profile_of(known: Reference, prompts: list[str], *, instance: str, version: str = "1") -> Profile:
    """What a serving process has counted that was sent these prompts."""
    return Profile(
        model_version=version,
        instance=instance,
        reference=known.sha256,
        counts=known.count(prompts),
        started_at=datetime(2026, 3, 1, tzinfo=UTC),
    )
