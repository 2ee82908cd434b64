"""What is held, what ought to have been given back, and what each run has cost: for the night, and for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from mlops_sdk.canonical import to_json
from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.capacity.lifecycle import END_TEXT
from mlops_sdk.capacity.owned import Owned
from mlops_sdk.capacity.reaper import Due, Reaper
from mlops_sdk.client import Client, RunSummary
from mlops_sdk.errors import LeasesOverdue


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One machine that this deployment leases now."""

    name: str
    node_id: str
    owner: str
    renewed_until: datetime
    deadline: datetime

    def to_json(self) -> dict[str, str]:
        """As stored."""
        return {
            "name": self.name,
            "node_id": self.node_id,
            "owner": self.owner,
            "renewed_until": to_iso(self.renewed_until),
            "deadline": to_iso(self.deadline),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReport:
    """The state of all leases at one moment.

    Attributes:
        at: That moment, by the cloud's clock.
        held: What is held, overdue or not.
        overdue: What a reaper would take back now.
        errors: What could not be looked at.
        runs: The runs that were active in the time reported on, with their cost.
        currency: Of the cost.
    """

    at: datetime
    held: tuple[Holding, ...]
    overdue: tuple[Due, ...]
    errors: tuple[str, ...]
    runs: tuple[RunSummary, ...]
    currency: str

    @property
    def cost(self) -> float:
        """Of these runs together, from their beginning until now."""
        return sum(run.cost for run in self.runs)

    def words(self) -> str:
        """One line for each thing worth knowing."""
        lines = [f"{len(self.held)} machines held, {len(self.overdue)} things overdue"]
        lines += [f"held: {h.name} by {h.owner} until {h.deadline:%Y-%m-%d %H:%M:%S}" for h in self.held]
        lines += [f"OVERDUE: {due.kind} {due.resource} ({END_TEXT[due.reason]})" for due in self.overdue]
        lines += [f"not looked at: {error}" for error in self.errors]
        lines += [
            f"run {r.key} {r.name}: {r.state}, {r.node_seconds:.0f} node-seconds, {r.cost:.2f} {self.currency}"
            for r in self.runs
        ]
        return "\n".join([*lines, f"{self.cost:.2f} {self.currency} for {len(self.runs)} runs"])

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {
            "version": 1,
            "at": to_iso(self.at),
            "held": [holding.to_json() for holding in self.held],
            "overdue": [due.to_json() for due in self.overdue],
            "errors": list(self.errors),
            "runs": [run.to_json() for run in self.runs],
            "cost": round(self.cost, 6),
            "currency": self.currency,
        }

    def check(self) -> None:
        """Nothing, if nothing is overdue and everything could be looked at.

        Raises:
            LeasesOverdue: naming what.
        """
        if self.overdue or self.errors:
            raise LeasesOverdue(
                f"{len(self.overdue)} things are held past their time, {len(self.errors)} could not be looked at",
                seen="; ".join([*(f"{d.kind} {d.resource}: {END_TEXT[d.reason]}" for d in self.overdue), *self.errors]),
                next_step="see whether the reaper runs; `mlops reap` takes them back by hand",
            )


def report_leases(client: Client, *, days: float = 1.0) -> LeaseReport:
    """Ask the cloud what is held, and the journals what it cost. Changes nothing.

    Args:
        client: Of the deployment.
        days: Runs whose last entry is older than this and that hold nothing are left out.

    Raises:
        MlopsError: a provider or S3 could not be asked.
    """
    services = client.services
    owned = [item for name in services.providers for item in services.provider(name).list_owned()]
    pass_ = Reaper(services).reap_once(dry_run=True)
    now = services.now()
    since = now - timedelta(days=days)
    runs = client.runs()
    return LeaseReport(
        at=now,
        held=tuple(_holding(item) for item in owned if not item.parent),
        overdue=pass_.due,
        errors=pass_.errors,
        runs=tuple(run for run in runs if run.last_at is None or run.last_at >= since or run.state in _HOLDING),
        currency=services.settings.currency,
    )


def store_report(client: Client, report: LeaseReport) -> str:
    """Keep a report in the bucket, under its moment; returns its URI."""
    key = f"reports/leases/{report.at.astimezone(UTC):%Y-%m-%dT%H-%M-%SZ}.json"
    client.store.put(key, to_json(report.to_json()))
    return f"s3://{client.store.bucket}/{key}"


_HOLDING = {"requested", "deploying", "active", "releasing"}


def _holding(item: Owned) -> Holding:
    return Holding(
        name=item.name,
        node_id=item.node_id,
        owner=item.marker.owner,
        renewed_until=item.marker.renewed_until,
        deadline=item.marker.deadline,
    )
