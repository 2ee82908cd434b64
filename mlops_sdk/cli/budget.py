"""`mlops budget`: what every owner may spend this month, has spent, and has promised."""

from __future__ import annotations

import json

import click

from mlops_sdk.capacity.budget import Account
from mlops_sdk.capacity.reservations import accounts_of_month
from mlops_sdk.cli.columns import print_columns
from mlops_sdk.client import Client


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def budget(as_json: bool) -> None:
    """This month's budget of every owner: spent on machines until now, promised to leases until their deadlines."""
    accounts = accounts_of_month(Client().services)
    if as_json:
        click.echo(json.dumps([account.to_json() for account in accounts], indent=1))
        return
    if not accounts:
        click.echo("nobody has a budget, and nobody has spent anything this month")
        return
    headings = ("owner", "month", "limit", "spent", "promised", "reserved", "left")
    print_columns(headings, [_row(account) for account in accounts])


def _row(account: Account) -> tuple[str, ...]:
    amounts = (account.spent, account.promised, account.reserved)
    return (
        account.owner,
        str(account.month),
        "none" if account.limit is None else _money(account, account.limit),
        *(_money(account, amount) for amount in amounts),
        "" if account.limit is None else _money(account, account.left),
    )


def _money(account: Account, amount: float) -> str:
    return f"{amount:.2f} {account.currency}"
