"""`mlops rating`: our prices in the cloud's own rating service, CloudKitty."""

from __future__ import annotations

import json

import click

from mlops_sdk.capacity.cloudkitty import CloudKitty
from mlops_sdk.cli.columns import print_columns
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import Settings


@click.group()
def rating() -> None:
    """Prices in CloudKitty, where a cloud has it."""


@rating.command("publish")
def publish() -> None:
    """Make CloudKitty rate machines by the prices in our settings. Changes nothing when it does already."""
    settings = Settings.load()
    changed = CloudKitty(Cloud(settings.keystone)).publish(settings.node_seconds_price)
    for what in ("added", "replaced", "removed"):
        for name in getattr(changed, what):
            click.echo(f"{what}: {name}")
    if not changed:
        click.echo("CloudKitty has these prices already")


@rating.command("show")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def show(as_json: bool) -> None:
    """The prices by which CloudKitty rates machines, beside ours."""
    settings = Settings.load()
    there = CloudKitty(Cloud(settings.keystone)).published()
    ours = settings.node_seconds_price
    rows = {name: (ours.get(name), there.get(name)) for name in sorted({*ours, *there})}
    if as_json:
        click.echo(json.dumps({name: {"settings": a, "cloudkitty": b} for name, (a, b) in rows.items()}, indent=1))
        return
    print_columns(
        ("class", "settings", "CloudKitty"),
        [(name, *("" if price is None else f"{price:g}" for price in prices)) for name, prices in rows.items()],
    )
