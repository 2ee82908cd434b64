"""`mlops lease quote | acquire | release`: machines by hand, for as long as a command runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from mlops_sdk.capacity.lease import DEFAULT_PROVIDER, LeaseRequest, Priority, to_iso
from mlops_sdk.capacity.lifecycle import END_TEXT
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.orders import Notice
from mlops_sdk.cli.advice import advice, workload_options
from mlops_sdk.client import Client
from mlops_sdk.run import Lease, Run
from mlops_sdk.steps import drive

_LOOK_S: Final = 2.0
_GRACE_S: Final = 10.0
_Command = Callable[..., Any]


def _wanted(command: _Command) -> _Command:
    """The options that say which machines."""
    priorities = click.Choice([each.name.lower() for each in Priority])
    for option in reversed(
        (
            click.option("--nodes", default=1, show_default=True, type=click.IntRange(min=1), help="how many machines"),
            click.option("--spares", default=0, show_default=True, type=click.IntRange(min=0), help="more, in reserve"),
            click.option("--class", "resource_class", required=True, help="resource class of each"),
            click.option("--trait", "traits", multiple=True, help="that each must have; again for more"),
            click.option("--hours", default=1.0, show_default=True, type=click.FloatRange(min=0, min_open=True)),
            click.option("--wait", "wait_s", default=0.0, show_default=True, help="seconds to wait for capacity"),
            click.option("--provider", default=DEFAULT_PROVIDER, show_default=True, help="whose machines"),
            click.option("--priority", default="normal", show_default=True, type=priorities),
            click.option("--preemptible", is_flag=True, help="may be ended, with notice, for a higher priority"),
            click.option(
                "--hold-on-failure",
                "hold_on_failure_s",
                default=0.0,
                show_default=True,
                type=click.FloatRange(min=0),
                help="seconds for which the machines stay when what runs on them fails",
            ),
        )
    ):
        command = option(command)
    return command


@click.command("quote")
@_wanted
@workload_options
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def quote(as_json: bool, **wanted: Any) -> None:
    """What machines would cost until their deadline, and when they could be had. Asks for nothing.

    With --memory also: whether the workload should get whole cards, MIG or vGPUs, and why.
    """
    client = Client()
    request = _request(client, wanted)
    found, recommended = client.quote(request), advice(client, request, wanted)
    if as_json:
        document = {**found.to_json(), "recommendation": recommended.to_json() if recommended else None}
        click.echo(json.dumps(document, indent=1))
        return
    click.echo(str(found))
    if recommended is not None:
        click.echo("\n".join([str(recommended), *(f"note: {text}" for text in recommended.warnings)]))


@click.command("acquire", context_settings={"ignore_unknown_options": True})
@_wanted
@click.option("--name", default=None, help="of the run; the same name adopts what it holds already")
@click.option(
    "--keep-warm",
    "keep_warm_s",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="seconds for which the machines stay for the next acquire by the same name",
)
@click.option("--json", "as_json", is_flag=True, help="print the machines as JSON")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def acquire(name: str | None, keep_warm_s: float, as_json: bool, command: tuple[str, ...], **wanted: Any) -> NoReturn:
    """Lease machines, run COMMAND while they are held, and give them back; without COMMAND, until Ctrl-C.

    COMMAND finds their addresses in MLOPS_NODES, separated by commas, and logs in with
    `ssh -F "$MLOPS_SSH_CONFIG" NAME`. The exit status is COMMAND's.

    Example: mlops lease acquire --nodes 2 --class gpu.h200.8x -- sh -c 'ssh -F "$MLOPS_SSH_CONFIG" gpu-01 nvidia-smi'
    """
    client = Client()
    with _terminated_as_interrupted(), client.start_run(name) as run:
        lease = run.lease(_request(client, wanted))
        click.echo(_shown(run, lease, as_json=as_json))
        with _login(run, lease.nodes) as environment:
            status = _run(command, environment, run) if command else _hold(run)
        _keep(run, lease.request.hold_on_failure_s if status else 0.0, keep_warm_s if not status else 0.0)
    sys.exit(status)


def _keep(run: Run, hold_s: float, keep_warm_s: float) -> None:
    """Leave the machines to a person or to the next acquire, if that was asked for and nobody else needs them."""
    if run.ending() is not None or not (hold_s or keep_warm_s):
        return
    until = run.hold(hold_s) if hold_s else run.park(keep_warm_s)
    click.echo(f"the machines stay until {until:%Y-%m-%d %H:%M:%S} UTC: mlops lease login {run.key}", err=True)


@click.command("login", context_settings={"ignore_unknown_options": True})
@click.argument("run")
@click.option("--machine", default=None, help="by name; default: the first one")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def login(run: str, machine: str | None, command: tuple[str, ...]) -> NoReturn:
    """Log in to a machine of a run (id or key), or run COMMAND there. The lease stays as it is.

    Example: mlops lease login abcdefghijkl --machine gpu-02 -- nvidia-smi
    """
    found = Client().attach(run)
    nodes = found.look()
    chosen = machine or nodes[0].name
    if chosen not in {node.name for node in nodes}:
        known = ", ".join(node.name for node in nodes)
        raise click.UsageError(f"run {found.key} has no machine {chosen!r}; it has {known}")
    with _login(found, nodes) as environment:
        done = subprocess.run(["ssh", "-F", environment["MLOPS_SSH_CONFIG"], chosen, *command], check=False)
    sys.exit(done.returncode)


@click.command("extend")
@click.argument("run")
@click.option("--until", type=click.DateTime(), help="new deadline, UTC")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="so much after the deadline it has")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def extend(run: str, until: datetime | None, hours: float | None, as_json: bool) -> None:
    """Give the lease of a run (id or key) a later deadline, whichever process holds it.

    Refused when the owner's budget has no room for the time.
    """
    if (until is None) == (hours is None):
        raise click.UsageError("give either --until or --hours")
    found = Client().attach(run)
    deadline = found.deadline + timedelta(hours=hours) if hours else (until or found.deadline).replace(tzinfo=UTC)
    deadline = found.extend(deadline)
    if as_json:
        click.echo(json.dumps({"run": found.key, "generation": found.generation, "deadline": to_iso(deadline)}))
    else:
        click.echo(f"held by run {found.key} until {deadline:%Y-%m-%d %H:%M:%S} UTC")


@click.command("replace")
@click.argument("run")
@click.argument("machine")
@click.option("--unfenced", default="", help="your word that MACHINE is off, where its BMC cannot be asked")
def replace(run: str, machine: str, unfenced: str) -> None:
    """Put another machine in the place of MACHINE, which a run (id or key) has lost; the rest stays.

    It is switched off through its BMC before. A job that runs there has to be started again on what the run holds then.

    Example: mlops lease replace abcdefghijkl gpu-02 --unfenced "ada pulled the plug in rack 3"
    """
    found = Client().attach(run)
    try:
        drive(found.adopting(), found.clock)
        lease = found.replace(machine, unfenced=unfenced)
    finally:
        found.close()
    click.echo(f"run {found.key} works on {', '.join(node.name for node in lease.nodes)}")


@click.command("release")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def release(run: str, as_json: bool) -> None:
    """Give back what a run (id or key) holds, whoever started it, and wait for the cleaning. Idempotent.

    The exit status is 1 when something is not back, or not clean.
    """
    found = Client().attach(run)
    evidence = found.release()
    proof = found.prove()
    if as_json:
        click.echo(json.dumps({"evidence": [e.to_json() for e in evidence], "proof": proof.to_json()}, indent=1))
    else:
        for item in evidence:
            click.echo(f"{item.resource}: {item.node_name or item.node_id or 'no machine'} {item.outcome.value}")
        click.echo("everything is given back" if proof.complete else f"not given back: {len(proof.missing)}")
    sys.exit(0 if proof.complete else 1)


def _request(client: Client, wanted: dict[str, Any]) -> LeaseRequest:
    return LeaseRequest(
        nodes=wanted["nodes"],
        resource_class=wanted["resource_class"],
        traits=tuple(wanted["traits"]),
        deadline=client.services.now() + timedelta(hours=wanted["hours"]),
        wait_s=wanted["wait_s"],
        provider=wanted["provider"],
        priority=Priority.named(wanted["priority"]),
        preemptible=wanted["preemptible"],
        hold_on_failure_s=wanted["hold_on_failure_s"],
        spares=wanted["spares"],
    )


def _shown(run: Run, lease: Lease, *, as_json: bool) -> str:
    nodes = [{"name": node.name, "address": node.address, "gpus": node.gpus} for node in lease.nodes]
    if as_json:
        return json.dumps({"run": run.key, "deadline": to_iso(lease.deadline), "nodes": nodes})
    machines = "\n".join(f"{node['name']}: {node['address']}, {node['gpus']} GPUs" for node in nodes)
    return f"{machines}\nheld by run {run.key} until {lease.deadline:%Y-%m-%d %H:%M:%S} UTC"


@contextmanager
def _login(run: Run, nodes: Sequence[Node]) -> Generator[dict[str, str]]:
    """Files by which `ssh` logs in to the machines and pins their keys, for the time of a block; the environment."""
    folder = Path(tempfile.mkdtemp(prefix="mlops-lease-"))
    try:
        key, hosts, config = folder / "key", folder / "known_hosts", folder / "config"
        key.touch(mode=0o600)
        key.write_text(run.client_key.private)
        hosts.write_text("".join(f"{node.name} {node.host_public_key.strip()}\n" for node in nodes))
        config.write_text("".join(_ssh_host(node, key, hosts) for node in nodes))
        addresses = ",".join(node.address for node in nodes)
        yield {"MLOPS_RUN": run.key, "MLOPS_NODES": addresses, "MLOPS_SSH_CONFIG": str(config)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ssh_host(node: Node, key: Path, hosts: Path) -> str:
    options = {
        "HostName": node.address,
        "Port": node.port,
        "HostKeyAlias": node.name,
        "User": node.user,
        "IdentityFile": key,
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": hosts,
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
    }
    return f"Host {node.name}\n" + "".join(f"  {option} {value}\n" for option, value in options.items())


def _run(command: tuple[str, ...], environment: dict[str, str], run: Run) -> int:
    """The command's exit status; it is ended when the lease is lost, or we are interrupted."""
    tell = _Teller(run)
    with subprocess.Popen(command, env={**os.environ, **environment}) as child:
        try:
            while True:
                try:
                    return child.wait(timeout=_LOOK_S)
                except subprocess.TimeoutExpired:
                    run.raise_if_lost()
                    tell.notice()
        finally:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """What still runs when the lease ends is asked to end, and then made to."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()


def _hold(run: Run) -> int:
    tell = _Teller(run)
    while True:
        time.sleep(_LOOK_S)
        run.raise_if_lost()
        tell.notice()


class _Teller:
    """Says on standard error when the lease is about to end, and when it is not any more."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._told: Notice | None = None

    def notice(self) -> None:
        found = self._run.ending()
        if found is not None and found != self._told:
            click.echo(f"{END_TEXT[found.reason]}: it ends at {found.ends_at:%Y-%m-%d %H:%M:%S} UTC", err=True)
        elif found is None and self._told is not None:
            click.echo("the lease was extended", err=True)
        self._told = found


@contextmanager
def _terminated_as_interrupted() -> Generator[None]:
    """SIGTERM gives the machines back as Ctrl-C does; a second one ends at once."""

    def interrupt(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
