"""Reads the journals of all runs, as far as money goes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from mlops_sdk.capacity.cost_lines import Prices
from mlops_sdk.capacity.spending import RunRecord, read_record
from mlops_sdk.config import Settings
from mlops_sdk.journal import Journal
from mlops_sdk.services import Services

READERS = 4


def prices_of(settings: Settings) -> Prices:
    """What things cost in a deployment."""
    return Prices(
        node_second=settings.node_seconds_price,
        gib_month=settings.cost.storage_gib_month,
        serving_second=settings.cost.serving_second,
        currency=settings.currency,
    )


def all_records(services: Services, now: datetime) -> list[RunRecord]:
    """All runs of the deployment, oldest first. Reads every journal."""
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda key: one_record(services, key, now), services.store.list_folders("runs/")))
    begun = [record for record in found if record.history.run_id]
    return sorted(begun, key=lambda r: (r.history.started_at or now, r.key))


def one_record(services: Services, key: str, now: datetime) -> RunRecord:
    """One run; empty when there is none by this key."""
    return read_record(key, Journal(services.store, key, now=services.now).entries(), now)
