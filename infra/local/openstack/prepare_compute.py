"""Make the tables of one service of the compute profile: prepare_compute.py SERVICE CONFIG.

Those of Neutron and Cyborg are made from their models: their migrations do not run on SQLite.
"""

import os
import sys
from collections.abc import Callable

import sqlite_writes

_TRANSPORT = "{scheme}://{username}:{password}@{hostname}:{port}/"  # Nova fills it in from its configuration


def main() -> None:
    """Run once per database."""
    service, config = sys.argv[1:]
    services: dict[str, Callable[[str], list[str]]] = {
        "cinder": cinder,
        "cyborg": cyborg,
        "glance": glance,
        "neutron": neutron,
        "nova": nova,
        "placement": placement,
    }
    for connection in services[service](config):
        sqlite_writes.write_ahead(connection)


def cinder(config: str) -> list[str]:
    """Cinder's migrations."""
    os.environ["OS_CINDER_DISABLE_EVENTLET_PATCHING"] = "1"
    from cinder import objects  # noqa: PLC0415 - one service a process
    from cinder.common import config as _  # noqa: F401, PLC0415 - registers its options
    from cinder.db import migration  # noqa: PLC0415
    from oslo_config import cfg  # noqa: PLC0415

    objects.register_all()
    cfg.CONF(["--config-file", config], project="cinder")
    migration.db_sync()
    return [cfg.CONF.database.connection]


def cyborg(config: str) -> list[str]:
    """All of Cyborg's tables, from its models."""
    import sqlalchemy  # noqa: PLC0415
    from cyborg.common import service  # noqa: PLC0415
    from cyborg.db.sqlalchemy import models  # noqa: PLC0415
    from oslo_config import cfg  # noqa: PLC0415

    service.prepare_service(["cyborg-dbsync", "--config-file", config])
    models.Base.metadata.create_all(sqlalchemy.create_engine(cfg.CONF.database.connection))
    return [cfg.CONF.database.connection]


def glance(config: str) -> list[str]:
    """Glance's migrations; the metadata definitions stay out."""
    from glance.cmd import manage  # noqa: PLC0415

    sys.argv = ["glance-manage", "--config-file", config, "db_sync"]
    if manage.main():
        raise SystemExit("glance-manage db_sync failed")
    return [manage.CONF.database.connection]


def neutron(config: str) -> list[str]:
    """All of Neutron's tables, from its models."""
    import sqlalchemy  # noqa: PLC0415
    from neutron.common import config as neutron_config  # noqa: PLC0415
    from neutron.db.migration.models import head  # noqa: PLC0415
    from oslo_config import cfg  # noqa: PLC0415
    from oslo_db import options  # noqa: PLC0415

    neutron_config.register_common_config_options()
    options.set_defaults(cfg.CONF)
    cfg.CONF(["--config-file", config], project="neutron")
    engine = sqlalchemy.create_engine(cfg.CONF.database.connection)
    head.get_metadata().create_all(engine)
    return [cfg.CONF.database.connection]


def nova(config: str) -> list[str]:
    """The API database, the database of the one cell, and that of servers that never got to a cell."""
    from nova import config as nova_config  # noqa: PLC0415
    from nova import context, objects  # noqa: PLC0415
    from nova.conf import CONF  # noqa: PLC0415
    from nova.db import migration  # noqa: PLC0415
    from oslo_utils import uuidutils  # noqa: PLC0415

    nova_config.parse_args(["nova-manage", "--config-file", config])
    objects.register_all()
    migration.db_sync(database="api")
    admin = context.get_admin_context()
    main = CONF.database.connection
    cell0 = main.replace(".db?", "-cell0.db?")
    cells = (
        ("cell0", objects.CellMapping.CELL0_UUID, "none:///", cell0),
        ("cell1", uuidutils.generate_uuid(), _TRANSPORT, main),
    )
    for name, uuid, transport, connection in cells:
        cell = objects.CellMapping(
            admin, uuid=uuid, name=name, transport_url=transport, database_connection=connection, disabled=False
        )
        cell.create()
        with context.target_cell(admin, cell) as inside:
            migration.db_sync(context=inside)
    return [CONF.api_database.connection, main, cell0]


def placement(config: str) -> list[str]:
    """Placement's migrations."""
    from oslo_config import cfg  # noqa: PLC0415
    from placement import conf, db_api  # noqa: PLC0415
    from placement.db.sqlalchemy import migration  # noqa: PLC0415

    settings = cfg.ConfigOpts()
    conf.register_opts(settings)
    settings(["--config-file", config], project="placement")
    db_api.configure(settings)
    migration.upgrade("head")
    return [settings.placement_database.connection]


if __name__ == "__main__":
    main()
