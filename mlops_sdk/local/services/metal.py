"""Whole machines through Nova: a second nova-compute, with Nova's Ironic driver, in front of Ironic's machines.

Only those of one shard: the other machines of the stack are leased from Ironic itself, and would else be offered twice.
A machine of the shard is still Ironic's; whoever has it, Nova or an allocation, is noted there as its instance, and
Ironic refuses the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mlops_sdk.local.inventory import METAL_SHARD
from mlops_sdk.local.layout import write_private
from mlops_sdk.local.services.compute_offer import wait_until
from mlops_sdk.local.services.keystone import connect
from mlops_sdk.local.site import REGION, Site

NAME: Final = "nova-metal"
HOST: Final = "metal-host-1"


def prepare(site: Site, config: Path, *, login: str) -> None:
    """Its settings, read after those of the first host, and the program by which Nova makes config drives.

    Args:
        site: Whose.
        config: Where the settings go.
        login: Nova's, for Ironic.
    """
    root = config.parent
    (root / "lock").mkdir(mode=0o700, parents=True, exist_ok=True)
    mkisofs = root / "mkisofs"
    script = site.tools.infra("openstack", "mkisofs.py")
    write_private(mkisofs, f'#!/bin/sh\nexec "{site.tools.compute_python}" "{script}" "$@"\n')
    mkisofs.chmod(0o700)
    values = {
        "root": root,
        "host": HOST,
        "mkisofs": mkisofs,
        "login": login,
        "region": REGION,
        "shard": METAL_SHARD,
    }
    site.render("nova-metal.conf", values, config)


def wait_for_machines(site: Site) -> None:
    """Return when Nova offers every machine of its shard, but those that somebody leased from Ironic.

    Raises:
        StackError: it does not.
    """
    ironic: Any = connect(site, "admin", site.secrets.keystone_admin, system_scope="all")
    nova: Any = connect(site, "admin", site.secrets.keystone_admin, project_name="admin")

    def are_offered() -> bool:
        shard = [node for node in ironic.baremetal.nodes(details=True) if node.shard == METAL_SHARD]
        ours = {node.id for node in shard if not node.allocation_id}
        return ours <= {host.name for host in nova.compute.hypervisors(details=True) if host.state == "up"}

    wait_until(are_offered, f"{HOST} offers the machines of shard {METAL_SHARD!r}", NAME)
