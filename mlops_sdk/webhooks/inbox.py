"""The durable inbox: one table behind one SQLAlchemy URL (SQLite or PostgreSQL).

Written before a sender gets its answer, emptied by the dispatcher.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from mlops_sdk.errors import MlopsError, ServiceUnavailable, SettingsError
from mlops_sdk.webhooks.entry import Arrival, Entry, EntryState, Retention

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Select, Table

_TABLE: Final = "mlops_webhook_inbox"
_BUSY_MS: Final = 10_000
_ERROR_LENGTH: Final = 1000


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What became of an arrival. `duplicate`: it had arrived before, and nothing was started by this delivery."""

    state: EntryState
    duplicate: bool


class _AlreadyThere(Exception):
    """A row with this key exists."""


class Inbox:
    """What arrived, and what became of it. Any number of processes may use one inbox.

    Each method is one transaction, durable when it returns (SQLite: WAL with full synchronisation).

    Args:
        url: SQLAlchemy URL, for example ``sqlite:////var/lib/mlops/webhooks.db`` or ``postgresql+psycopg2://...``.
        now: The time, for tests.

    Raises:
        ServiceUnavailable: from every method, when the database does not answer or refuses.
        SettingsError: the URL is none, or its driver is not installed.
    """

    def __init__(self, url: str, *, now: Callable[[], datetime] = _now) -> None:
        self._engine = _engine(url)
        self._table = _table()
        self._now = now
        self._watcher: Connection | None = None
        self._ready = False
        self._guard = threading.Lock()

    def close(self) -> None:
        """Close every connection."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        self._engine.dispose()

    def store(self, arrival: Arrival) -> Stored:
        """Keep an arrival, unless its key is there: then only count it.

        One that was ignored and now has a route becomes `received`.
        """
        state = EntryState.IGNORED if arrival.ignored else EntryState.RECEIVED
        now = self._now().timestamp()
        try:
            with self._transaction() as connection:
                connection.execute(self._table.insert().values(**_first(arrival, state, now)))
        except _AlreadyThere:
            return self._store_again(arrival, now)
        return Stored(state=state, duplicate=False)

    def due(self) -> list[Entry]:
        """What is to be started now, oldest first."""
        due = self._waiting().where(self._table.c.due_at <= self._now().timestamp()).order_by(self._table.c.number)
        with self._transaction() as connection:
            return [_entry(row) for row in connection.execute(due).mappings()]

    def next_due(self) -> datetime | None:
        """When the next one is to be started; None when nothing waits."""
        first = self._waiting().order_by(self._table.c.due_at).limit(1)
        with self._transaction() as connection:
            row = connection.execute(first).mappings().one_or_none()
        return None if row is None else _entry(row).due_at

    def entries(self, limit: int = 100) -> list[Entry]:
        """The last ones, newest first."""
        newest = self._table.select().order_by(self._table.c.number.desc()).limit(limit)
        with self._transaction() as connection:
            return [_entry(row) for row in connection.execute(newest).mappings()]

    def find(self, key: str) -> list[Entry]:
        """Those whose key begins with `key`."""
        begins = self._table.c.key.startswith(key, autoescape=True)
        with self._transaction() as connection:
            return [_entry(row) for row in connection.execute(self._table.select().where(begins)).mappings()]

    def dispatched(self, key: str, run_id: str) -> None:
        """Its run exists."""
        now = self._now().timestamp()
        values = {"state": EntryState.DISPATCHED.value, "run_id": run_id, "last_error": "", "settled_at": now}
        self._change(key, {**values, "attempts": self._table.c.attempts + 1})

    def tried(self, key: str, error: str, *, due_at: datetime, refused: bool) -> None:
        """An attempt failed; the next is not before `due_at`."""
        values: dict[str, Any] = {"last_error": error[:_ERROR_LENGTH], "due_at": due_at.timestamp()}
        values["attempts"] = self._table.c.attempts + 1
        if refused:
            values["refusals"] = self._table.c.refusals + 1
        self._change(key, values)

    def failed(self, key: str, error: str) -> None:
        """It cannot be started; somebody must look."""
        now = self._now().timestamp()
        values = {"state": EntryState.FAILED.value, "last_error": error[:_ERROR_LENGTH], "settled_at": now}
        self._change(key, {**values, "attempts": self._table.c.attempts + 1, "refusals": self._table.c.refusals + 1})

    def retry(self, key: str) -> bool:
        """Make one that failed or was ignored wait again; False when it did neither."""
        stopped = self._table.c.state.in_([EntryState.FAILED.value, EntryState.IGNORED.value])
        push = self._table.c.after != ""
        again = {"state": EntryState.RECEIVED.value, "due_at": 0.0, "refusals": 0, "settled_at": None, "ignored": ""}
        with self._transaction() as connection:
            changed = connection.execute(
                self._table.update().where(self._table.c.key == key, stopped, push).values(**again)
            )
            return changed.rowcount > 0

    def forget(self, retention: Retention) -> int:
        """Remove what was settled, and not delivered again, for long; how many events that were."""
        table, now = self._table, self._now()
        settled = [EntryState.DISPATCHED.value, EntryState.FAILED.value]
        old = [
            (table.c.state == EntryState.IGNORED.value, now - retention.ignored),
            (table.c.state.in_(settled), now - retention.pushes),
        ]
        with self._transaction() as connection:
            return sum(
                connection.execute(table.delete().where(which, table.c.last_seen_at < before.timestamp())).rowcount
                for which, before in old
            )

    def version(self) -> object:
        """Changes whenever another connection has written; cheap enough to ask for many times a second.

        SQLite keeps such a number (``PRAGMA data_version``); elsewhere it is what waits.
        """
        with self._translated():
            self._prepare()
            watcher = self._watcher = self._watcher or self._watching()
            try:
                if self._engine.dialect.name == "sqlite":
                    return watcher.exec_driver_sql("PRAGMA data_version").scalar()
                waits = self._waiting().with_only_columns(self._table.c.number, self._table.c.due_at)
                return tuple(tuple(row) for row in watcher.execute(waits).all())
            except BaseException:
                self._watcher = None
                watcher.close()
                raise

    def _watching(self) -> Connection:
        """A connection of its own, outside transactions: it sees what every other one has committed."""
        return self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def _waiting(self) -> Select[Any]:
        return self._table.select().where(self._table.c.state == EntryState.RECEIVED.value)

    def _store_again(self, arrival: Arrival, now: float) -> Stored:
        table = self._table
        same = table.c.key == arrival.key
        with self._transaction() as connection:
            seen = {"duplicates": table.c.duplicates + 1, "last_delivery": arrival.delivery, "last_seen_at": now}
            connection.execute(table.update().where(same).values(**seen))
            revived = False
            if not arrival.ignored:
                routed = {"state": EntryState.RECEIVED.value, "ignored": "", "due_at": now}
                ignored = table.c.state == EntryState.IGNORED.value
                revived = connection.execute(table.update().where(same, ignored).values(**routed)).rowcount > 0
            state = table.select().with_only_columns(table.c.state).where(same)
            return Stored(state=EntryState(connection.execute(state).scalar_one()), duplicate=not revived)

    def _change(self, key: str, values: Mapping[str, Any]) -> None:
        """Only what still waits is changed: what another dispatcher settled stays settled."""
        waiting = self._table.c.state == EntryState.RECEIVED.value
        with self._transaction() as connection:
            connection.execute(self._table.update().where(self._table.c.key == key, waiting).values(**values))

    @contextmanager
    def _transaction(self) -> Generator[Connection]:
        with self._translated():
            self._prepare()
            with self._engine.begin() as connection:
                yield connection

    def _prepare(self) -> None:
        """Create the table, once per process; several processes may do it at once."""
        from sqlalchemy.exc import DatabaseError  # noqa: PLC0415 - an extra
        from sqlalchemy.schema import CreateTable  # noqa: PLC0415 - an extra

        with self._guard:
            if self._ready:
                return
            create = CreateTable(self._table, if_not_exists=True)
            try:
                with self._engine.begin() as connection:
                    connection.execute(create)
            except DatabaseError:  # PostgreSQL: another process created it between the look and the creation
                with self._engine.begin() as connection:
                    connection.execute(create)
            self._ready = True

    @contextmanager
    def _translated(self) -> Generator[None]:
        from sqlalchemy.exc import IntegrityError, SQLAlchemyError  # noqa: PLC0415 - an extra

        try:
            yield
        except MlopsError:
            raise
        except IntegrityError:
            raise _AlreadyThere from None
        except SQLAlchemyError as error:
            where = self._engine.url.render_as_string(hide_password=True)
            raise ServiceUnavailable(
                f"the webhook inbox {where!r} cannot be used",
                seen=str(getattr(error, "orig", None) or type(error).__name__).strip(),
                next_step="check the database; nothing that was answered with 202 is lost",
            ) from None


def _engine(url: str) -> Engine:
    try:
        from sqlalchemy import create_engine, event  # noqa: PLC0415 - an extra
        from sqlalchemy.exc import ArgumentError  # noqa: PLC0415 - an extra
    except ImportError:
        raise SettingsError(
            "the webhook inbox needs SQLAlchemy", next_step="install openinfra-mlops[airflow]"
        ) from None
    try:
        engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
    except ArgumentError:
        raise SettingsError("the inbox URL is not an SQLAlchemy URL", next_step="see MLOPS_WEBHOOK_INBOX_URL") from None
    except ImportError as error:
        raise SettingsError(
            "the inbox URL names a database driver that is not installed", seen=str(error), next_step="install it"
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in (f"busy_timeout = {_BUSY_MS}", "journal_mode = WAL", "synchronous = FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _table() -> Table:
    from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, String, Table, Text  # noqa: PLC0415 - an extra

    return Table(
        _TABLE,
        MetaData(),
        Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("key", String(64), nullable=False, unique=True),
        Column("event", String(64), nullable=False),
        Column("delivery", String(64), nullable=False),
        Column("repository", String(200), nullable=False),
        Column("ref", String(255), nullable=False),
        Column("after", String(64), nullable=False),
        Column("ignored", String(200), nullable=False),
        Column("state", String(16), nullable=False),
        Column("received_at", Float, nullable=False),
        Column("duplicates", Integer, nullable=False),
        Column("last_delivery", String(64), nullable=False),
        Column("last_seen_at", Float, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("refusals", Integer, nullable=False),
        Column("last_error", Text, nullable=False),
        Column("due_at", Float, nullable=False),
        Column("run_id", String(250), nullable=False),
        Column("settled_at", Float),
    )


def _first(arrival: Arrival, state: EntryState, now: float) -> dict[str, Any]:
    return {
        **asdict(arrival),
        "state": state.value,
        "received_at": now,
        "duplicates": 0,
        "last_delivery": arrival.delivery,
        "last_seen_at": now,
        "attempts": 0,
        "refusals": 0,
        "last_error": "",
        "due_at": now,
        "run_id": "",
        "settled_at": None,
    }


def _entry(values: Mapping[Any, Any]) -> Entry:
    return Entry(
        number=values["number"],
        arrival=Arrival(**{field.name: values[field.name] for field in fields(Arrival)}),
        state=EntryState(values["state"]),
        received_at=_time(values["received_at"]),
        duplicates=values["duplicates"],
        attempts=values["attempts"],
        refusals=values["refusals"],
        last_error=values["last_error"],
        due_at=_time(values["due_at"]),
        run_id=values["run_id"],
        settled_at=None if values["settled_at"] is None else _time(values["settled_at"]),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
