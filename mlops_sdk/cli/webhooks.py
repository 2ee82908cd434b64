"""`mlops webhooks`: what arrived, and what became of it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from mlops_sdk.cli.columns import print_columns
from mlops_sdk.errors import MlopsError
from mlops_sdk.webhooks.config import CONFIG_VARIABLE, WebhookSettings
from mlops_sdk.webhooks.entry import Entry
from mlops_sdk.webhooks.inbox import Inbox

_STACK_FILE = Path(".mlops/stacks/default/git/webhook.toml")
_config = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help=f"settings file (default: MLOPS_WEBHOOK_* variables, {CONFIG_VARIABLE} among them; else {_STACK_FILE})",
)


@click.group()
def webhooks() -> None:
    """The inbox of webhook events."""


@webhooks.command("list")
@_config
@click.option("--limit", default=50, show_default=True, help="this many of the last ones")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def list_events(config: Path | None, limit: int, as_json: bool) -> None:
    """The last events, newest first: what they were, where they stand, what they started."""
    entries = _inbox(config).entries(limit)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=1, default=str))
        return
    headings = ("key", "received", "event", "repository", "ref", "commit", "state", "again", "attempts", "what")
    print_columns(headings, [_row(entry) for entry in entries])


@webhooks.command()
@_config
@click.argument("key")
def retry(config: Path | None, key: str) -> None:
    """Let one that failed, or was ignored for want of a route, start its run after all. KEY may be shortened."""
    inbox = _inbox(config)
    found = inbox.find(key)
    if len(found) != 1:
        raise MlopsError(
            f"{key!r} does not name one event",
            seen=f"{len(found)} begin with it",
            next_step="see `mlops webhooks list`",
        )
    if not inbox.retry(found[0].arrival.key):
        raise MlopsError(
            f"event {key!r} cannot be tried again",
            seen=f"it is {found[0].state.value}" + ("" if found[0].arrival.after else ", and not a push"),
            next_step="only a push that failed or was ignored can",
        )
    click.echo(f"{found[0].arrival.key[:12]} waits for the dispatcher")


def _inbox(config: Path | None) -> Inbox:
    told = config is not None or any(name.startswith("MLOPS_WEBHOOK_") for name in os.environ)
    path = config if told or not _STACK_FILE.exists() else _STACK_FILE
    return Inbox(WebhookSettings.load(path).inbox_url.get_secret_value())


def _row(entry: Entry) -> tuple[str, ...]:
    arrival = entry.arrival
    return (
        arrival.key[:12],
        f"{entry.received_at:%Y-%m-%d %H:%M:%S}",
        arrival.event,
        arrival.repository,
        arrival.ref,
        arrival.after[:12],
        entry.state.value,
        str(entry.duplicates),
        str(entry.attempts),
        entry.run_id or arrival.ignored or entry.last_error,
    )
