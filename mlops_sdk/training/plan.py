"""What a launcher needs to know to start one attempt. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlops_sdk.training.launch import Placement

PYTHON = "/opt/image/bin/python"
VARIABLE = "MLOPS_JOB_FILE"  # tells every process of a job where its job file is
NOTICE = "notice.json"  # beside the job file; has content while the job's lease is about to end
_FIRST_PORT = 29500
_PORTS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One attempt on prepared machines.

    Attributes:
        placement: Which rank runs where.
        run_key: Names the directory `/run/mlops/<run key>` on the machines.
        attempt: Its number.
        python_path: Directories of the bundle, first on the ranks' path.
        network: Network between the machines (``10.0.0.0/24``).
        env: The spec's additions to the environment.
    """

    placement: Placement
    run_key: str
    attempt: int
    python_path: tuple[str, ...]
    network: str
    env: Mapping[str, str]

    @property
    def directory(self) -> str:
        """The job's own directory on a machine; in memory, root only."""
        return job_directory(self.run_key)

    @property
    def master_address(self) -> str:
        """The machine of rank 0."""
        return self.placement.nodes[0].address

    @property
    def master_port(self) -> int:
        """Another one for each attempt: a socket of the former one may linger."""
        return _FIRST_PORT + self.attempt % _PORTS

    def environment(self) -> dict[str, str]:
        """The ranks' environment; nothing in it is secret."""
        return {
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **self.env,
            "PYTHONPATH": ":".join(self.python_path),
            VARIABLE: f"{self.directory}/job.json",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCommand:
    """What one machine does in an attempt. `argv` empty: it only guards the job's life line; files go there first."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, bytes]


def job_directory(run_key: str) -> str:
    """Where a job keeps its files on a machine."""
    return f"/run/mlops/{run_key}"
