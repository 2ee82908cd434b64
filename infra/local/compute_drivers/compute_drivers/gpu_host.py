"""Nova's virt driver of the embedded stack: a host with eight A100, whose servers are machines of the stack's network.

Made from Nova's own fake driver, which answers everything that is not said here. A server is spawned as a machine that
boots the stack's image, takes its config drive, and answers SSH at the address that Neutron gave it. Its GPUs, NUMA
nodes and pinned cores exist in Nova, Placement and Cyborg only (`hardware.py`). An attached volume is recorded, not
seen by the machine; pausing and suspending change what Nova says, not what the machine does.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import nova.conf
from nova import exception, objects
from nova.api.metadata import base as instance_metadata
from nova.compute import power_state
from nova.virt import fake
from nova.virt.hardware import InstanceInfo
from oslo_config import cfg

from compute_drivers import hardware
from compute_drivers.servers import Record, Server, Servers

CONF = nova.conf.CONF
CONF.register_opts([cfg.StrOpt("settings", help="JSON: state_dir, image_dir, fabric")], group="gpu_host")

_PAGE_KIB = 4
_SLOW_S = 30.0


class GpuHost(fake.FakeDriverWithoutFakeNodes):
    """The host as Nova drives it."""

    capabilities = {**fake.FakeDriver.capabilities, "supports_pcpus": True}  # noqa: RUF012 - Nova reads it from the class
    vcpus = hardware.SOCKETS * hardware.CORES
    memory_mb = hardware.SOCKETS * hardware.MEMORY_MIB
    local_gb = hardware.DISK_GIB

    def __init__(self, virtapi: Any, read_only: bool = False) -> None:
        super().__init__(virtapi, read_only)
        self._servers = Servers(json.loads(Path(CONF.gpu_host.settings).read_text()))

    def list_instances(self) -> list[str]:
        """Names."""
        return [server.record.name for server in self._servers.all()]

    def list_instance_uuids(self) -> list[str]:
        """Ids."""
        return [server.record.uuid for server in self._servers.all()]

    def instance_exists(self, instance: Any) -> bool:
        """Whether it has a slot here."""
        return self._servers.get(instance.uuid) is not None

    def instance_on_disk(self, instance: Any) -> bool:
        """The same: slots are the disks."""
        return self.instance_exists(instance)

    def get_info(self, instance: Any, use_cache: bool = True) -> InstanceInfo:
        """On while its first process lives."""
        del use_cache
        return InstanceInfo(state=power_state.RUNNING if self._server(instance).is_on else power_state.SHUTDOWN)

    def spawn(  # noqa: PLR0917 - Nova's signature
        self,
        context: Any,
        instance: Any,
        image_meta: Any,
        injected_files: Any,
        admin_password: Any,
        allocations: Any,
        network_info: Any = None,
        block_device_info: Any = None,
        power_on: bool = True,
        accel_info: Any = None,
    ) -> None:
        """Make its slot with its config drive, and switch it on."""
        del context, image_meta, admin_password, allocations, block_device_info
        unbound = [each["uuid"] for each in accel_info or () if each["state"] != "Bound"]
        if unbound:
            raise exception.BuildAbortException(
                instance_uuid=instance.uuid, reason=f"{unbound} are not bound to a card"
            )
        mac, address = _place(network_info or [])
        self._interfaces.update({vif["id"]: vif for vif in network_info or []})
        metadata = instance_metadata.InstanceMetadata(instance, content=injected_files, network_info=network_info)
        drive = {path: _bytes(content) for path, content in metadata.metadata_for_config_drive()}
        server = self._servers.create(
            Record(uuid=instance.uuid, name=instance.name, mac=mac, address=address),
            drive,
        )
        if power_on:
            server.power_on()

    def destroy(  # noqa: PLR0917 - Nova's signature
        self,
        context: Any,
        instance: Any,
        network_info: Any,
        block_device_info: Any = None,
        destroy_disks: bool = True,
        destroy_secrets: bool = True,
    ) -> None:
        """End it; with `destroy_disks`, remove all that it stored. One that is not here is gone already."""
        del context, block_device_info, destroy_secrets
        for vif in network_info or []:
            self._interfaces.pop(vif["id"], None)
        if destroy_disks:
            self._servers.remove(instance.uuid)
        elif server := self._servers.get(instance.uuid):
            server.power_off()

    def cleanup(self, context: Any, instance: Any, *_: Any, destroy_disks: bool = True, **__: Any) -> None:
        """Nothing is left to clean up after `destroy`."""
        del context
        if destroy_disks:
            self._servers.remove(instance.uuid)

    def power_on(self, context: Any, instance: Any, network_info: Any, *_: Any, **__: Any) -> None:
        """Boot it again, with the config drive that it has."""
        del context, network_info
        self._server(instance).power_on()

    def power_off(self, instance: Any, timeout: int = 0, retry_interval: int = 0) -> None:
        """End its processes; nothing asks its operating system."""
        del timeout, retry_interval
        self._server(instance).power_off()

    def reboot(self, context: Any, instance: Any, network_info: Any, reboot_type: str, *_: Any, **__: Any) -> None:
        """Off and on."""
        del context, network_info, reboot_type
        server = self._server(instance)
        server.power_off()
        server.power_on()

    def resume_state_on_host_boot(self, context: Any, instance: Any, network_info: Any, *_: Any, **__: Any) -> None:
        """What ran when this process was killed is switched on again."""
        del context, network_info
        self._server(instance).power_on()

    def unrescue(self, context: Any, instance: Any) -> None:
        """A rescued server is the same machine here."""
        del context
        self._server(instance).power_on()

    def finish_revert_migration(self, context: Any, instance: Any, network_info: Any, *_: Any, **__: Any) -> None:
        """There is one host: nothing has moved."""
        del context, network_info
        self._server(instance).power_on()

    def get_console_output(self, context: Any, instance: Any) -> str:
        """What the machine printed."""
        del context
        return self._server(instance).console()

    def get_host_ip_addr(self) -> str:
        """This computer."""
        return str(CONF.my_ip)

    def get_host_uptime(self) -> str:
        """This computer's, as `uptime` prints it."""
        return subprocess.run(["uptime"], check=True, capture_output=True, text=True).stdout

    def get_available_resource(self, nodename: str) -> dict[str, Any]:
        """Capacity, NUMA nodes and passthrough devices. What is used of them, Nova's resource tracker counts."""
        return {
            **super().get_available_resource(nodename),
            "vcpus_used": 0,
            "memory_mb_used": 0,
            "local_gb_used": 0,
            "numa_topology": _numa_topology()._to_json(),  # noqa: SLF001 - what every virt driver of Nova calls
            "pci_passthrough_devices": json.dumps(hardware.pci_devices()),
        }

    def update_provider_tree(self, provider_tree: Any, nodename: str, allocations: Any = None) -> None:
        """The host and below it one provider for each divided card; passthrough devices are reported by Nova itself."""
        super().update_provider_tree(provider_tree, nodename, allocations=allocations)
        inventory = provider_tree.data(nodename).inventory
        shared = hardware.SOCKETS * hardware.SHARED
        inventory["VCPU"] |= {"total": shared, "max_unit": shared}
        inventory["PCPU"] = hardware.inventory(hardware.SOCKETS * (hardware.CORES - hardware.SHARED))
        inventory["MEMORY_MB"] |= {"allocation_ratio": 1.0}
        provider_tree.update_inventory(nodename, inventory)
        for name, card in hardware.divided_cards(nodename).items():
            if not provider_tree.exists(name):
                provider_tree.new_child(name=name, parent=nodename)
            provider_tree.update_inventory(name, card)
            provider_tree.update_traits(name, [hardware.CARD_TRAIT])

    def _server(self, instance: Any) -> Server:
        server = self._servers.get(instance.uuid)
        if server is None:
            raise exception.InstanceNotFound(instance_id=instance.uuid)
        return server


class GpuHostWithFaults(GpuHost):
    """The same host, for tests: a server fails as its metadata ``fault`` says.

    ``spawn``: it cannot be made. ``slow``: making it takes half a minute. ``no-boot``: it is on and never answers.
    ``destroy``: it cannot be ended, until an administrator resets its state and the key is taken away.
    """

    def spawn(self, context: Any, instance: Any, *arguments: Any, **named: Any) -> None:
        """Fail, wait, or go on without booting."""
        fault = instance.metadata.get("fault")
        if fault == "spawn":
            raise exception.BuildAbortException(instance_uuid=instance.uuid, reason="the test wants it so")
        if fault == "slow":
            time.sleep(_SLOW_S)
        if fault == "no-boot":
            instance.user_data = None
        super().spawn(context, instance, *arguments, **named)

    def destroy(self, context: Any, instance: Any, *arguments: Any, **named: Any) -> None:
        """Fail, or go on."""
        if instance.metadata.get("fault") == "destroy":
            raise exception.InstancePowerOffFailure(reason="the test wants it so")
        super().destroy(context, instance, *arguments, **named)


def _place(network_info: Any) -> tuple[str, str]:
    """Link address and IPv4 address of the first port that has one."""
    for vif in network_info:
        for fixed in vif.fixed_ips():
            if fixed["version"] == 4:  # noqa: PLR2004 - of IP
                return str(vif["address"]), str(fixed["address"])
    return "", ""


def _numa_topology() -> objects.NUMATopology:
    cells = [
        objects.NUMACell(
            id=socket,
            socket=socket,
            cpuset=hardware.shared_of(socket),
            pcpuset=hardware.cores_of(socket) - hardware.shared_of(socket),
            memory=hardware.MEMORY_MIB,
            cpu_usage=0,
            memory_usage=0,
            pinned_cpus=set(),
            siblings=[{core} for core in sorted(hardware.cores_of(socket))],
            mempages=[
                objects.NUMAPagesTopology(
                    size_kb=_PAGE_KIB, total=hardware.MEMORY_MIB * 1024 // _PAGE_KIB, used=0, reserved=0
                )
            ],
            network_metadata=objects.NetworkMetadata(physnets=set(), tunneled=False),
        )
        for socket in range(hardware.SOCKETS)
    ]
    return objects.NUMATopology(cells=cells)


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content
