"""`mlops local`: the embedded stack."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import click

from mlops_sdk.errors import StackError
from mlops_sdk.local import control
from mlops_sdk.local.control import StackStatus
from mlops_sdk.local.layout import DEFAULT_STATE_DIR, Layout

_state_dir = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_STATE_DIR,
    show_default=True,
    help="where the stack keeps everything",
)


@click.group()
def local() -> None:
    """Run the real services on this computer: Ceph RGW, MLflow, Keystone, Ironic with four machines, Airflow."""


@local.command()
@_state_dir
@click.option("--only", default="", metavar="NAME,...", help="these services and what they need (default: all)")
@click.option("--hold", default="", metavar="NAME,...", help="start these, and what needs them, only when released")
@click.option(
    "--with",
    "profiles",
    default="",
    metavar="PROFILE",
    help="compute: Nova, Placement, Neutron, Glance, Cinder, Cyborg too",
)
@click.option("--faults", is_flag=True, help="let nodes use the deploy interface that fails on demand (tests)")
def up(state_dir: Path, only: str, hold: str, profiles: str, faults: bool) -> None:
    """Start the stack and stay with it; Ctrl-C ends it.

    Airflow keeps its metadata in SQLite below the state directory, or where MLOPS_AIRFLOW_DATABASE_URL says (an
    SQLAlchemy URL; a variable, because the URL holds a password). It loads DAGs from dags/, and from the folder that
    MLOPS_AIRFLOW_EXTRA_DAGS names.
    """
    from mlops_sdk.local.up import up as become_stack  # noqa: PLC0415 - only this command starts anything

    become_stack(state_dir, only=only, hold=hold, profiles=profiles, faults=faults)


@local.command()
@_state_dir
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def status(state_dir: Path, as_json: bool) -> None:
    """Show each service. The exit status is 0 only when every service is ready."""
    now = control.status(Layout.at(state_dir))
    if as_json:
        click.echo(json.dumps(asdict(now), indent=1))
    else:
        _print_status(state_dir, now)
    sys.exit(0 if now.ready else 1)


@local.command()
@_state_dir
def down(state_dir: Path) -> None:
    """End the stack; from any shell. What it stored stays."""
    ended = control.stop(Layout.at(state_dir))
    click.echo("stopped" if ended else f"no stack runs in {state_dir}")


@local.command()
@_state_dir
@click.argument("service")
def release(state_dir: Path, service: str) -> None:
    """Start a held service, and what was held because it needs it; returns when they are ready."""
    control.release(Layout.at(state_dir), service)


@local.command()
@_state_dir
@click.argument("service")
@click.option("-f", "--follow", is_flag=True, help="keep printing what is added")
@click.option("-n", "--lines", default=50, show_default=True, help="start with this many of the last lines")
def logs(state_dir: Path, service: str, follow: bool, lines: int) -> None:
    """Print a service's log."""
    path = Layout.at(state_dir).log(service)
    if not path.exists():
        present = ", ".join(sorted(p.stem for p in path.parent.glob("*.log")))
        raise StackError(
            f"there is no log of a service {service!r}",
            seen=f"logs: {present or 'none'}",
            next_step="name one of these",
        )
    command = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)]
    sys.exit(subprocess.run(command, check=False).returncode)


def _print_status(state_dir: Path, now: StackStatus) -> None:
    if not now.running:
        click.echo(f"no stack runs in {state_dir}" + (f"; the last one ended with: {now.error}" if now.error else ""))
        return
    click.echo(f"{'service':<23}{'state':<12}{'seconds':>8}{'restarts':>10}{'pid':>9}  address")
    for service in now.services:
        right = service.detail.partition("\n")[0] or service.address
        numbers = f"{service.seconds:>8.1f}{service.restarts:>10}{service.pid or '':>9}"
        click.echo(f"{service.name:<23}{service.state:<12}{numbers}  {right}")
    click.echo("ready" if now.ready else "not ready")
