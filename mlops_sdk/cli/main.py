"""The ``mlops`` command."""

from __future__ import annotations

import logging
import sys

import click
import stamina.instrumentation

from mlops_sdk.cli.accelerators import accelerators
from mlops_sdk.cli.alerts import alerts
from mlops_sdk.cli.audit import audit
from mlops_sdk.cli.budget import budget
from mlops_sdk.cli.cost import cost
from mlops_sdk.cli.doctor import doctor
from mlops_sdk.cli.lease import lease
from mlops_sdk.cli.local import local
from mlops_sdk.cli.metrics import metrics
from mlops_sdk.cli.rating import rating
from mlops_sdk.cli.reap import reap
from mlops_sdk.cli.runs import runs
from mlops_sdk.cli.serving import serving
from mlops_sdk.cli.webhooks import webhooks
from mlops_sdk.errors import MlopsError


class _Commands(click.Group):
    """Shows an error of the library as one clear message, never as a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MlopsError as error:
            click.echo(f"error: {error.what}", err=True)
            if error.seen:
                click.echo(f"  seen: {error.seen}", err=True)
            if error.next_step:
                click.echo(f"  next: {error.next_step}", err=True)
            sys.exit(1)


@click.group(cls=_Commands)
@click.option("-v", "--verbose", is_flag=True, help="log retries and warnings to standard error")
def main(verbose: bool) -> None:
    """MLOps that uses OpenStack: lease machines, train, register, and prove that everything was given back."""
    stamina.instrumentation.set_on_retry_hooks([stamina.instrumentation.LoggingOnRetryHook])
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")


main.add_command(local)
main.add_command(runs)
main.add_command(lease)
main.add_command(accelerators)
main.add_command(cost)
main.add_command(budget)
main.add_command(metrics)
main.add_command(rating)
main.add_command(reap)
main.add_command(serving)
main.add_command(webhooks)
main.add_command(alerts)
main.add_command(audit)
main.add_command(doctor)
