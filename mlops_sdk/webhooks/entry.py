"""One event in the inbox, and the states that it goes through. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class EntryState(StrEnum):
    """Where an event stands.

    received -> dispatched   its run exists
    received -> failed       Airflow keeps refusing it; `mlops webhooks retry` makes it `received` again
    ignored                  recorded only; becomes `received` when it arrives again and a route has been added since
    """

    RECEIVED = "received"
    DISPATCHED = "dispatched"
    IGNORED = "ignored"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An authenticated event, as it is stored. Its body is not kept.

    Attributes:
        key: One event, however often it is delivered.
        event: GitHub's name of it.
        delivery: The sender's id of this delivery.
        repository: Full name; "" when the event named none.
        ref: Full ref; "" for anything but a push.
        after: The commit; "" for anything but a push.
        ignored: Why it starts nothing; "" when it starts a run.
    """

    key: str
    event: str
    delivery: str
    repository: str
    ref: str = ""
    after: str = ""
    ignored: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A stored event.

    Attributes:
        number: In order of arrival.
        arrival: What arrived first.
        state: Where it stands.
        received_at: When it arrived first.
        duplicates: How often it was delivered again.
        attempts: How often its start was tried.
        refusals: How many of these Airflow refused (it was there, and said no).
        last_error: Of the last attempt that failed; "" once it is dispatched.
        due_at: Not tried before.
        run_id: The DAG run, once dispatched.
        settled_at: When it became dispatched or failed.
    """

    number: int
    arrival: Arrival
    state: EntryState
    received_at: datetime
    duplicates: int
    attempts: int
    refusals: int
    last_error: str
    due_at: datetime
    run_id: str
    settled_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long what is settled is remembered, counted from its last delivery. What waits is never forgotten.

    Attributes:
        ignored: Events that started nothing.
        pushes: Pushes that were started or failed. As long as one is remembered, no delivery of it starts anything;
            after that only Airflow's own run of the same id is in the way.
    """

    ignored: timedelta = timedelta(days=30)
    pushes: timedelta = timedelta(days=365)
