"""The command line and environment of one vLLM instance. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlops_sdk.serving.target import Engine, ServedModel, VllmTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Middleware:
    """An ASGI middleware inside vLLM.

    Attributes:
        path: As vLLM's ``--middleware`` wants it.
        files: Modules to send along, by path below the library folder; standard library only.
        environment: What it is told.
    """

    path: str
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


def instance(
    target: VllmTarget,
    model: ServedModel,
    *,
    slot: str,
    sha256: str,
    middleware: Middleware | None = None,
    lib: str = "",
) -> dict[str, Any]:
    """What the host's keeper starts and keeps running.

    It answers to ``name@version`` and to the model's name. vLLM puts the first into every answer, so each says which
    version it came from.

    Args:
        target: The host.
        model: What to serve.
        slot: Where.
        sha256: Hash of the manifest of the files.
        middleware: To load.
        lib: Folder on the host with the middleware's modules.
    """
    folder = target.path("models", model_folder(sha256))
    return {
        "model": model.name,
        "version": model.version,
        "sha256": sha256,
        "folder": folder,
        "port": target.ports[slot],
        "argv": _argv(target, model, folder, target.ports[slot], middleware),
        "env": _environment(target, model, middleware, lib),
        "folders": [target.path("cache"), target.path("profiles", model.version)],
    }


def model_folder(sha256: str) -> str:
    """The name of a model's folder on the host: its content decides, so two versions with equal files share it."""
    return sha256[:32]


def _argv(target: VllmTarget, model: ServedModel, folder: str, port: int, middleware: Middleware | None) -> list[str]:
    engine = target.engine
    argv = [target.python, "-m", "vllm.entrypoints.cli.main", "serve", folder]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", model.exact_name, model.name]
    argv += ["--dtype", engine.dtype, "--shutdown-timeout", str(engine.shutdown_timeout_s)]
    argv += ["--disable-uvicorn-access-log", "--no-enable-log-requests"]  # prompts belong into no log
    argv += ["--max-model-len", str(engine.max_model_len)] * bool(engine.max_model_len)
    argv += ["--max-num-seqs", str(engine.max_num_seqs)] * bool(engine.max_num_seqs)
    argv += ["--kv-cache-memory-bytes", engine.kv_cache] * bool(engine.kv_cache)
    argv += ["--distributed-executor-backend", "uni"] * engine.one_process
    argv += ["--enforce-eager"] * engine.enforce_eager
    argv += ["--middleware", middleware.path] if middleware else []
    return [*argv, *engine.arguments]


def _environment(target: VllmTarget, model: ServedModel, middleware: Middleware | None, lib: str) -> dict[str, str]:
    engine: Engine = target.engine
    return {
        "PATH": f"{target.python.rpartition('/')[0]}:/usr/local/bin:/usr/bin:/bin",
        "HOME": target.path("cache"),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": target.path("cache", "vllm"),
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        **({"OMP_NUM_THREADS": str(engine.threads)} if engine.threads else {}),
        # vLLM makes a process of its own for the worker of a CPU, unless told this
        **({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if engine.one_process else {}),
        **({"PYTHONPATH": lib} if middleware and lib else {}),
        **({"MLOPS_PROFILE_DIR": target.path("profiles", model.version)} if middleware else {}),
        "MLOPS_MODEL_VERSION": model.version,
        **(middleware.environment if middleware else {}),
        **engine.environment,
    }
