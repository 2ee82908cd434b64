"""Make Keystone's database, keys and first administrator: prepare_keystone.py CONFIG URL REGION.

What four `keystone-manage` calls do, in one process. The administrator's password comes in OS_BOOTSTRAP_PASSWORD.
"""

import os
import sys

import keystone.conf
from keystone.cmd import bootstrap
from keystone.common import fernet_utils, sql
from keystone.common.sql import upgrades
from keystone.credential.providers import fernet as credential_fernet


def main() -> None:
    """Run once per database."""
    config, url, region = sys.argv[1:]
    conf = keystone.conf.CONF
    keystone.conf.configure()
    sql.initialize()
    conf(args=["--config-file", config], project="keystone")
    upgrades.offline_sync_database_to_version(None)
    make_keys(conf.fernet_tokens.key_repository, conf.fernet_tokens.max_active_keys, "fernet_tokens")
    make_keys(conf.credential.key_repository, credential_fernet.MAX_ACTIVE_KEYS, "credential")
    first = bootstrap.Bootstrapper()
    first.admin_username = first.project_name = first.admin_role_name = "admin"
    first.admin_password = os.environ["OS_BOOTSTRAP_PASSWORD"]
    first.service_name, first.region_id = "keystone", region
    first.public_url = first.internal_url = first.admin_url = url
    first.immutable_roles = True
    first.bootstrap()


def make_keys(repository: str, count: int, group: str) -> None:
    """Make one repository of Fernet keys."""
    keys = fernet_utils.FernetUtils(repository, count, group)
    keys.create_key_directory()
    keys.initialize_key_repository()


if __name__ == "__main__":
    main()
