"""Reports by night what is held, what ought to have been given back, and what each run has cost."""

from __future__ import annotations

import datetime as dt

from airflow.sdk import dag

from mlops_operators.reports import ReportLeasesOperator


@dag(
    schedule="0 3 * * *",
    start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    dagrun_timeout=dt.timedelta(hours=1),
    tags=["mlops"],
    doc_md=__doc__,
)
def report_leases() -> None:
    """One report. The retry leaves the reaper time to take back what is due; what is left after it is a failure."""
    ReportLeasesOperator(
        task_id="report_leases",
        retries=1,
        retry_delay=dt.timedelta(minutes=2),
        execution_timeout=dt.timedelta(minutes=20),
    )


report_leases()
