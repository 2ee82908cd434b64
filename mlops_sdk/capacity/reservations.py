"""Asks the budget before a lease is asked for, so that runs that start at the same time do not both slip through.

One object per owner, ``budget/<owner>.json``, holds what is being asked for at this moment. Who wants a lease reads
it, then all journals; decides; and writes its own reservation by a conditional PUT on what it read. Of two at once one
loses the PUT and looks again, at the other's reservation or at its lease. A reservation counts until the lease is in
its run's journal, or for `HOLD_S`.

So nothing is promised beyond the budget, except by a process that stands still for more than `HOLD_S` between its
reservation and the first entry about its lease: then by what that one lease costs. What a lease costs beyond its
promise is the time from its deadline to the end of its cleaning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

from mlops_sdk.canonical import to_json
from mlops_sdk.capacity.budget import Account, Limits, Month, account_of, admit, months, price_in, wanted_of
from mlops_sdk.capacity.lease import LeaseRequest, from_iso, to_iso
from mlops_sdk.capacity.records import all_records, prices_of
from mlops_sdk.capacity.spending import RunRecord
from mlops_sdk.config import Settings
from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.objects import ObjectStore
from mlops_sdk.services import Services

HOLD_S: Final = 600.0
_TRIES: Final = 30

_Reservation = Mapping[str, Any]


def limits_of(settings: Settings) -> Limits:
    """The budgets of a deployment."""
    budget = settings.budget
    return Limits(owners=budget.owners, others=budget.per_month, raised_by=budget.raised_by)


def reserve(
    services: Services,
    request: LeaseRequest,
    *,
    owner: str,
    run_key: str,
    generation: int,
    until: datetime | None = None,
) -> None:
    """Make sure that the budget has room for a lease that is not in a journal yet, and keep that room for a while.

    With `until`, for the time from the request's deadline to that one, of a lease that is in its journal.

    Does nothing, and asks nobody, for an owner without a limit and for machines that cost nothing.

    Raises:
        BudgetExceeded: it has not; nothing was reserved.
        ServiceUnavailable: S3 gives no answer, or others kept asking for this owner all the time.
    """
    settings = services.settings
    limits, prices = limits_of(settings), prices_of(settings)
    if limits.of(owner) is None or not prices.node_second.get(request.resource_class, 0.0):
        return
    name = f"{run_key}-g{generation}"
    for _ in range(_TRIES):
        now = services.now()
        start, end = (now, max(now, request.deadline)) if until is None else (request.deadline, until)
        machines = wanted_of(replace(request, deadline=end), start)
        wanted = {month: price_in(machines, prices, month) for month in months(start, end)}
        found = services.store.get_with_etag(_key(owner))
        records = all_records(services, now)  # after the reservations: what has left those is in a journal
        others = [item for item in _reservations(found) if item["name"] != name and _counts(item, records, now)]
        for month, amount in wanted.items():
            account = _with(account_of(owner, month, records, prices, limits, now=now), others)
            admit(account, amount, what=str(request), raised_by=limits.raised_by)
        mine = {"name": name, "at": to_iso(now), "amounts": {str(month): amount for month, amount in wanted.items()}}
        if until is not None:
            mine["until"] = to_iso(until)
        body = to_json({"version": 1, "reservations": [*others, mine]})
        if _replace(services.store, _key(owner), body, found):
            return
    raise ServiceUnavailable(
        f"the budget of {owner!r} could not be asked",
        seen=f"{_TRIES} times in a row somebody else asked for machines at the same moment",
        next_step="try again",
    )


def accounts_of_month(services: Services) -> tuple[Account, ...]:
    """What every owner has in the month of now: those with a limit of their own, and those who spent something."""
    now = services.now()
    limits, prices = limits_of(services.settings), prices_of(services.settings)
    records = all_records(services, now)
    owners = sorted({record.history.owner for record in records} | set(limits.owners))
    found: list[Account] = []
    for owner in owners:
        stored = services.store.get_with_etag(_key(owner))
        reserved = [item for item in _reservations(stored) if _counts(item, records, now)]
        found.append(_with(account_of(owner, Month.of(now), records, prices, limits, now=now), reserved))
    return tuple(a for a in found if a.limit is not None or a.spent or a.promised)


def _key(owner: str) -> str:
    return f"budget/{quote(owner, safe='')}.json"


def _reservations(found: tuple[bytes, str] | None) -> list[_Reservation]:
    if found is None:
        return []
    return list(json.loads(found[0])["reservations"])


def _counts(item: _Reservation, records: list[RunRecord], now: datetime) -> bool:
    """Whether a reservation is still one: not too old, and its lease (up to that deadline) not in a journal yet."""
    if now - from_iso(str(item["at"])) > timedelta(seconds=HOLD_S):
        return False
    run_key, _, generation = str(item["name"]).rpartition("-g")
    promised = {
        (r.key, g.number): g.request.deadline
        for r in records
        for g in r.history.generations.values()
        if g.request is not None
    }
    found = promised.get((run_key, int(generation)))
    return found is None or ("until" in item and found < from_iso(str(item["until"])))


def _with(account: Account, reservations: list[_Reservation]) -> Account:
    amount = sum(float(item["amounts"].get(str(account.month), 0.0)) for item in reservations)
    return replace(account, reserved=amount)


def _replace(store: ObjectStore, key: str, body: bytes, found: tuple[bytes, str] | None) -> bool:
    if found is None:
        return store.put_if_absent(key, body)
    return store.put_if_match(key, body, found[1]) is not None
