"""The machines: their network and the BMC farm in front of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from mlops_sdk.errors import StackError
from mlops_sdk.local import inventory
from mlops_sdk.local.layout import write_private_json
from mlops_sdk.local.network import Fabric
from mlops_sdk.local.probes import answers_http, said
from mlops_sdk.local.service import Command, Service
from mlops_sdk.local.site import Site

_BMC_USER = "mlops"


def machine_services(site: Site, network: MachineNetwork) -> tuple[Service, ...]:
    """Network, BMC farm and reaper."""
    return (network.service(), _farm(site, network), _reaper(site))


def _farm(site: Site, network: MachineNetwork) -> Service:
    """The BMCs. A machine's processes are the farm's children: a farm that dies takes its machines with it."""
    config = site.layout.data("farm") / "config.json"
    script = site.tools.infra("farm", "farm.py")

    def prepare() -> None:
        write_private_json(
            config,
            inventory.farm_config(
                inventory.reference_inventory(site.addresses.subnet),
                port=site.addresses.bmc,
                username=_BMC_USER,
                password=site.secrets.bmc_password,
                state_dir=str(site.layout.data("machines")),
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


def _reaper(site: Site) -> Service:
    """Gives back what nobody renews, with a credential of its own."""
    log = site.layout.log("reaper")
    return Service(
        name="reaper",
        needs=("settings", "ironic"),
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
        return Service(name="network", address=self.site.addresses.subnet, prepare=self.start, undo=self.stop)

    def description(self) -> dict[str, Any]:
        """What plugs machines in."""
        if self.running is None:
            raise StackError("the machines' network is not up", next_step="start the service 'network' first")
        return self.running.to_json()

    def start(self) -> None:
        """Make the network."""
        ports = self.site.addresses
        self.running = Fabric.start(self.site.layout.tag, ports.subnet, published_ports=(ports.rgw, ports.mlflow))

    def stop(self) -> None:
        """Take it down."""
        if self.running is not None:
            self.running.stop()
            self.running = None
