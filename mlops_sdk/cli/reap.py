"""`mlops reap`: one pass of the reaper, by hand."""

from __future__ import annotations

import json
import sys

import click

from mlops_sdk.capacity.lifecycle import END_TEXT
from mlops_sdk.capacity.reaper import Reaper
from mlops_sdk.config import Settings


@click.command()
@click.option("--dry-run", is_flag=True, help="only say what would be taken back")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def reap(dry_run: bool, as_json: bool) -> None:
    """Take back what dead runs of this deployment still hold.

    The embedded stack's reaper does this all the time. The exit status is 1 when something was not taken back clean.
    """
    report = Reaper.connect(Settings.load()).reap_once(dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        verb = "would take back" if dry_run else "taken back"
        for due in report.due:
            click.echo(f"{verb}: {due.kind} {due.resource} ({END_TEXT[due.reason]})")
        for item in report.evidence:
            machine = item.node_name or item.node_id
            click.echo(f"  {item.resource}: {machine or 'no machine'} {item.outcome.value} ({item.provision_state})")
        for error in report.errors:
            click.echo(f"error: {error}", err=True)
        if not report.due:
            click.echo("nothing to take back")
    sys.exit(1 if report.errors or any(not item.clean for item in report.evidence) else 0)
