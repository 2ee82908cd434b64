"""Reads what runs cost: their journals, the checkpoints in the bucket, and who served what until when."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from mlops_sdk.canonical import to_json
from mlops_sdk.capacity.cost_lines import Portion, Served, Stored, periods, portions
from mlops_sdk.capacity.cost_report import CostReport, RunCost, cost_tags, split_uri
from mlops_sdk.capacity.records import READERS, all_records, one_record, prices_of
from mlops_sdk.capacity.spending import RunRecord, stored_in
from mlops_sdk.checkpoint.manifest import Manifest, committed_steps, manifest_key, parse_key, parse_manifest
from mlops_sdk.client import Client
from mlops_sdk.errors import CheckpointCorrupt, MlopsError
from mlops_sdk.registry.champion import tag_version
from mlops_sdk.services import Services

_log = logging.getLogger(__name__)


def cost_of_run(client: Client, key: str) -> CostReport:
    """What one run has cost from its beginning until now. Reads the other journals only if the run serves.

    Raises:
        MlopsError: there is no such run.
    """
    services = client.services
    now = services.now()
    record = one_record(services, key, now)
    if not record.history.run_id:
        raise MlopsError(
            f"there is no run {key!r} in bucket {services.store.bucket!r}", next_step="see `mlops runs list`"
        )
    others = all_records(services, now) if record.rollouts else ()
    return _report(services, [record], _served([record, *others], now), now=now, since=None)


def cost_of_runs(client: Client, *, since: datetime | None = None) -> CostReport:
    """What all runs of the deployment have cost since then, oldest first; those that cost nothing are left out."""
    services = client.services
    now = services.now()
    found = all_records(services, now)
    return _report(services, found, _served(found, now), now=now, since=since)


def recent_costs(client: Client, *, days: float) -> CostReport:
    """The whole cost of those runs that spent something on machines or serving in the last days."""
    services = client.services
    now = services.now()
    found = all_records(services, now)
    served = _served(found, now)
    since = now - timedelta(days=days)

    def is_recent(record: RunRecord) -> bool:
        spending = replace(record.spending, served=served.get(record.key, ()))
        return bool(portions(spending, prices_of(services.settings), since=since, until=now))

    return _report(services, [record for record in found if is_recent(record)], served, now=now, since=None)


def store_costs(client: Client, report: CostReport) -> str:
    """Keep a report in the bucket, under its moment; returns its URI."""
    key = f"reports/costs/{report.at.astimezone(UTC):%Y-%m-%dT%H-%M-%SZ}.json"
    client.store.put(key, to_json(report.to_json()))
    return f"s3://{client.store.bucket}/{key}"


def tag_versions(client: Client, report: CostReport) -> tuple[str, ...]:
    """Write the cost of each model version onto it in MLflow, as tags ``mlops.cost.*``; returns which.

    The report should reach back to the beginning of its runs: a tag says what the version cost in all.

    Raises:
        RegistryError, ServiceUnavailable: MLflow refused or gives no answer.
    """
    tagged: list[str] = []
    for version in report.versions():
        name, number = split_uri(version.uri)
        if name:
            tag_version(client.mlflow, name, number, cost_tags(version, currency=report.currency, at=report.at))
            tagged.append(version.uri)
    return tuple(tagged)


def _served(found: Iterable[RunRecord], now: datetime) -> dict[str, tuple[Served, ...]]:
    return periods({rollout for record in found for rollout in record.rollouts}, now)


def _report(
    services: Services,
    found: Iterable[RunRecord],
    served: dict[str, tuple[Served, ...]],
    *,
    now: datetime,
    since: datetime | None,
) -> CostReport:
    prices = prices_of(services.settings)

    def cost_of(record: RunRecord) -> RunCost:
        stored = _stored(services, record.key, now)
        spending = replace(record.spending, stored=stored, served=served.get(record.key, ()))
        return _run_cost(record, portions(spending, prices, since=since, until=now))

    with ThreadPoolExecutor(READERS) as pool:
        runs = list(pool.map(cost_of, found))
    return CostReport(
        at=now,
        since=since,
        currency=prices.currency,
        runs=tuple(run for run in runs if run.portions or since is None),
    )


def _run_cost(record: RunRecord, lines: tuple[Portion, ...]) -> RunCost:
    history = record.history
    state = history.latest.state if history.latest else None
    return RunCost(
        key=record.key,
        name=history.name,
        owner=history.owner,
        state=state.value if state else "open",
        model=record.model,
        versions=record.models,
        portions=lines,
    )


def _stored(services: Services, key: str, now: datetime) -> tuple[Stored, ...]:
    """The committed checkpoints of a run; one whose manifest is damaged is passed over, as resuming does."""
    prefix = f"runs/{key}/checkpoints"
    objects = [parse_key(prefix, info.key) for info in services.store.list(f"{prefix}/")]
    manifests: list[Manifest] = []
    for step in committed_steps([found for found in objects if found is not None]):
        where = manifest_key(prefix, step)
        body = services.store.get(where)
        try:
            if body is not None:
                manifests.append(parse_manifest(body, where))
        except CheckpointCorrupt as error:
            _log.warning("%s", error)
    return stored_in(manifests, now)
