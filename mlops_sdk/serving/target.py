"""A place where models are served: an SSH host with vLLM behind haproxy, and how vLLM is run there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

from mlops_sdk.remote.ssh import Host

SLOTS = ("blue", "green")


class Engine(BaseModel):
    """How vLLM runs. The defaults are vLLM's own, for a host with a GPU; `for_cpu` is for a small one without.

    Attributes:
        dtype: Of the weights; ``auto`` takes the model's own.
        max_model_len: Longest sequence in tokens; 0: the model's own.
        max_num_seqs: Sequences in one batch; 0: vLLM's choice.
        threads: OpenMP threads; 0: vLLM's choice.
        kv_cache: Memory for the cache, as in ``256M``; empty: vLLM's choice.
        one_process: Run the model in the engine's process instead of one more (a CPU host with one worker).
        enforce_eager: Neither compile nor capture graphs.
        shutdown_timeout_s: For requests in flight, after SIGTERM.
        keep_profiles_days: How long the counted prompts of a version stay on the host after it has served.
        arguments: More of vLLM's command line.
        environment: More of its environment. No secrets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str = "auto"
    max_model_len: int = Field(default=0, ge=0)
    max_num_seqs: int = Field(default=0, ge=0)
    threads: int = Field(default=0, ge=0)
    kv_cache: str = ""
    one_process: bool = False
    enforce_eager: bool = False
    shutdown_timeout_s: int = Field(default=60, ge=0)
    keep_profiles_days: float = Field(default=30.0, gt=0)
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = Field(default_factory=dict[str, str])

    @classmethod
    def for_cpu(cls, *, threads: int = 1) -> Engine:
        """For a small model on few cores: OpenMP threads spin, so one is faster than two that share two cores."""
        return cls(
            max_num_seqs=16,
            threads=threads,
            kv_cache="128M",
            one_process=True,
            enforce_eager=True,
            environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmTarget:
    """Where to deploy.

    Attributes:
        host: The SSH host.
        base_url: Of the proxy, as users reach it.
        root: Folder on the host, ours alone: models, slots, the proxy's files.
        python: Interpreter on the host that has vLLM.
        haproxy_socket: haproxy's runtime API on the host.
        ports: Of the slots `blue` and `green`, on the host's loopback.
        engine: How vLLM runs there.
    """

    host: Host
    base_url: str
    root: str
    python: str
    haproxy_socket: str
    ports: Mapping[str, int]
    engine: Engine = field(default_factory=Engine)

    @property
    def proxy_folder(self) -> str:
        """Where haproxy's backend and the map of versions are: beside its socket."""
        return str(PurePosixPath(self.haproxy_socket).parent)

    def path(self, *parts: str) -> str:
        """Below `root`."""
        return str(PurePosixPath(self.root, *parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What to serve.

    Attributes:
        name: By which users ask for it.
        version: Of the registered model.
        prefix: Where its files are in the bucket.
        sha256: Hash of their manifest; empty: whatever is there.
    """

    name: str
    version: str
    prefix: str
    sha256: str = ""

    @property
    def exact_name(self) -> str:
        """By which only this version answers."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A model that serves: what the proxy's users reach."""

    endpoint: str
    model: str
    version: str
    slot: str

    def to_json(self) -> dict[str, str]:
        """For XCom."""
        return {"endpoint": self.endpoint, "model": self.model, "version": self.version, "slot": self.slot}
