"""`mlops lease`: which machines are held now, by whom, until when, and what that costs."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click

from mlops_sdk.capacity.lease import Marker
from mlops_sdk.capacity.lifecycle import as_markdown
from mlops_sdk.capacity.order_book import OrderBook
from mlops_sdk.capacity.owned import PoolMachine
from mlops_sdk.capacity.providers.ironic import NAME as IRONIC
from mlops_sdk.capacity.providers.ironic import IronicLeases
from mlops_sdk.capacity.providers.static import NAME as STATIC
from mlops_sdk.capacity.providers.static import StaticHosts
from mlops_sdk.capacity.queue import Turn
from mlops_sdk.capacity.report import report_leases
from mlops_sdk.cli.columns import print_columns
from mlops_sdk.cli.hold import acquire, extend, login, quote, release, replace
from mlops_sdk.client import Client
from mlops_sdk.errors import DamagedObject, MlopsError
from mlops_sdk.names import run_key
from mlops_sdk.objects import ObjectStore

_BEGIN: Final = "<!-- what follows is written by `mlops lease states --into` -->"
_END: Final = "<!-- end of what is written -->"


@click.group()
def lease() -> None:
    """Leases on machines."""


lease.add_command(quote)
lease.add_command(acquire)
lease.add_command(extend)
lease.add_command(login)
lease.add_command(release)
lease.add_command(replace)


@lease.command("list")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def list_leases(as_json: bool) -> None:
    """Every machine this project sees, and who holds it; room for servers as one line for each flavor.

    Asks the cloud, not the journals.
    """
    services = Client().services
    machines = [machine for name in services.providers for machine in services.provider(name).pool()]
    notes = _notes(services.store, [machine.marker for machine in machines if machine.marker is not None])
    ordered = sorted(machines, key=lambda machine: (machine.provider, machine.name))
    rows = _counted({**_row(machine), "note": notes.get(_lease_of(machine.marker), "")} for machine in ordered)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    headings = (
        "provider",
        "machine",
        "count",
        "class",
        "state",
        "power",
        "held by",
        "owner",
        "renewed until",
        "deadline",
        "note",
    )
    print_columns(headings, [[str(row[heading.replace(" ", "_")]) for heading in headings] for row in rows])


@lease.command("queue")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def queue(as_json: bool) -> None:
    """Who waits for machines, in the order in which they get them, and when that is likely."""
    services = Client().services
    rows = [_turn(name, turn) for name in services.providers for turn in services.line(name).turns()]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    headings = ("provider", "position", "run", "owner", "priority", "wants", "since", "expected", "why")
    print_columns(headings, [[str(row[heading]) for heading in headings] for row in rows])


@lease.command("report")
@click.option("--days", default=1.0, show_default=True, help="leave out runs that ended longer ago")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def report(days: float, as_json: bool) -> None:
    """What is held, what is overdue, and what each run has cost. The exit status is 1 when something is overdue."""
    found = report_leases(Client(), days=days)
    click.echo(json.dumps(found.to_json(), indent=1) if as_json else found.words())
    found.check()


@lease.command("states")
@click.option("--into", type=click.Path(path_type=Path, exists=True), help="put it into its place in this page instead")
def states(into: Path | None) -> None:
    """The life of a lease: diagram, states and reasons to end, as Markdown."""
    text = as_markdown()
    if into is None:
        click.echo(text)
        return
    before, begin, rest = into.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise MlopsError(
            f"page {str(into)!r} has no place for the states of a lease",
            next_step=f"write the lines {_BEGIN!r} and {_END!r} where they belong",
        )
    into.write_text(f"{before}{begin}\n{text}\n{end}{after}")


@lease.command("clean")
@click.argument("machine")
@click.option("--provider", type=click.Choice([IRONIC, STATIC]), default=None, help="whose it is, if two have the name")
def clean(machine: str, provider: str | None) -> None:
    """Try again to clean a MACHINE that is out of the pool, and put it back."""
    services = Client().services
    hosts = {host.name for host in services.settings.static_hosts}
    chosen = services.provider(provider or (STATIC if machine in hosts else IRONIC), by="person")
    if not isinstance(chosen, StaticHosts | IronicLeases):
        raise MlopsError(f"the provider {chosen.name!r} has no machines that can be cleaned from here")
    click.echo(f"{machine}: {chosen.clean(machine)}")


def _counted(rows: Iterable[dict[str, str]]) -> list[dict[str, Any]]:
    """Rows that say the same once, with how many there are: the free room of a cloud has no names."""
    counts = Counter(tuple(row.items()) for row in rows)
    return [{**dict(row), "count": count} for row, count in counts.items()]


def _row(machine: PoolMachine) -> dict[str, str]:
    marker = machine.marker
    return {
        "provider": machine.provider,
        "machine": machine.name,
        "class": machine.resource_class,
        "state": machine.state,
        "power": machine.power,
        "held_by": machine.held_by,
        "owner": marker.owner if marker else "",
        "renewed_until": f"{marker.renewed_until:%H:%M:%S}" if marker else "",
        "deadline": f"{marker.deadline:%Y-%m-%d %H:%M:%S}" if marker else "",
    }


def _lease_of(marker: Marker | None) -> tuple[str, int]:
    return ("", 0) if marker is None else (run_key(uuid.UUID(marker.run_id)), marker.generation)


def _notes(store: ObjectStore, markers: Iterable[Marker]) -> dict[tuple[str, int], str]:
    """What was decided about the leases, in words, for those where something was."""
    notes: dict[tuple[str, int], str] = {}
    for found in {_lease_of(marker) for marker in markers}:
        try:
            notes[found] = OrderBook(store, *found).read().words(found[0])
        except DamagedObject as error:
            notes[found] = error.what
    return notes


def _turn(provider: str, turn: Turn) -> dict[str, Any]:
    ticket = turn.ticket
    return {
        "provider": provider,
        "position": turn.position,
        "run": ticket.run_key,
        "owner": ticket.project,
        "priority": ticket.priority.name.lower(),
        "wants": f"{ticket.nodes} x {ticket.resource_class}" + (f" + {ticket.spares}" if ticket.spares else ""),
        "since": f"{ticket.asked_at:%Y-%m-%d %H:%M:%S}",
        "expected": f"{turn.expected_at:%Y-%m-%d %H:%M:%S}" if turn.expected_at else "",
        "why": turn.why,
    }
