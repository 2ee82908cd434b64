"""`mlops cost`: what runs and model versions cost, line by line."""

from __future__ import annotations

import json

import click

from mlops_sdk.capacity.accounts import cost_of_run, cost_of_runs, tag_versions
from mlops_sdk.capacity.cost_report import CostReport, ago
from mlops_sdk.cli.columns import print_columns
from mlops_sdk.client import Client
from mlops_sdk.errors import SettingsError


@click.command()
@click.option("--run", "run_key", default="", help="one run, by its key")
@click.option("--model", default="", help="the versions of one model")
@click.option(
    "--since", default="", help="only what was spent in this time, as 7d, 12h or 30m; default: from the start"
)
@click.option("--tag", is_flag=True, help="also write it onto the model versions in MLflow, as tags mlops.cost.*")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def cost(run_key: str, model: str, since: str, tag: bool, as_json: bool) -> None:
    """What runs cost: training that counted, failed attempts, idle machines, stored checkpoints, serving.

    Machines count from their allocation to the end of their cleaning, those that are still held until now.
    """
    if run_key and (model or since):
        raise click.UsageError("--run is for one run from its beginning; leave --model and --since out")
    if tag and since:
        raise SettingsError(
            "tags say what a version cost in all, and --since leaves some of it out", next_step="leave out --since"
        )
    report = _report(Client(), run_key, model, since, tag=tag)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
        return
    if not report.runs:
        click.echo("no runs")
        return
    if not model:
        print_columns(*report.run_table())
        click.echo()
    print_columns(*report.version_table())


def _report(client: Client, run_key: str, model: str, since: str, *, tag: bool) -> CostReport:
    if run_key:
        report = cost_of_run(client, run_key)
    else:
        start = client.services.now() - ago(since) if since else None
        report = cost_of_runs(client, since=start)
    report = report.of_model(model) if model else report
    if tag:
        for uri in tag_versions(client, report):
            click.echo(f"tagged {uri}", err=True)
    return report
