"""Ironic on SQLite: run_ironic.py create_schema|serve --config-file FILE."""

import sys

import sqlite_writes


def main() -> None:
    """Create the schema, or run API and conductor in this process."""
    action = sys.argv.pop(1)
    sqlite_writes.begin_immediate()
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
    sqlite_writes.write_ahead(CONF.database.connection)


if __name__ == "__main__":
    main()
