"""The dispatcher: a supervised process that starts the runs which wait in the inbox, oldest first, each exactly once.

    python -m mlops_sdk.webhooks.dispatch

It may be killed anywhere: what waits is in the inbox, and the id of a DAG run follows from the event's key, so a start
that was not noted meets its own run. Several dispatchers may work on one inbox for the same reason.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from mlops_sdk.airflow_rest import AirflowRest
from mlops_sdk.errors import AccessDenied, MlopsError, ServiceUnavailable, SettingsError
from mlops_sdk.supervised import run_until_stopped
from mlops_sdk.webhooks.config import WebhookSettings
from mlops_sdk.webhooks.entry import Entry, Retention
from mlops_sdk.webhooks.inbox import Inbox
from mlops_sdk.webhooks.routing import Route, conf_of, run_id_of

_LOG = logging.getLogger("mlops_sdk.webhooks.dispatch")
_FORGET_EVERY = timedelta(hours=1)


class Starts(Protocol):
    """What starts DAG runs (`mlops_sdk.airflow_rest.AirflowRest`)."""

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
        """Start a run; False when one with this id exists."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast the dispatcher looks and tries, in seconds.

    Attributes:
        look_s: Between two looks at the inbox; this is how late it may notice an event.
        first_s: Pause after the first attempt that failed; it doubles with each further one.
        longest_s: But is never longer.
        refusals: After so many refusals by Airflow (it answered, and said no) an event is failed.
    """

    look_s: float = 0.05
    first_s: float = 0.5
    longest_s: float = 15.0
    refusals: int = 20

    def pause(self, failures: int) -> float:
        """The pause after so many failures in a row."""
        return min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 16))


class Dispatcher:
    """Starts what waits.

    While Airflow is away nothing else is tried, and nothing is given up. What Airflow refuses (an unknown DAG, say) is
    tried again on its own and failed after `Pace.refusals` refusals; it holds nothing else up.

    Args:
        inbox: What waits.
        airflow: What starts runs.
        routes: Repository full name -> what its pushes start.
        pace: How fast.
        retention: How long the inbox remembers what is settled; it is cleared of the rest once an hour.
        now: The time, for tests.
    """

    def __init__(
        self,
        inbox: Inbox,
        airflow: Starts,
        routes: Mapping[str, Route],
        *,
        pace: Pace | None = None,
        retention: Retention | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._inbox = inbox
        self._airflow = airflow
        self._routes = routes
        self._pace = pace or Pace()
        self._retention = retention or Retention()
        self._now = now
        self._away = 0
        self._forgot_at: datetime | None = None

    def run(self, stop: threading.Event) -> None:
        """Start what waits, whenever it arrives, until told to stop."""
        failures = 0
        while not stop.is_set():
            try:
                seen = self._inbox.version()
                pause = self.dispatch()
                failures = 0
                self._rest(stop, pause, seen)
            except ServiceUnavailable as error:  # the inbox; Airflow's absence is handled where it is noticed
                failures += 1
                _LOG.warning("the inbox cannot be used", extra={"data": {"error": str(error), "failures": failures}})
                stop.wait(self._pace.pause(failures))

    def dispatch(self) -> float:
        """Start everything that is due. Returns the seconds until something may be due again without a new event."""
        for entry in self._inbox.due():
            if not self._start(entry):
                return self._pace.pause(self._away)
        self._away = 0
        self._forget()
        next_due = self._inbox.next_due()
        return self._pace.longest_s if next_due is None else max(0.0, (next_due - self._now()).total_seconds())

    def _start(self, entry: Entry) -> bool:
        """Try one. False when Airflow is away, so that trying another makes no sense."""
        arrival = entry.arrival
        route = self._routes.get(arrival.repository)
        if route is None:
            self._inbox.failed(arrival.key, f"no route for repository {arrival.repository!r}")
            return True
        run_id = run_id_of(arrival.repository, arrival.after, arrival.key)
        try:
            created = self._airflow.trigger(route.dag_id, run_id, conf_of(route, arrival.after, arrival.key))
        except (ServiceUnavailable, AccessDenied) as error:
            self._note_away(entry, error)
            return False
        except MlopsError as error:
            self._note_refusal(entry, error)
        else:
            self._inbox.dispatched(arrival.key, run_id)
            waited = (self._now() - entry.received_at).total_seconds()
            _say("started" if created else "was started before", entry, dag=route.dag_id, run=run_id, waited_s=waited)
        return True

    def _note_away(self, entry: Entry, error: MlopsError) -> None:
        self._away += 1
        again = self._now() + timedelta(seconds=self._pace.pause(self._away))
        self._inbox.tried(entry.arrival.key, str(error), due_at=again, refused=False)
        _say("Airflow is away", entry, level=logging.WARNING, error=str(error), failures=self._away)

    def _note_refusal(self, entry: Entry, error: MlopsError) -> None:
        if entry.refusals + 1 >= self._pace.refusals:
            self._inbox.failed(entry.arrival.key, str(error))
            _say("failed", entry, level=logging.ERROR, error=str(error))
            return
        again = self._now() + timedelta(seconds=self._pace.pause(entry.refusals + 1))
        self._inbox.tried(entry.arrival.key, str(error), due_at=again, refused=True)
        _say("Airflow refused", entry, level=logging.WARNING, error=str(error), refusals=entry.refusals + 1)

    def _forget(self) -> None:
        now = self._now()
        if self._forgot_at is not None and now - self._forgot_at < _FORGET_EVERY:
            return
        self._forgot_at = now
        gone = self._inbox.forget(self._retention)
        if gone:
            _LOG.info("forgot old events", extra={"data": {"events": gone}})

    def _rest(self, stop: threading.Event, pause: float, seen: object) -> None:
        """Wait for `pause` seconds; less when the inbox changes, unless Airflow is away."""
        looks = 0
        while pause > 0 and not stop.wait(min(self._pace.look_s, pause)):
            pause -= self._pace.look_s
            looks += 1
            if not self._away and self._inbox.version() != seen:
                return


def _say(what: str, entry: Entry, *, level: int = logging.INFO, **data: object) -> None:
    arrival = entry.arrival
    named = {"key": arrival.key[:12], "repository": arrival.repository, "commit": arrival.after[:12]}
    _LOG.log(level, what, extra={"data": {**named, **data}})


def connect(settings: WebhookSettings) -> Dispatcher:
    """The dispatcher of a deployment.

    Raises:
        SettingsError: where Airflow is is not set.
    """
    access = settings.airflow
    if access is None:
        raise SettingsError(
            "the dispatcher does not know where Airflow is",
            next_step="set MLOPS_WEBHOOK_AIRFLOW to a JSON object with url, username and password",
        )
    airflow = AirflowRest(access.url, access.username, access.password)
    inbox = Inbox(settings.inbox_url.get_secret_value())
    return Dispatcher(inbox, airflow, settings.routes, retention=settings.retention)


def main() -> int:
    """Run until SIGTERM or SIGINT. Settings as `mlops_sdk.webhooks.config` says."""
    return run_until_stopped(_LOG, lambda: connect(WebhookSettings.load()).run)


if __name__ == "__main__":
    sys.exit(main())
