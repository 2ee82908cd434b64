"""The stack on which `benchmarks.loop` runs its chains: started, given two more webhook routes, asked, ended."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import stamina
from pydantic import SecretStr

from benchmarks.loop_workload import DAGS, MODEL, REPOSITORIES
from mlops_sdk.airflow_rest import AirflowRest
from mlops_sdk.config import Settings
from mlops_sdk.errors import MlopsError, ServiceUnavailable
from mlops_sdk.local import control
from mlops_sdk.local.control import ServiceStatus
from mlops_sdk.local.layout import Layout
from mlops_sdk.local.process import StackProcess
from mlops_sdk.local.services.serving import ServingAccess
from mlops_sdk.registry.champion import read_champion
from mlops_sdk.serving.target import VllmTarget
from mlops_sdk.webhooks.config import WebhookSettings
from mlops_sdk.webhooks.inbox import Inbox
from mlops_sdk.webhooks.routing import run_id_of
from mlops_sdk.webhooks.send import Receiver, RefUpdate, deliver, push_payload

EXTRA_DAGS: Final = Path(__file__).parent / "loop_dags"
_ROUTED_LATE: Final = "airflow-db"  # what reads the routes starts after this
_OTHER_DAGS: Final = ("retrain_lm", "watch_lm", "report_leases")
_REF: Final = "refs/heads/main"
_START_TIMEOUT_S: Final = 400.0
_LOOK_S: Final = 0.1
_RUN_TIMEOUT_S: Final = 900.0
_TEST_KEPT: Final = "test_plan.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A running stack with the benchmark's DAGs, and a repository to push to."""

    layout: Layout
    airflow: AirflowRest
    settings: Settings
    target: VllmTarget
    repository: Path
    checkout: Path
    _heads: list[str] = field(default_factory=list[str])

    def commit(self) -> str:
        """A new commit in the repository: this checkout with one small test module of the program left."""
        if not self._heads:
            _clone(self.checkout, self.repository)
        text = f"Pushed at {time.time():.3f}"
        _git(self.checkout, "commit", "--quiet", "--allow-empty", "--message", text)
        _git(self.checkout, "push", "--quiet", "--force", str(self.repository), f"HEAD:{_REF}")
        self._heads.append(_git(self.checkout, "rev-parse", "HEAD").strip())
        return self._heads[-1]

    def deliver_push(self, chain: str) -> tuple[str, float]:
        """Commit and deliver the signed webhook; id of the run that it starts, and when the receiver stored it."""
        before = self._heads[-1] if self._heads else "0" * 40
        after, name = self.commit(), REPOSITORIES[chain]
        receiver = Receiver.load(self.layout.webhook_json)
        answer = deliver(receiver, "push", push_payload(RefUpdate(before=before, after=after, ref=_REF), name))
        key = str(answer["key"])
        inbox = Inbox(WebhookSettings.load(_webhook_settings(self.layout)).inbox_url.get_secret_value())
        try:
            received = inbox.find(key)[0].received_at.timestamp()
        finally:
            inbox.close()
        return run_id_of(name, after, key), received

    def emit(self, chain: str, asset: str, extra: dict[str, Any]) -> tuple[str, float]:
        """Record an event of an asset; id of the run that it starts, and when the event was about to be sent."""
        before = self._runs(chain)
        self.airflow.assets()  # logged in
        told = time.time()
        self.airflow.emit(asset, extra)
        return self._wait_for(lambda: next(iter(self._runs(chain) - before), ""), f"a run of {DAGS[chain]}"), told

    def finished(self, chain: str, run_id: str) -> None:
        """Wait until a run has ended well.

        Raises:
            MlopsError: it failed, or took too long.
        """
        dag = DAGS[chain]
        self._wait_for(lambda: run_id in self._runs(chain), f"run {run_id}")
        run = self.airflow.wait_for_run(dag, run_id, timeout_s=_RUN_TIMEOUT_S, every_s=0.5, patient=True)
        if run["state"] != "success":
            states = {task["task_id"]: task["state"] for task in self.airflow.tasks(dag, run_id)}
            failed = next((task for task, state in states.items() if state == "failed"), "")
            log = self.airflow.task_log(dag, run_id, failed)[-3000:] if failed else ""
            raise MlopsError(f"run {run_id!r} of {dag!r} failed", seen=f"{states}\n{log}", next_step="see its logs")

    def champion(self) -> str:
        """The version that serves, as MLflow knows it; empty before the first."""
        found = read_champion(self.settings.mlflow, MODEL)
        return str(found.version) if found else ""

    def ironic_log(self) -> str:
        """What Ironic's conductor has said."""
        return self.layout.log("ironic").read_text(encoding="utf-8", errors="replace")

    def _runs(self, chain: str) -> set[str]:
        return {str(run["dag_run_id"]) for run in self.airflow.dag_runs(DAGS[chain])}

    def _wait_for(self, what: Callable[[], Any], name: str, *, timeout_s: float = 60.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := self._patiently(what)):
            if time.monotonic() > deadline:
                raise ServiceUnavailable(f"{name} did not appear within {timeout_s:.0f} s", next_step="see Airflow")
            time.sleep(_LOOK_S)
        return found

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Airflow that has just started is busy with its database, and refuses then; ask again."""
        for trying in stamina.retry_context(on=ServiceUnavailable, attempts=5, timeout=None, wait_initial=0.5):
            with trying:
                return call()
        raise RuntimeError("stamina ended without a result or an error")

    def open(self) -> None:
        """Wait until Airflow knows the chains' DAGs, and keep those of the project from working beside them."""
        wanted = {*DAGS.values(), *_OTHER_DAGS}
        self._wait_for(
            lambda: wanted <= {str(dag["dag_id"]) for dag in self.airflow.dags()}, f"{sorted(wanted)}", timeout_s=90.0
        )
        for dag in _OTHER_DAGS:
            self._patiently(partial(self.airflow.pause, dag))
        for dag in DAGS.values():
            self._patiently(partial(self.airflow.unpause, dag))


@contextmanager
def stage(state_dir: Path | None = None) -> Generator[Stage]:
    """A stack of its own for the time of a block, in a temporary directory or the one given; nothing is left of it."""
    folder = state_dir or Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    stack = StackProcess(
        folder, hold=(_ROUTED_LATE,), environment={"MLOPS_AIRFLOW_EXTRA_DAGS": str(EXTRA_DAGS.absolute())}
    )
    try:
        stack.wait_ready(timeout_s=_START_TIMEOUT_S, changed=_tell)
        repository = folder / "loop" / "code.git"
        _add_routes(_webhook_settings(stack.layout), repository)
        control.release(stack.layout, _ROUTED_LATE)
        made = look(stack.layout)
        made.open()
        yield made
    finally:
        stack.stop()
        if state_dir is None:
            shutil.rmtree(folder, ignore_errors=True)


def look(layout: Layout) -> Stage:
    """The stage on a stack that runs."""
    access = json.loads(layout.airflow_json.read_text())
    return Stage(
        layout=layout,
        airflow=AirflowRest(access["url"], access["username"], SecretStr(access["password"])),
        settings=Settings.load(layout.client_toml),
        target=ServingAccess.load(layout).target(),
        repository=layout.state_dir / "loop" / "code.git",
        checkout=layout.state_dir / "loop" / "checkout",
    )


def _webhook_settings(layout: Layout) -> Path:
    return layout.data("git") / "webhook.toml"


def _add_routes(settings: Path, repository: Path) -> None:
    """Pushes to the benchmark's two repositories start its two DAGs."""
    with settings.open("a") as file:
        for chain, name in REPOSITORIES.items():
            route = {"clone_url": str(repository.absolute()), "dag_id": DAGS[chain], "ref": _REF}
            file.write(f"\n[routes.{json.dumps(name)}]\n")
            file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in route.items())


def _clone(checkout: Path, bare: Path) -> None:
    """The commit of this checkout, with few tests, and a bare repository to push it to."""
    shutil.rmtree(bare.parent, ignore_errors=True)
    bare.parent.mkdir(parents=True)
    _git(bare.parent, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    here = Path(__file__).parent.parent
    _git(bare.parent, "clone", "--quiet", "--no-hardlinks", "--", str(here), str(checkout))
    _git(checkout, "config", "user.name", "benchmark")
    _git(checkout, "config", "user.email", "benchmark@localhost")
    for test in (checkout / "tests" / "unit" / "code_lm").glob("test_*.py"):
        if test.name != _TEST_KEPT:
            test.unlink()
    _git(checkout, "commit", "--quiet", "--all", "--message", "Few tests")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MlopsError(f"git {arguments[0]} failed", seen=done.stderr[-500:], next_step="see what git says")
    return done.stdout


def _tell(service: ServiceStatus) -> None:
    if service.state in {"failed", "ready"}:
        print(f"  {service.name} {service.state} after {service.seconds:.0f} s", flush=True)
