"""`mlops alerts`: what people must know."""

from __future__ import annotations

import json

import click

from mlops_sdk.config import Settings
from mlops_sdk.drift.store import alerts as stored_alerts
from mlops_sdk.objects import ObjectStore


@click.group()
def alerts() -> None:
    """Alerts, such as drift of the prompts that a model is served."""


@alerts.command("list")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def list_alerts(as_json: bool) -> None:
    """All alerts of the deployment, oldest first."""
    found = stored_alerts(ObjectStore.open(Settings.load().s3))
    if as_json:
        click.echo(json.dumps([alert.to_json() for alert in found], indent=1))
        return
    if not found:
        click.echo("no alerts")
    for alert in found:
        click.echo(f"{alert.at:%Y-%m-%d %H:%M:%S}  {alert.kind}  {alert.subject}  {alert.id}")
        click.echo(f"    {alert.words}")
