"""Reads the journals of all runs, as far as money goes.

A journal is one object an entry. So that a hundred old runs are not thousands of requests, what was read is kept
together in one object per run, ``cache/journals/<key>.json``, and only later entries are read one by one. An entry
never changes, so what is kept is never wrong; without it, or without the right to write it, reading is only slower.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Final

from mlops_sdk.capacity.cost_lines import Prices
from mlops_sdk.capacity.spending import RunRecord, read_record
from mlops_sdk.config import Settings
from mlops_sdk.errors import DamagedObject, RemoteError
from mlops_sdk.journal import Entry, Journal
from mlops_sdk.objects import ObjectStore
from mlops_sdk.services import Services

_LOG = logging.getLogger(__name__)
READERS: Final = 4
_WORTH_KEEPING: Final = 16


def prices_of(settings: Settings) -> Prices:
    """What things cost in a deployment."""
    return Prices(
        node_second=settings.node_seconds_price,
        gib_month=settings.cost.storage_gib_month,
        serving_second=settings.cost.serving_second,
        currency=settings.currency,
    )


def all_records(services: Services, now: datetime) -> list[RunRecord]:
    """All runs of the deployment, oldest first. Reads every journal; one that is damaged is logged and left out."""
    found = [read_record(key, entries, now) for key, entries in all_journals(services)]
    begun = [record for record in found if record.history.run_id]
    return sorted(begun, key=lambda r: (r.history.started_at or now, r.key))


def all_journals(services: Services) -> list[tuple[str, list[Entry]]]:
    """Run keys and their journals; a damaged one is logged and left out, so that it hides no other."""

    def read(key: str) -> tuple[str, list[Entry]] | None:
        try:
            return key, entries_of(services, key)
        except DamagedObject as error:
            _LOG.warning("run %s is left out: %s", key, error)
            return None

    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(read, services.store.list_folders("runs/")))
    return [journal for journal in found if journal is not None]


def one_record(services: Services, key: str, now: datetime) -> RunRecord:
    """One run; empty when there is none by this key."""
    return read_record(key, entries_of(services, key), now)


def entries_of(services: Services, key: str) -> list[Entry]:
    """The journal of one run, oldest first; what was read before is not read again."""
    known = _known(services.store, key)
    entries = Journal(services.store, key, now=services.now).entries(known)
    if len(entries) - len(known) >= _WORTH_KEEPING:
        with suppress(RemoteError):
            services.store.put_json(_kept_at(key), {"version": 1, "entries": [entry.to_json() for entry in entries]})
    return entries


def _known(store: ObjectStore, key: str) -> dict[int, Entry]:
    try:
        kept = store.get_json(_kept_at(key))
        found = [Entry.parse(raw) for raw in kept["entries"]] if kept else []
    except (ValueError, KeyError, TypeError):
        return {}  # damaged, or of another version
    return {entry.number: entry for entry in found}


def _kept_at(key: str) -> str:
    return f"cache/journals/{key}.json"
