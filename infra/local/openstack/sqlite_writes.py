"""Make services that expect a database server get along with SQLite.

oslo.db begins every SQLite transaction with a deferred BEGIN; a read followed by a write then fails at once with
"database is locked" when another writer came between, because no busy timeout applies to that upgrade. BEGIN IMMEDIATE
takes the write lock up front, so the busy timeout does apply. Write-ahead logging lets readers go on meanwhile.
"""

import sqlite3

from sqlalchemy import event
from sqlalchemy.engine import Engine, make_url


def begin_immediate() -> None:
    """From now on, every transaction of this process takes the write lock when it begins."""
    event.listen(Engine, "before_cursor_execute", _immediate, retval=True)


def write_ahead(connection: str) -> None:
    """Switch a database file, given as SQLAlchemy's URL, to write-ahead logging. It stays so."""
    with sqlite3.connect(make_url(connection).database) as database:
        database.execute("PRAGMA journal_mode=WAL")


def _immediate(conn, _cursor, statement, parameters, _context, _executemany):  # noqa: ANN001, ANN202 - SQLAlchemy's
    """Turn BEGIN into BEGIN IMMEDIATE."""
    if statement == "BEGIN" and conn.dialect.name == "sqlite":
        statement = "BEGIN IMMEDIATE"
    return statement, parameters
