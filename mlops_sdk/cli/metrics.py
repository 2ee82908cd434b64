"""`mlops metrics`: the figures of a deployment for Prometheus, printed or kept in a file."""

from __future__ import annotations

import threading
from pathlib import Path

import click

from mlops_sdk.capacity.accounts import cost_of_runs
from mlops_sdk.capacity.metrics import Family, budget_families, cost_families, lease_families, render
from mlops_sdk.capacity.report import report_leases
from mlops_sdk.capacity.reservations import accounts_of_month
from mlops_sdk.capacity.textfile import write_textfile
from mlops_sdk.client import Client
from mlops_sdk.errors import MlopsError


@click.command()
@click.option("--textfile", type=click.Path(path_type=Path), help="write here, atomically, instead of printing")
@click.option("--every", "every_s", type=float, default=0.0, help="seconds; go on writing until interrupted")
def metrics(textfile: Path | None, every_s: float) -> None:
    """Machine time and cost by class, owner and line; what is held; orphans; budgets. Reads all journals.

    With --textfile, for the node exporter's textfile collector. While a service is away the file keeps its last
    figures: watch mlops_looked_at_timestamp_seconds.
    """
    if every_s and textfile is None:
        raise click.UsageError("--every needs --textfile")
    client = Client()
    while True:
        try:
            _tell(client, textfile)
        except MlopsError as error:
            if not every_s:
                raise
            click.echo(f"error: {error}", err=True)
        if not every_s:
            return
        threading.Event().wait(every_s)


def _tell(client: Client, textfile: Path | None) -> None:
    families = families_of(client)
    if textfile is None:
        click.echo(render(families), nl=False)
    else:
        write_textfile(textfile, families)


def families_of(client: Client) -> tuple[Family, ...]:
    """All figures of a deployment."""
    leases = report_leases(client)
    owners = [holding.owner for holding in leases.held]
    overdue = [due.kind for due in leases.overdue]
    return (
        *cost_families(cost_of_runs(client)),
        *lease_families(owners, overdue, len(leases.errors), at=leases.at),
        *budget_families(accounts_of_month(client.services)),
    )
