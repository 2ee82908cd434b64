"""Migrate Airflow's database and write its connections: prepare_airflow.py < connections.json.

What `airflow db migrate` and `airflow connections add` do, in one process. Standard input has a JSON object: connection
id -> the fields of the connection, ``extra`` as an object. AIRFLOW_HOME names the configuration.
"""

import json
import sys

from airflow.models.connection import Connection  # the table's row; airflow.sdk has another class of that name
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from sqlalchemy import select


def main() -> None:
    """Run as often as you like: what is there already is migrated, and its connections replaced."""
    wanted = json.load(sys.stdin)
    initdb()
    with create_session() as session:
        for conn_id, fields in wanted.items():
            found = session.scalar(select(Connection).where(Connection.conn_id == conn_id))
            if found is None:
                found = Connection(conn_id=conn_id)
                session.add(found)
            for name in ("conn_type", "host", "port", "login", "description"):
                setattr(found, name, fields.get(name))
            found.set_password(fields.get("password"))
            found.set_extra(json.dumps(fields.get("extra", {})))


if __name__ == "__main__":
    main()
