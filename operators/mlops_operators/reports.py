"""What is held and what it cost, reported by night; loud when something was not given back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from airflow.sdk import Context

from mlops_operators.base import MlopsOperator
from mlops_sdk.capacity.accounts import recent_costs, store_costs, tag_versions
from mlops_sdk.capacity.report import report_leases, store_report


class ReportLeasesOperator(MlopsOperator):
    """Report the leases held, what a reaper would take back (a dry run) and the cost of each run, line by line.

    Changes nothing but the tags ``mlops.cost.*`` of the model versions of these runs in MLflow.
    Pushes back ``{"uri", "held", "overdue", "runs", "cost", "currency", "costs_uri", "tagged"}``; the reports are in
    the bucket. Fails, after that, when something is overdue or could not be looked at. Give it a retry: between two
    passes of the reaper a little may be.

    Args:
        days: Runs that ended longer ago are left out. Templated.
        kwargs: Of `MlopsOperator`.
    """

    template_fields: Collection[str] = (*MlopsOperator.template_fields, "days")
    ui_color = "#eef3f3"

    def __init__(self, *, days: float | str = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.days = days

    def execute(self, context: Context) -> dict[str, Any]:
        """Report."""
        del context
        with self.failures():
            client = self.hook.client()
            report = report_leases(client, days=float(self.days))
            uri = store_report(client, report)
            self.log.info("%s\n%s", uri, report.words())
            costs = recent_costs(client, days=float(self.days))
            costs_uri = store_costs(client, costs)
            tagged = tag_versions(client, costs)
            self.log.info("%s\ntagged: %s", costs_uri, ", ".join(tagged) or "no model version")
            report.check()
        return {
            "uri": uri,
            "held": len(report.held),
            "overdue": len(report.overdue),
            "runs": len(report.runs),
            "cost": round(report.cost, 6),
            "currency": report.currency,
            "costs_uri": costs_uri,
            "tagged": list(tagged),
        }
