"""`mlops doctor`: is this deployment usable from here?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from mlops_sdk.doctor import examine


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def doctor(as_json: bool) -> None:
    """Check settings and services; one line each. The exit status is 1 when any check fails."""
    checks = examine()
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        for check in checks:
            click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
            if check.next_step:
                click.echo(f"      next: {check.next_step}")
    sys.exit(0 if all(check.ok for check in checks) else 1)
