"""`mlops audit`: who was given which right, and what was refused."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta

import click

from mlops_sdk.cli.columns import print_columns
from mlops_sdk.config import Settings
from mlops_sdk.identity.audit import read_audit
from mlops_sdk.identity.audit_entry import AuditEntry, breaks
from mlops_sdk.objects import ObjectStore

_HEADINGS = ("when", "who", "what", "on", "result")
_days = click.option("--days", default=1.0, show_default=True, help="how far back")


@click.group()
def audit() -> None:
    """The audit log of the deployment."""


@audit.command("list")
@_days
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def list_entries(days: float, as_json: bool) -> None:
    """Credentials minted, revoked and refused, machines taken back by the reaper; oldest first.

    The exit status is 1 when the log is not what was written: an entry is missing or was changed.
    """
    entries = list(read_audit(_store(), **last_days(days)))
    broken = breaks(entries)
    if as_json:
        click.echo(json.dumps({"entries": [entry.to_json() for entry in entries], "breaks": broken}, indent=1))
    else:
        print_columns(_HEADINGS, [_row(entry) for entry in entries])
        for text in broken:
            click.echo(f"the log is not whole: {text}", err=True)
    sys.exit(1 if broken else 0)


@audit.command("export")
@_days
@click.option("--json", "as_json", is_flag=True, help="one JSON array instead of one JSON object a line")
def export(days: float, as_json: bool) -> None:
    """The entries as they are stored, one JSON object a line, oldest first; for an archive or a log collector."""
    entries = [entry.to_json() for entry in read_audit(_store(), **last_days(days))]
    if as_json:
        click.echo(json.dumps(entries, indent=1))
        return
    for entry in entries:
        click.echo(json.dumps(entry, sort_keys=True, separators=(",", ":")))


def last_days(days: float) -> dict[str, datetime]:
    """From so many days ago until a moment ahead: other computers' clocks may be."""
    now = datetime.now(UTC)
    return {"since": now - timedelta(days=days), "until": now + timedelta(minutes=5)}


def _store() -> ObjectStore:
    return ObjectStore.open(Settings.load().s3)


def _row(entry: AuditEntry) -> tuple[str, ...]:
    error = f": {entry.detail['error']}" if "error" in entry.detail else ""
    result = f"{entry.result.value}{error}"
    return (f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.who, entry.action, entry.resource, result)
