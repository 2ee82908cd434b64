"""The machines: their network, the BMC farm in front of them, their enrolment in Ironic, and the reaper."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_sdk.errors import StackError
from mlops_sdk.local import inventory
from mlops_sdk.local.enroll import BmcAccess, enroll
from mlops_sdk.local.layout import write_private_json
from mlops_sdk.local.network import Fabric
from mlops_sdk.local.probes import answers_http, said
from mlops_sdk.local.service import Command, Service
from mlops_sdk.local.services.keystone import OUR_PROJECT, connect, identity
from mlops_sdk.local.services.serving import serving_host
from mlops_sdk.local.site import Site

_BMC_USER = "mlops"


def machine_services(site: Site, network: MachineNetwork, *, faults: bool, metal: bool = False) -> tuple[Service, ...]:
    """Network, BMC farm, enrolment and reaper.

    With `faults`, the nodes' deploy interface fails on demand; with `metal`, there are machines for Nova besides.
    """
    ours = inventory.reference_inventory(site.addresses.subnet)
    of_nova = inventory.metal_inventory(site.addresses.subnet)
    return (
        network.service(),
        _farm(site, network, (*ours.machines, *of_nova.machines) if metal else ours.machines),
        _nodes(site, "nodes", ours, faults=faults),
        *((_nodes(site, "metal-nodes", of_nova, faults=faults),) if metal else ()),
        _reaper(site),
    )


def _farm(site: Site, network: MachineNetwork, machines: Iterable[inventory.MachineInventory]) -> Service:
    """The BMCs. A machine's processes are the farm's children: a farm that dies takes its machines with it."""
    config = site.layout.data("farm") / "config.json"
    script = site.tools.infra("farm", "farm.py")

    def prepare() -> None:
        write_private_json(
            config,
            inventory.farm_config(
                machines,
                port=site.addresses.bmc,
                username=_BMC_USER,
                password=site.secrets.bmc_password,
                state_dir=str(_machines(site)),
                image_dir=str(site.tools.node_image),
                fabric=network.description(),
            ),
        )

    return Service(
        name="farm",
        needs=("network",),
        address=site.url("bmc"),
        prepare=prepare,
        command=lambda: Command(argv=(str(site.tools.openstack_python), str(script), "--config", str(config))),
        probe=lambda: answers_http(site.addresses.bmc, "/redfish/v1"),
    )


def _nodes(site: Site, name: str, of: inventory.Inventory, *, faults: bool) -> Service:
    """Each machine enrolled and `available`, unless somebody holds it."""

    def prepare() -> None:
        with site.layout.log(name).open("a") as log:
            enroll(
                connect(site, "admin", site.secrets.keystone_admin, system_scope="all"),
                of,
                bmc=BmcAccess(url=site.url("bmc"), username=_BMC_USER, password=site.secrets.bmc_password),
                owner_project_id=identity(site)["projects"][OUR_PROJECT],
                machine_root=_machines(site),
                deploy_interface="machine-faults" if faults else "machine",
                say=lambda line: print(line, file=log, flush=True),
            )

    names = ", ".join(machine.name for machine in of.machines)
    return Service(name=name, needs=("keystone", "ironic", "farm"), address=names, prepare=prepare)


def _machines(site: Site) -> Path:
    """Where each machine has its slot: what Ironic and the farm share."""
    return site.layout.data("machines")


def _reaper(site: Site) -> Service:
    """Gives back what nobody renews, with a credential of its own."""
    log = site.layout.log("reaper")
    return Service(
        name="reaper",
        needs=("settings", "nodes"),
        command=lambda: Command(
            argv=(sys.executable, "-m", "mlops_sdk.capacity.reaper"),
            env={"MLOPS_CONFIG": str(site.layout.reaper_toml)},
        ),
        probe=lambda: said(log, "started"),
        stop_timeout_s=3.0,
    )


@dataclass(slots=True, kw_only=True)
class MachineNetwork:
    """The fabric of this stack, once it was started."""

    site: Site
    running: Fabric | None = None

    def service(self) -> Service:
        """The network as a step: its namespace lives as long as the stack."""
        return Service(
            name="network",
            address=self.site.addresses.subnet,
            prepare=self.start,
            alive=lambda: self.running is not None and self.running.alive,
            undo=self.stop,
        )

    def description(self) -> dict[str, Any]:
        """What plugs machines in."""
        if self.running is None:
            raise StackError("the machines' network is not up", next_step="start the service 'network' first")
        return self.running.to_json()

    def start(self) -> None:
        """Make the network."""
        ports = self.site.addresses
        self.running = Fabric.start(
            self.site.layout.tag,
            ports.subnet,
            published_ports=(ports.rgw,),
            hosts=(serving_host(ports.subnet),),
        )

    def stop(self) -> None:
        """Take it down."""
        if self.running is not None:
            self.running.stop()
            self.running = None
