"""Fixtures that every test may use: the embedded stack, and unit tests that cannot reach a network."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import openstack
import openstack.exceptions
import pytest
from pydantic import SecretStr

import support_leaks
from mlops_sdk.airflow_rest import AirflowRest
from mlops_sdk.config import Settings
from mlops_sdk.local import control
from mlops_sdk.local.addresses import choose_or_load
from mlops_sdk.local.isolation import members
from mlops_sdk.local.layout import Layout
from mlops_sdk.local.process import StackProcess
from mlops_sdk.local.services.serving import ServingAccess
from mlops_sdk.serving.deploy import withdraw
from mlops_sdk.serving.target import VllmTarget
from support import eventually, operator_of, take_back_everything, tell
from support_compute import ComputeHandle, compute_stack

REPOSITORY = Path(__file__).parent.parent
# Most test processes need no Airflow: it starts when the fixture `airflow` is first asked for.
HELD = ("airflow-db",)
ENVIRONMENT = {"MLOPS_AIRFLOW_EXTRA_DAGS": str(REPOSITORY / "tests" / "stack_dags")}
_START_TIMEOUT_S = 240.0


_SCHEDULES = "unit/leaks/test_drawn_schedules.py"
_FOLDER = pytest.StashKey[Path]()
_PLAYER = pytest.StashKey["subprocess.Popen[bytes]"]()


def pytest_configure(config: pytest.Config) -> None:
    """Test processes inherit where the drawn schedules are played (see `support_leaks`)."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.stash[_FOLDER] = Path(tempfile.mkdtemp(prefix="mlops-schedules-"))
        os.environ[support_leaks.FOLDER] = str(config.stash[_FOLDER])


def pytest_collection_finish(session: pytest.Session) -> None:
    """One process: it knows its tests."""
    _play(session.config, [item.nodeid for item in session.items])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    """Several processes: each of them knows all tests, and says so to the one that leads."""
    _play(node.config, ids)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nothing of it stays."""
    if player := config.stash.get(_PLAYER, None):
        support_leaks.stop(player)
    if folder := config.stash.get(_FOLDER, None):
        shutil.rmtree(folder)


def _play(config: pytest.Config, ids: Sequence[str]) -> None:
    leads = _FOLDER in config.stash and not config.option.collectonly
    if leads and _PLAYER not in config.stash and any(_SCHEDULES in each for each in ids):
        config.stash[_PLAYER] = support_leaks.start(config.stash[_FOLDER])


@dataclass(frozen=True, slots=True, kw_only=True)
class StackHandle:
    """The running stack of this test session.

    `settings` are the user's and broker's, `reaper_settings` the reaper's, `admin` the content of admin.json.
    """

    layout: Layout
    pid: int
    bridge_address: str
    settings: Settings
    reaper_settings: Settings
    admin: dict[str, Any]

    @property
    def state_dir(self) -> Path:
        """Where it keeps everything."""
        return self.layout.state_dir

    def held(self, service: str) -> AbstractContextManager[None]:
        """Within the block, this service is down (its port refuses connections)."""
        return control.held(self.layout, service)


@pytest.fixture(scope="session")
def stack() -> Iterator[StackHandle]:
    """The embedded stack, started once per test process; what cannot start fails the tests that asked for it."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    chosen = Path(os.environ.get("MLOPS_TEST_STACK") or REPOSITORY / ".mlops" / "stacks" / "test")
    layout = Layout.at(chosen.with_name(f"{chosen.name}-{worker}" if worker else chosen.name))
    process = StackProcess(layout.state_dir, hold=HELD, faults=True, environment=ENVIRONMENT)
    try:
        process.wait_ready(timeout_s=_START_TIMEOUT_S, changed=tell)
        admin = json.loads(layout.admin_json.read_text())
        take_back_everything(operator_of(admin), owner=admin["projects"]["ml-research"])
        yield StackHandle(
            layout=layout,
            pid=process.pid,
            bridge_address=choose_or_load(layout).gateway,
            settings=Settings.load(layout.client_toml),
            reaper_settings=Settings.load(layout.reaper_toml),
            admin=admin,
        )
        inside = members(process.pid)
    finally:
        process.stop()
    assert_nothing_left(layout, inside)


@pytest.fixture(scope="session")
def compute() -> Iterator[ComputeHandle]:
    """An embedded stack with Nova (what `make setup-compute` installs) and without Ironic, once per test process."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    name = f"compute-{worker}" if worker else "compute"
    with compute_stack(REPOSITORY / ".mlops" / "stacks" / name, only=("compute",)) as handle:
        yield handle


@dataclass(frozen=True, slots=True, kw_only=True)
class AirflowHandle:
    """Airflow of the running stack. `access` is the content of airflow.json, `webhook` that of webhook.json."""

    rest: AirflowRest
    access: dict[str, str]
    webhook: dict[str, Any]

    def run(self, dag_id: str, conf: dict[str, Any] | None = None, *, timeout_s: float = 120) -> dict[str, Any]:
        """Start a run, wait until it has ended, and return it."""
        run_id = self.start(dag_id, conf)
        return self.rest.wait_for_run(dag_id, run_id, timeout_s=timeout_s)

    def start(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Start a run of a DAG, which is unpaused; its id."""
        run_id = f"test-{uuid.uuid4()}"
        self.rest.unpause(dag_id)
        assert self.rest.trigger(dag_id, run_id, conf or {})
        return run_id

    def wait_for_run(self, dag_id: str, run_id: str, *, timeout_s: float = 120) -> dict[str, Any]:
        """Wait until a run has ended; Airflow may be away in between."""
        return self.rest.wait_for_run(dag_id, run_id, timeout_s=timeout_s, patient=True)

    def wait_for_task(
        self, dag_id: str, run_id: str, task_id: str, *states: str, timeout_s: float = 60
    ) -> dict[str, Any]:
        """Wait until a task of a run is in one of the states."""
        eventually(
            lambda: self.rest.task(dag_id, run_id, task_id)["state"] in states,
            within_s=timeout_s,
            what=f"{task_id} of {run_id} is {states}",
        )
        return self.rest.task(dag_id, run_id, task_id)


@pytest.fixture(scope="session")
def airflow(stack: StackHandle) -> AirflowHandle:
    """Airflow and what needs it, started when a test of this process first asks; it loads tests/stack_dags too."""
    control.release(stack.layout, "airflow-db")
    access = json.loads(stack.layout.airflow_json.read_text())
    rest = AirflowRest(access["url"], access["username"], SecretStr(access["password"]))
    files = {path.stem for folder in ("dags", "tests/stack_dags") for path in (REPOSITORY / folder).glob("*.py")}

    def all_seen() -> bool:  # a file that cannot be imported is for a test to tell
        loaded = {dag["relative_fileloc"] for dag in rest.dags()} | {e["filename"] for e in rest.import_errors()}
        return files <= {Path(name).stem for name in loaded}

    eventually(all_seen, within_s=60, what=f"{sorted(files)} are read")
    return AirflowHandle(rest=rest, access=access, webhook=json.loads(stack.layout.webhook_json.read_text()))


@pytest.fixture(scope="session")
def serving(stack: StackHandle) -> Iterator[VllmTarget]:
    """The serving host, with nothing on it at first; what the tests rolled out is ended with the session."""
    target = ServingAccess.load(stack.layout).target()
    asyncio.run(withdraw(target))
    yield target
    asyncio.run(withdraw(target))


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """For a stack of the test's own. Short: Unix sockets below it have paths of at most 108 bytes."""
    path = Path(f"/tmp/mlops-test-{os.getpid()}")  # noqa: S108 - named by our own process id, removed below
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def settings(stack: StackHandle) -> Settings:
    """The user's settings of the running stack."""
    return stack.settings


@pytest.fixture
def admin(stack: StackHandle) -> dict[str, Any]:
    """The operator's view of the running stack (admin.json)."""
    return stack.admin


@pytest.fixture(scope="session")
def operator(stack: StackHandle) -> openstack.connection.Connection:
    """Who owns the cloud: a system-scoped administrator."""
    return operator_of(stack.admin)


@pytest.fixture
def fault(operator: openstack.connection.Connection) -> Iterator[Callable[..., None]]:
    """Lets every machine fail as told (see the deploy interface `machine-faults`); all are healed at the end.

    Example: ``fault(deploy="no-boot")``.
    """
    api = operator.baremetal

    def patch(node_id: str, faults: dict[str, str]) -> bool:
        try:
            api.patch_node(node_id, [{"op": "add", "path": "/extra/fault", "value": faults}])
        except openstack.exceptions.ConflictException:  # the conductor holds it
            return False
        return True

    def inject(**faults: str) -> None:
        for node in api.nodes():
            if node.provision_state == "wait call-back":
                continue  # Ironic changes no node that waits; this one is aborted, or healed at the end
            eventually(partial(patch, node.id, faults), within_s=30, what=f"{node.name} takes {faults}")

    yield inject
    inject()


@pytest.fixture(autouse=True)
def _no_network_in_unit_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test that connects anywhere is not one."""
    if not request.path.is_relative_to(REPOSITORY / "tests" / "unit"):
        return

    def refuse(_self: socket.socket, address: object) -> None:
        pytest.fail(f"a unit test tried to connect to {address!r}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)


def assert_nothing_left(layout: Layout, inside: list[int]) -> None:
    """No process of the stack, no lock, and no interface with its tag."""
    assert control.leftovers(layout, inside) == []
