"""Ten thousand waits in the real triggerer on PostgreSQL: our shared poller against one poll a node.

*shared*: `MachinesTrigger`, the wait of `WaitForMachinesOperator`; `ProvisionTrigger` waits by the same poller.

*per node*: the same trigger and the same client, but each asks for its own machine once a period. It runs at a size
that one process can bear; its calls are extrapolated to ours in proportion: one call a node and period.

Both run in `airflow triggerer`, unchanged, with its tables on a PostgreSQL server of their own. The rows are written by
Airflow's models: one DAG run with as many mapped instances of one deferred task, each with a trigger. The cloud is a
process that speaks HTTP like Keystone and Ironic and lets machines become ready at times that a script says.

- *event delay*: from that time until Airflow has told the task to go on, by its own column `scheduled_dttm`,
- *seen*: from that time until the trigger knew: what a poll is responsible for; the rest is the triggerer's,
- *loop lag*: how late a sleep of 10 ms ends in the event loop that runs all triggers,
  while machines change; apart from that while the triggerer starts them all,
- *calls*: lists and reads that the cloud has answered while machines changed, per second; logins and renewals apart,
- *memory*: the sum of PSS over the triggerer's processes, while all wait.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.postgres import Postgres, postgres
from benchmarks.pss import Sampler
from benchmarks.report import Goal, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from benchmarks.report import Options

_PERIOD_S: Final = 2.0
_DEPLOYMENT: Final = "6f1c3d1e-0000-4000-8000-00000000beef"
_START_WITHIN_S: Final = 480.0
_WITHIN_S: Final = 60.0  # of the last change: then what has not arrived is an error
_SETTLE_S: Final = 6.0
_REPOSITORY: Final = Path(__file__).parent.parent
_GOALS: Final = {
    "event_delay_p99_s": Goal(op="<=", goal=5.0),
    "loop_lag_p99_ms": Goal(op="<=", goal=50.0),
    "calls_over_per_node": Goal(op="<=", goal=0.01),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured: so many wait, of which so many machines a second become ready for so long."""

    waits: int
    per_second: float
    seconds: float

    @property
    def changes(self) -> int:
        """How many machines become ready."""
        return round(self.per_second * self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One kind of trigger."""

    kind: str
    size: Size
    started_s: float
    delays_s: list[float]
    seen_s: list[float]
    lags_ms: list[float]
    start_lags_ms: list[float]
    calls_per_s: float
    memory_mib: float

    def row(self) -> str:
        """Of the table."""
        return (
            f"{self.kind:<10} {self.size.waits:>6} {self.started_s:>9.0f} {percentile(self.delays_s, 50):>9.2f}"
            f" {percentile(self.delays_s, 99):>8.2f} {percentile(self.seen_s, 50):>8.2f}"
            f" {percentile(self.seen_s, 99):>8.2f} {percentile(self.lags_ms, 50):>8.1f}"
            f" {percentile(self.lags_ms, 99):>8.1f} {self.calls_per_s:>9.2f} {self.memory_mib:>11.0f}"
        )


_HEAD: Final = " ".join(
    (
        f"{'trigger':<10} {'waits':>6} {'all up s':>9} {'delay p50':>9} {'p99 s':>8} {'seen p50':>8} {'p99 s':>8}",
        f"{'lag p50':>8} {'p99 ms':>8} {'calls/s':>9} {'memory MiB':>11}",
    )
)


def run(options: Options) -> Report:
    """Ours at 10,000 and the peer at 500; with `quick`, 1,000 and 100."""
    ours, peer = (
        (Size(waits=1000, per_second=10, seconds=8), Size(waits=100, per_second=5, seconds=8))
        if options.quick
        else (Size(waits=10_000, per_second=20, seconds=60), Size(waits=500, per_second=5, seconds=30))
    )
    print(
        f"waits: {ours.waits} triggers on our poller, {peer.waits} that poll for themselves; a look each {_PERIOD_S} s"
    )
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))  # so that what was started ends too
    folder = Path(tempfile.mkdtemp(prefix="mlops-waits-"))
    folder.chmod(0o711)  # the server's user has to reach its own folder below
    try:
        with postgres(folder / "postgres") as server:
            _run(folder, _airflow_environment(folder, server.make("empty")), ["airflow", "db", "migrate"])
            measured = {
                kind: _measure(folder / kind.replace(" ", "-"), server, kind, size, options.seed)
                for kind, size in (("shared", ours), ("per node", peer))
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(_HEAD)
    for one in measured.values():
        print(one.row(), flush=True)
    return report_of(measured["shared"], measured["per node"])


def report_of(ours: Measured, peer: Measured) -> Report:
    """The figures; the peer's calls in proportion to its size."""
    per_node = peer.calls_per_s / peer.size.waits * ours.size.waits
    figures: dict[str, float] = {
        "waits": float(ours.size.waits),
        "event_delay_p99_s": round(percentile(ours.delays_s, 99), 2),
        "event_delay_p50_s": round(percentile(ours.delays_s, 50), 2),
        "loop_lag_p99_ms": round(percentile(ours.lags_ms, 99), 1),
        "calls_over_per_node": round(ours.calls_per_s / per_node, 5),
        "memory_mib": round(ours.memory_mib),
        "seen_p99_s": round(percentile(ours.seen_s, 99), 2),
        "seen_p50_s": round(percentile(ours.seen_s, 50), 2),
        "all_wait_after_s": round(ours.started_s),
        "start_loop_lag_p99_ms": round(percentile(ours.start_lags_ms, 99)),
        "events": float(len(ours.delays_s)),
        "peer_waits": float(peer.size.waits),
        "peer_seen_p50_s": round(percentile(peer.seen_s, 50), 2),
        "peer_seen_p99_s": round(percentile(peer.seen_s, 99), 2),
        "peer_event_delay_p99_s": round(percentile(peer.delays_s, 99), 2),
        "peer_loop_lag_p99_ms": round(percentile(peer.lags_ms, 99), 1),
    }
    return Report(figures=figures, goals=_GOALS)


def percentile(values: list[float], percent: int) -> float:
    """By the nearest rank.

    Example:
        >>> percentile([3.0, 1.0, 2.0], 50)
        2.0
    """
    ranked = sorted(values)
    return ranked[max(0, -(-len(ranked) * percent // 100) - 1)]


def _measure(folder: Path, server: Postgres, kind: str, size: Size, seed: int) -> Measured:
    folder.mkdir()
    run_names = [f"waits/{kind}/{number}" for number in range(size.waits)]
    figures, database = folder / "figures.jsonl", kind.replace(" ", "_")
    with _cloud(run_names) as port:
        environment = {**_airflow_environment(folder, server.make(database, like="empty")), **_connections(port)}
        spec = {"kind": kind, "run_names": run_names, "wait_s": 36000.0, "figures": str(figures)}
        _run(folder, environment, ["benchmarks.waits_rows"], json.dumps(spec))
        print(f"{kind}: {size.waits} rows written", flush=True)
        with _triggerer(folder, environment) as triggerer, Sampler(pid=triggerer.pid) as memory:
            began = time.monotonic()
            _until(lambda: _all_wait(kind, size, figures, port), _START_WITHIN_S, triggerer, "all triggers to wait")
            started_s, ready = time.monotonic() - began, time.time()
            print(f"{kind}: all wait after {started_s:.0f} s", flush=True)
            time.sleep(_SETTLE_S)
            samples = len(memory.samples_mib)
            first, calls = time.time(), _asked(port)
            script = _script(size, random.Random(seed), begin=first + 1)  # noqa: S311 - times of events, no secret
            _post(port, script)
            due = {index: at for index, at in enumerate(script) if at is not None}
            time.sleep(max(due.values()) - time.time())
            last, asked = time.time(), _asked(port)
            _until(lambda: len(_went_on(server, database)) >= len(due), _WITHIN_S, triggerer, "all events")
            arrived = _went_on(server, database)
            memory_mib = statistics.median(memory.samples_mib[samples:] or memory.samples_mib)
    return Measured(
        kind=kind,
        size=size,
        started_s=started_s,
        delays_s=[arrived[index][0] - at for index, at in due.items()],
        seen_s=[arrived[index][1] - at for index, at in due.items()],
        lags_ms=[lag for line in _lines(figures) if first <= line["at"] <= last for lag in line["lags_ms"]],
        start_lags_ms=[lag for line in _lines(figures) if line["at"] <= ready for lag in line["lags_ms"]],
        calls_per_s=(asked - calls) / (last - first),
        memory_mib=memory_mib,
    )


def _script(size: Size, draw: random.Random, *, begin: float) -> list[float | None]:
    """When each machine becomes ready: so many of them, at random times."""
    chosen = draw.sample(range(size.waits), size.changes)
    times: list[float | None] = [None] * size.waits
    for index in chosen:
        times[index] = begin + draw.uniform(0, size.seconds)
    return times


def _all_wait(kind: str, size: Size, figures: Path, port: int) -> bool:
    if kind == "shared":
        lines = _lines(figures)
        return bool(lines) and lines[-1]["waiting"] >= size.waits
    return _calls(port).get("get allocations", 0) >= size.waits


def _went_on(server: Postgres, database: str) -> dict[int, tuple[float, float]]:
    """When the tasks that wait no more were told to go on, and when their trigger knew, by their index."""
    sql = (
        "select map_index, extract(epoch from scheduled_dttm), next_kwargs::text from task_instance"
        " where state = 'scheduled' and next_method = 'ready'"
    )
    return {index: (float(moment), _at(text)) for index, moment, text in server.query(database, sql)}


def _at(next_kwargs: str) -> float:
    """The time in a stored event, however Airflow has wrapped it."""
    found = re.search(r'"at"\D*([0-9]+\.[0-9]+)', next_kwargs)
    if found is None:
        raise SystemExit(f"an event without a time: {next_kwargs[:500]}")
    return float(found[1])


@contextmanager
def _cloud(run_names: list[str]) -> Generator[int]:
    """The cloud's process; its port."""
    from mlops_sdk.names import resource_name, run_id_for  # noqa: PLC0415 - `--list` needs no installed library

    names = [resource_name(run_id_for(_deployment(), name), 1, 0) for name in run_names]
    command = [sys.executable, "-m", "benchmarks.waits_cloud"]
    cloud = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY)
    try:
        if cloud.stdin is None or cloud.stdout is None:
            raise SystemExit("the cloud's process has no pipes")
        cloud.stdin.write(json.dumps(names))
        cloud.stdin.close()
        yield int(cloud.stdout.readline())
    finally:
        cloud.kill()
        cloud.wait()


@contextmanager
def _triggerer(folder: Path, environment: dict[str, str]) -> Generator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs"]
    with (folder / "triggerer.log").open("ab") as log:
        triggerer = subprocess.Popen(
            command, env=environment, cwd=_REPOSITORY, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield triggerer
    finally:
        os.killpg(triggerer.pid, signal.SIGKILL)  # nothing in its tables is needed any more
        triggerer.wait()


def _run(folder: Path, environment: dict[str, str], module: list[str], text: str = "") -> None:
    """A module, to its end; its output is shown when it fails."""
    log = folder / "setup.log"
    with log.open("ab") as output:
        command = [sys.executable, "-m", *module]
        done = subprocess.run(
            command, input=text.encode(), env=environment, cwd=_REPOSITORY, stdout=output, stderr=output, check=False
        )
    if done.returncode:
        raise SystemExit(log.read_text(encoding="utf-8", errors="replace")[-4000:])


def _airflow_environment(folder: Path, database_url: str) -> dict[str, str]:
    wanted = {
        "DATABASE__SQL_ALCHEMY_CONN": database_url,
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__FERNET_KEY": "",
        "CORE__HOSTNAME_CALLABLE": "socket.gethostname",
        "TRIGGERER__CAPACITY": "20000",
        "TRIGGERER__MAX_TRIGGER_TO_SELECT_PER_LOOP": "100",
        "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "120",
        "LOGGING__BASE_LOG_FOLDER": str(folder / "logs"),
    }
    return {**os.environ, "AIRFLOW_HOME": str(folder), **{f"AIRFLOW__{name}": value for name, value in wanted.items()}}


def _connections(port: int) -> dict[str, str]:
    openstack = {
        "conn_type": "mlops_openstack",
        "host": f"http://127.0.0.1:{port}/v3",
        "login": "mlops",
        "password": "benchmark",
        "extra": {
            "project_name": "mlops",
            "deployment_id": _DEPLOYMENT,
            "broker_secret": "the key of a benchmark, which guards nothing",
            "lease": {"poll_s": _PERIOD_S},
        },
    }
    # never called by what is measured: a wait needs neither
    s3 = {"conn_type": "mlops_s3", "host": "http://127.0.0.1:1", "login": "-", "password": "-"}
    mlflow = {"conn_type": "mlops_mlflow", "host": "http://127.0.0.1:1", "login": "-", "password": "-"}
    found = {"openstack": openstack, "s3": s3, "mlflow": mlflow}
    return {f"AIRFLOW_CONN_MLOPS_{name.upper()}": json.dumps(fields) for name, fields in found.items()}


def _deployment() -> Any:
    from uuid import UUID  # noqa: PLC0415 - beside its only use

    return UUID(_DEPLOYMENT)


def _until(check: Callable[[], bool], within_s: float, process: subprocess.Popen[bytes], what: str) -> None:
    end = time.monotonic() + within_s
    while not check():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"waited for {what}; the triggerer {'ended' if process.poll() is not None else 'runs'}")
        time.sleep(0.25)


def _lines(figures: Path) -> list[dict[str, Any]]:
    text = figures.read_text(encoding="utf-8") if figures.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _asked(port: int) -> int:
    """Lists and reads so far."""
    return sum(count for kind, count in _calls(port).items() if kind.startswith(("list", "get")))


def _calls(port: int) -> dict[str, int]:
    return json.loads(_ask(port, "GET", "/calls"))


def _post(port: int, script: list[float | None]) -> None:
    _ask(port, "POST", "/script", json.dumps(script).encode())


def _ask(port: int, method: str, path: str, body: bytes = b"") -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body=body)
        return connection.getresponse().read()
    finally:
        connection.close()
