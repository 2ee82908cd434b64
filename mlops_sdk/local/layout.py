"""Where a stack keeps its files, and where the tools it starts are found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlops_sdk
from mlops_sdk.errors import StackError

DEFAULT_STATE_DIR = Path(".mlops/stacks/default")
COMPUTE = "compute"  # the one profile beside the usual services: Nova and what it needs
_LONGEST_STATE_DIR = 80  # a Unix socket's path has 108 bytes, and the longest one lies some 20 below
_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # what /usr/sbin has insists on a user of its own
_SYSTEM_TOOLS = (
    *("unshare", "nsenter", "setpriv", "ip", "nft", "sshd", "haproxy"),
    *("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph-authtool", "monmaptool"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The files of one stack. `state_dir` is absolute."""

    state_dir: Path

    @classmethod
    def at(cls, state_dir: Path) -> Layout:
        """The layout of a state directory, which need not exist yet."""
        absolute = state_dir.absolute()
        if len(str(absolute)) > _LONGEST_STATE_DIR:
            raise StackError(
                f"the state directory {str(absolute)!r} has too long a path",
                seen=f"{len(str(absolute))} characters; Unix sockets below it allow {_LONGEST_STATE_DIR}",
                next_step="choose a directory with a shorter path",
            )
        return cls(state_dir=absolute)

    @property
    def tag(self) -> str:
        """Eight hexadecimal digits that name this stack's interfaces and namespaces."""
        return hashlib.sha256(str(self.state_dir).encode()).hexdigest()[:8]

    @property
    def client_toml(self) -> Path:
        """Settings of the user and broker."""
        return self.state_dir / "client.toml"

    @property
    def reaper_toml(self) -> Path:
        """Settings of the reaper, which has a credential of its own."""
        return self.state_dir / "reaper.toml"

    @property
    def reaper_figures(self) -> Path:
        """What the reaper tells Prometheus."""
        return self.state_dir / "reaper.prom"

    @property
    def admin_json(self) -> Path:
        """What operators and tests need: administrator, second tenant, addresses."""
        return self.state_dir / "admin.json"

    @property
    def serving_json(self) -> Path:
        """How to reach the serving host, with its client key."""
        return self.state_dir / "serving.json"

    @property
    def airflow_json(self) -> Path:
        """Airflow's address, user and password."""
        return self.state_dir / "airflow.json"

    @property
    def webhook_json(self) -> Path:
        """Where deliveries go and what signs them."""
        return self.state_dir / "webhook.json"

    @property
    def compute_json(self) -> Path:
        """What the compute profile offers: flavors, image, network."""
        return self.state_dir / "compute.json"

    @property
    def ports_json(self) -> Path:
        """Ports and subnet, chosen once."""
        return self.state_dir / "ports.json"

    @property
    def secrets_json(self) -> Path:
        """Passwords and keys, chosen once."""
        return self.state_dir / "secrets.json"

    @property
    def lock(self) -> Path:
        """Locked by whoever runs this stack; names the holder."""
        return self.state_dir / "run" / "lock"

    @property
    def status_json(self) -> Path:
        """What the supervisor last said about each service."""
        return self.state_dir / "run" / "status.json"

    @property
    def control_socket(self) -> Path:
        """Where the supervisor takes orders."""
        return self.state_dir / "run" / "control.sock"

    def log(self, service: str) -> Path:
        """The log file of a service."""
        return self.state_dir / "logs" / f"{service}.log"

    def data(self, service: str) -> Path:
        """The data directory of a service."""
        return self.state_dir / service

    def create(self) -> None:
        """Make the directories, readable by their owner only."""
        for folder in (self.state_dir, self.state_dir / "run", self.state_dir / "logs"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What the stack starts but does not contain.

    Attributes:
        home: The repository: holds ``infra/`` and ``.mlops/``.
        openstack_python: Interpreter of the environment with Ironic and Keystone.
        node_image: The Python environment that machines see read-only.
        vllm_image: The Python environment that the serving host sees read-only.
        compute_python: Interpreter of the environment with Nova and what it needs; only the compute profile has it.
    """

    home: Path
    openstack_python: Path
    node_image: Path
    vllm_image: Path
    compute_python: Path

    @classmethod
    def find(cls) -> Tools:
        """Look in the repository (``MLOPS_HOME``, else around the installed package) and on PATH.

        Raises:
            StackError: when something is missing; it names what and how to get it.
        """
        home = Path(os.environ.get("MLOPS_HOME") or Path(mlops_sdk.__file__).parent.parent).absolute()
        if not (home / "infra" / "local").is_dir():
            raise StackError(
                f"{str(home)!r} is not a checkout of the repository: it has no infra/local",
                next_step="install the package in editable mode from a checkout, or point MLOPS_HOME at one",
            )
        python = os.environ.get("MLOPS_OPENSTACK_PYTHON") or home / ".mlops/envs/openstack/bin/python"
        image = os.environ.get("MLOPS_NODE_IMAGE") or home / ".mlops/images/train"
        vllm = os.environ.get("MLOPS_VLLM_IMAGE") or home / ".mlops/envs/vllm"
        compute = os.environ.get("MLOPS_COMPUTE_PYTHON") or home / ".mlops/envs/compute/bin/python"
        tools = cls(
            home=home,
            openstack_python=Path(python),
            node_image=Path(image),
            vllm_image=Path(vllm),
            compute_python=Path(compute),
        )
        tools._check()
        return tools

    def infra(self, *parts: str) -> Path:
        """A file below ``infra/local``."""
        return self.home.joinpath("infra", "local", *parts)

    @property
    def rabbitmq(self) -> Path:
        """The message broker's program."""
        return _RABBITMQ

    def check_profiles(self, profiles: Iterable[str]) -> None:
        """Refuse a profile that there is not, or that was not set up here.

        Raises:
            StackError: it names what is missing.
        """
        wanted = set(profiles)
        if not wanted <= {COMPUTE}:
            raise StackError(
                f"the stack has no profile {sorted(wanted - {COMPUTE})}", next_step=f"there is {COMPUTE!r}, or none"
            )
        if COMPUTE in wanted:
            self._check_compute()

    def _check_compute(self) -> None:
        missing = [str(path) for path in (self.compute_python, self.rabbitmq) if not path.exists()]
        missing += [tool for tool in ("epmd",) if shutil.which(tool) is None]
        if missing:
            raise StackError(
                "the compute profile of the embedded stack is not set up",
                seen=f"missing: {', '.join(missing)}",
                next_step="run `make setup-compute`",
            )

    def _check(self) -> None:
        missing = [str(path) for path in (self.openstack_python, self.node_image, self.vllm_image) if not path.exists()]
        missing += [tool for tool in _SYSTEM_TOOLS if shutil.which(tool) is None]
        if missing:
            raise StackError(
                "the embedded stack is not set up",
                seen=f"missing: {', '.join(missing)}",
                next_step="run `make setup`",
            )


def write_private(path: Path, text: str) -> None:
    """Write a file atomically, readable by its owner only from the first byte on."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    scratch.replace(path)


def write_private_json(path: Path, value: Any) -> None:
    """`write_private` of a value as indented JSON."""
    write_private(path, json.dumps(value, indent=1, sort_keys=True) + "\n")
