"""Ironic on SQLite: run_ironic.py create_schema|serve --config-file FILE.

oslo.db begins every SQLite transaction with a deferred BEGIN; a read followed by a write then fails at once with
"database is locked" when another writer came between, because no busy timeout applies to that upgrade. BEGIN IMMEDIATE
takes the write lock up front, so the busy timeout does apply.
"""

import sqlite3
import sys

from sqlalchemy import event
from sqlalchemy.engine import Engine, make_url


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def begin_immediate(conn, _cursor, statement, parameters, _context, _executemany):  # noqa: ANN001, ANN201 - SQLAlchemy's
    """Turn BEGIN into BEGIN IMMEDIATE."""
    if statement == "BEGIN" and conn.dialect.name == "sqlite":
        statement = "BEGIN IMMEDIATE"
    return statement, parameters


def main() -> None:
    """Create the schema, or run API and conductor in this process."""
    action = sys.argv.pop(1)
    if action == "create_schema":
        create_schema()
        return
    from ironic.command.singleprocess import main as serve  # noqa: PLC0415 - it must not be imported before its options

    serve()


def create_schema() -> None:
    """Make the tables, and switch the file to write-ahead logging so that readers never wait."""
    from ironic.common import service  # noqa: PLC0415 - as above
    from ironic.conf import CONF  # noqa: PLC0415
    from ironic.db import migration  # noqa: PLC0415

    service.prepare_command(sys.argv)
    migration.create_schema()
    with sqlite3.connect(make_url(CONF.database.connection).database) as database:
        database.execute("PRAGMA journal_mode=WAL")


if __name__ == "__main__":
    main()
