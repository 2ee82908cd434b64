"""`mlops runs`: what runs there are, what happened to one, and whether it gave everything back."""

from __future__ import annotations

import json
import sys
from datetime import datetime

import click

from mlops_sdk.capacity.lifecycle import END_STATUS, EndReason
from mlops_sdk.cli.columns import print_columns
from mlops_sdk.client import Client, RunSummary
from mlops_sdk.history import read_history
from mlops_sdk.journal import Entry
from mlops_sdk.proof import Proof

_SUMMARY = ("key", "name", "owner", "state", "ended", "generation", "started", "node-seconds", "cost")
_as_json = click.option("--json", "as_json", is_flag=True, help="print JSON")


@click.group()
def runs() -> None:
    """Runs: list, show, prove."""


@runs.command("list")
@_as_json
def list_runs(as_json: bool) -> None:
    """All runs of the deployment, oldest first."""
    client = Client()
    summaries = client.runs()
    if as_json:
        click.echo(json.dumps([summary.to_json() for summary in summaries], indent=1))
        return
    if not summaries:
        click.echo("no runs")
        return
    print_columns(_SUMMARY, [_summary_row(summary, client.settings.currency) for summary in summaries])


@runs.command("show")
@click.argument("run")
@_as_json
def show_run(run: str, as_json: bool) -> None:
    """One run (id or key): its journal, and the proof of what was given back.

    The exit status is 1 while something of it is not given back.
    """
    client = Client()
    found = client.attach(run)
    entries = found.journal.entries()
    proof = found.prove()
    summary = client.summary(found.key)
    if as_json:
        document = {
            "run": summary.to_json(),
            "journal": [entry.to_json() for entry in entries],
            "proof": proof.to_json(),
        }
        click.echo(json.dumps(document, indent=1))
    else:
        _show(summary, entries, proof, client.settings.currency)
    sys.exit(0 if proof.complete else 1)


def _show(summary: RunSummary, entries: list[Entry], proof: Proof, currency: str) -> None:
    history = read_history(entries)
    impossible = [text for generation in history.generations.values() for text in generation.impossible]
    print_columns(_SUMMARY, [_summary_row(summary, currency)])
    click.echo()
    print_columns(
        ("at", "kind", "action", "resource", "by"),
        [(_time(e.at), e.kind.value, e.action, e.resource, e.writer.partition("-")[0]) for e in entries],
    )
    click.echo()
    print_columns(
        ("given back", "kind", "resource", "evidence"),
        [("yes" if i.returned else "NO", i.kind.value, i.resource, i.evidence) for i in proof.items],
    )
    for text in impossible:
        click.echo(f"the journal contradicts itself: {text}")
    click.echo("everything was given back" if proof.complete else "NOT everything was given back")


def _summary_row(summary: RunSummary, currency: str) -> tuple[str, ...]:
    return (
        summary.key,
        summary.name,
        summary.owner,
        summary.state,
        f"{END_STATUS[EndReason(summary.ended)].value}: {summary.ended}" if summary.ended else "",
        str(summary.generation),
        _time(summary.started_at) if summary.started_at else "",
        f"{summary.node_seconds:.0f}",
        f"{summary.cost:.2f} {currency}",
    )


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
