"""The face of the library: settings in, runs out.

client = Client()
with client.start_run(name="nightly") as run:
    lease = run.lease(LeaseRequest(nodes=2, resource_class="gpu.h200.8x", deadline=...))
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from mlops_sdk.capacity.cost import node_seconds, price_of
from mlops_sdk.capacity.lease import LeaseRequest, to_iso
from mlops_sdk.capacity.quote import Quote
from mlops_sdk.capacity.records import all_journals, entries_of
from mlops_sdk.config import MlflowSettings, Settings
from mlops_sdk.errors import MlopsError
from mlops_sdk.history import History, read_history
from mlops_sdk.identity.environment import check_environment
from mlops_sdk.journal import Journal
from mlops_sdk.keeper import Keeper, ThreadKeeper
from mlops_sdk.names import run_id_for
from mlops_sdk.names import run_key as key_of
from mlops_sdk.objects import ObjectStore
from mlops_sdk.run import Run
from mlops_sdk.services import Services, connect_services


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One line about a run, from its journal. Machines that are still held count until now.

    `ended` is why its lease ended (an `EndReason`), "" while it lasts.
    """

    key: str
    run_id: str
    name: str
    owner: str
    state: str
    ended: str
    generation: int
    started_at: datetime | None
    last_at: datetime | None
    machines: tuple[str, ...]
    node_seconds: float
    cost: float

    def to_json(self) -> dict[str, Any]:
        """For the CLI."""
        return {
            "key": self.key,
            "run_id": self.run_id,
            "name": self.name,
            "owner": self.owner,
            "state": self.state,
            "ended": self.ended,
            "generation": self.generation,
            "started_at": to_iso(self.started_at) if self.started_at else "",
            "last_at": to_iso(self.last_at) if self.last_at else "",
            "machines": list(self.machines),
            "node_seconds": round(self.node_seconds, 3),
            "cost": round(self.cost, 6),
        }


class Client:
    """A deployment. Connects to each service at its first use.

    Args:
        settings: Where everything is; default `Settings.load()`.
        keeper: Who renews the leases of this client's runs; default: a thread for each.
    """

    def __init__(self, settings: Settings | None = None, *, keeper: Keeper | None = None) -> None:
        self.settings = settings or Settings.load()
        self._keeper = keeper or ThreadKeeper()
        self._services: Services | None = None
        self._lock = threading.Lock()

    @classmethod
    def with_services(cls, services: Services) -> Client:
        """A client of given services: how `mlops_sdk.testing` puts its fakes in."""
        client = cls(services.settings)
        client._services = services
        return client

    @property
    def services(self) -> Services:
        """What runs of this client talk to."""
        with self._lock:
            if self._services is None:
                self._services = connect_services(self.settings, self._keeper)
            return self._services

    @property
    def store(self) -> ObjectStore:
        """The deployment's bucket."""
        return self.services.store

    @property
    def mlflow(self) -> MlflowSettings:
        """Where the tracking server and the registry are."""
        return self.settings.mlflow

    def start_run(self, name: str | None = None, *, owner: str = "") -> Run:
        """A run by this name: a new one, or the one that exists, continued. Without a name always a new one."""
        chosen = name or f"run-{uuid.uuid4()}"
        return self._open(run_id_for(self.settings.deployment_id, chosen), chosen, owner or self.settings.owner)

    def find(self, name: str) -> Run | None:
        """The run by this name, continued; None when it never began. Creates nothing."""
        run_id = run_id_for(self.settings.deployment_id, name)
        if Journal(self.store, key_of(run_id), now=self.services.now).first() is None:
            return None
        return self._open(run_id, name, self.settings.owner)

    def attach(self, id: uuid.UUID | str) -> Run:  # noqa: A002 - the word of the field
        """Find a run again, by id or 12-character key.

        `run.lease()` then adopts its machines; `run.release()` gives them back.

        Raises:
            MlopsError: there is no such run.
        """
        key = _key(id)
        first = Journal(self.store, key, now=self.services.now).first()
        if first is None:
            raise MlopsError(
                f"there is no run {str(id)!r} in bucket {self.store.bucket!r}", next_step="see `mlops runs list`"
            )
        return self._open(
            uuid.UUID(str(first.data["run_id"])), str(first.data.get("name", "")), str(first.data.get("owner", ""))
        )

    def quote(self, request: LeaseRequest) -> Quote:
        """What a request would cost until its deadline, and when it could be met: now, or its place in the queue."""
        services = self.services
        quote = services.provider(request.provider).quote(request)
        turn = services.line(request.provider).preview(request, owner=self.settings.owner)
        return replace(quote, turn=turn)

    def runs(self) -> list[RunSummary]:
        """All runs of the deployment, oldest first, from their journals; a damaged one is logged and left out."""
        now = self.services.now()
        journals = all_journals(self.services)
        summaries = [_summary(key, read_history(entries), self.settings, now) for key, entries in journals]
        return sorted((s for s in summaries if s.run_id), key=lambda s: (s.started_at is None, str(s.started_at)))

    def summary(self, key: str) -> RunSummary:
        """One run, from its journal."""
        history = read_history(entries_of(self.services, key))
        return _summary(key, history, self.settings, self.services.now())

    def _open(self, run_id: uuid.UUID, name: str, owner: str) -> Run:
        check_environment(self.settings, self.store)
        run = Run(self.services, run_id=run_id, name=name, owner=owner)
        run.open()
        return run


def _summary(key: str, history: History, settings: Settings, now: datetime) -> RunSummary:
    intervals = history.intervals_until(now)
    latest = history.latest
    state = latest.state if latest else None
    machines = {p.node_name or p.node_id for g in history.generations.values() for p in g.pieces.values()}
    return RunSummary(
        key=key,
        run_id=history.run_id,
        name=history.name,
        owner=history.owner,
        state=state.value if state else "open",
        ended=latest.reason.value if latest is not None and latest.reason is not None else "",
        generation=latest.number if latest else 1,
        started_at=history.started_at,
        last_at=history.last_at,
        machines=tuple(sorted(machines - {""})),
        node_seconds=node_seconds(intervals),
        cost=price_of(intervals, settings.node_seconds_price),
    )


def _key(id: uuid.UUID | str) -> str:  # noqa: A002 - the word of the field
    if isinstance(id, uuid.UUID):
        return key_of(id)
    try:
        return key_of(uuid.UUID(id))
    except ValueError:
        return id
