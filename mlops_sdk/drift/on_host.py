"""The prompt profiler as a roll-out sends it to the serving host: modules, reference and settings."""

from __future__ import annotations

from importlib import resources

from mlops_sdk.drift.profile import Reference
from mlops_sdk.drift.recorder import PROFILE_REFERENCE
from mlops_sdk.serving.vllm import Middleware

_REFERENCE = "prompt_reference.json"
_CLASS = "mlops_sdk.drift.middleware.PromptProfiler"
_MODULES = (
    "__init__.py",
    "canonical.py",
    "errors.py",
    "drift/__init__.py",
    "drift/features.py",
    "drift/middleware.py",
    "drift/profile.py",
    "drift/recorder.py",
)


def profiles_folder(root: str) -> str:
    """Where the counters are on a serving host, by version, below the folder that serving uses there."""
    return f"{root.rstrip('/')}/profiles"


def prompt_profiler(reference: Reference) -> Middleware:
    """What a roll-out needs to have the prompts of a model counted over its reference's bins.

    Example:
        >>> Options(middleware=prompt_profiler(get_reference(store, sha256)))
    """
    package = resources.files("mlops_sdk")
    modules = {f"mlops_sdk/{name}": package.joinpath(name).read_bytes() for name in _MODULES}
    return Middleware(
        path=_CLASS,
        files={**modules, _REFERENCE: reference.to_bytes()},
        environment={PROFILE_REFERENCE: _REFERENCE},
    )
