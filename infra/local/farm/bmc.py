"""What the BMC of a GPU server shows beyond sushy-tools' emulator: Redfish resources made from the inventory. Pure.

A machine is here the JSON form of `mlops_sdk.local.inventory.MachineInventory`.
"""

from __future__ import annotations

from typing import Any

ROOT = "/redfish/v1"
Resource = dict[str, Any]


def resources(machine: dict[str, Any]) -> dict[str, Resource]:
    """All static resources of one machine, by path."""
    found: dict[str, Resource] = {}
    for resource in (
        *_processors(machine),
        *_pcie_devices(machine),
        *_storage(machine),
        *_ethernet_interfaces(machine),
        *_chassis(machine),
    ):
        found[resource["@odata.id"]] = resource
    return found


def complete_system(system: Resource, machine: dict[str, Any]) -> Resource:
    """The emulator's ComputerSystem with what it leaves out."""
    gpu = machine["gpus"][0]["model"] if machine["gpus"] else "no GPU"
    path = _system(machine)
    return system | {
        "Manufacturer": "Supermicro",
        "Model": f"{len(machine['gpus'])}x {gpu}",
        "SerialNumber": machine["serial"],
        "BiosVersion": machine["bios_version"],
        "ProcessorSummary": {"Count": len(machine["processors"]), "Model": machine["processors"][0]["model"]},
        "MemorySummary": {"TotalSystemMemoryGiB": machine["memory_gib"]},
        "Processors": {"@odata.id": f"{path}/Processors"},
        "PCIeDevices": [{"@odata.id": f"{path}/PCIeDevices/{gpu['name']}"} for gpu in machine["gpus"]],
        "Links": system.get("Links", {}) | {"Chassis": [{"@odata.id": _chassis_path(machine)}]},
    }


def complete_manager(manager: Resource, machine: dict[str, Any]) -> Resource:
    """The emulator's Manager (the BMC itself) with its firmware version."""
    return manager | {"Model": "AST2600", "FirmwareVersion": machine["bmc_firmware"]}


def _system(machine: dict[str, Any]) -> str:
    return f"{ROOT}/Systems/{machine['system_uuid']}"


def _chassis_path(machine: dict[str, Any]) -> str:
    return f"{ROOT}/Chassis/{machine['name']}"


def _processors(machine: dict[str, Any]) -> list[Resource]:
    base = f"{_system(machine)}/Processors"
    members = [
        _resource(
            f"{base}/{cpu['name']}",
            "Processor.v1_18_0.Processor",
            Socket=cpu["name"],
            ProcessorType="CPU",
            Manufacturer=cpu["vendor"],
            Model=cpu["model"],
            InstructionSet="x86-64",
            TotalCores=cpu["cores"],
            TotalThreads=cpu["threads"],
            Status={"State": "Enabled", "Health": "OK"},
        )
        for cpu in machine["processors"]
    ]
    return [_collection(base, "Processor", members), *members]


def _pcie_devices(machine: dict[str, Any]) -> list[Resource]:
    base = f"{_system(machine)}/PCIeDevices"
    devices: list[Resource] = []
    parts: list[Resource] = []
    for gpu in machine["gpus"]:
        path = f"{base}/{gpu['name']}"
        function = _resource(
            f"{path}/PCIeFunctions/0",
            "PCIeFunction.v1_5_0.PCIeFunction",
            FunctionId=0,
            FunctionType="Physical",
            DeviceClass="ProcessingAccelerators",
            VendorId=f"0x{gpu['vendor_id']}",
            DeviceId=f"0x{gpu['device_id']}",
        )
        functions = _collection(f"{path}/PCIeFunctions", "PCIeFunction", [function])
        devices.append(
            _resource(
                path,
                "PCIeDevice.v1_11_0.PCIeDevice",
                Manufacturer="NVIDIA",
                Model=gpu["model"],
                SerialNumber=gpu["serial"],
                PCIeFunctions={"@odata.id": functions["@odata.id"]},
            )
        )
        parts += [functions, function]
    return [_collection(base, "PCIeDevice", devices), *devices, *parts]


def _storage(machine: dict[str, Any]) -> list[Resource]:
    base = f"{_system(machine)}/Storage"
    drives = [
        _resource(
            f"{base}/1/Drives/{drive['name']}",
            "Drive.v1_10_0.Drive",
            Manufacturer="Samsung",
            Model=drive["model"],
            SerialNumber=drive["serial"],
            CapacityBytes=drive["capacity_bytes"],
            MediaType="SSD",
            Protocol="NVMe",
        )
        for drive in machine["drives"]
    ]
    volumes = _collection(f"{base}/1/Volumes", "Volume", [])
    controller = _resource(
        f"{base}/1",
        "Storage.v1_10_0.Storage",
        Drives=[{"@odata.id": drive["@odata.id"]} for drive in drives],
        Volumes={"@odata.id": volumes["@odata.id"]},
        StorageControllers=[],
    )
    controller["Drives@odata.count"] = len(drives)
    return [_collection(base, "Storage", [controller]), controller, volumes, *drives]


def _ethernet_interfaces(machine: dict[str, Any]) -> list[Resource]:
    """Every port, InfiniBand too: this is where inspection looks for link addresses."""
    base = f"{_system(machine)}/EthernetInterfaces"
    members = [
        _resource(
            f"{base}/{port['name']}",
            "EthernetInterface.v1_9_0.EthernetInterface",
            PermanentMACAddress=port["mac"],
            MACAddress=port["mac"],
            SpeedMbps=port["gbps"] * 1000,
            LinkStatus="LinkUp",
            Status={"State": "Enabled", "Health": "OK"},
        )
        for port in _ports(machine)
    ]
    return [_collection(base, "EthernetInterface", members), *members]


def _chassis(machine: dict[str, Any]) -> list[Resource]:
    path = _chassis_path(machine)
    adapters: list[Resource] = []
    parts: list[Resource] = []
    for port in _ports(machine):
        adapter = f"{path}/NetworkAdapters/{port['name']}"
        cabled = _network_port(f"{adapter}/Ports/{port['name']}", port)
        ports = _collection(f"{adapter}/Ports", "Port", [cabled])
        adapters.append(
            _resource(
                adapter,
                "NetworkAdapter.v1_9_0.NetworkAdapter",
                Manufacturer="NVIDIA",
                Model=port["adapter"],
                Ports={"@odata.id": ports["@odata.id"]},
            )
        )
        parts += [ports, cabled]
    collection = _collection(f"{path}/NetworkAdapters", "NetworkAdapter", adapters)
    chassis = _resource(
        path,
        "Chassis.v1_20_0.Chassis",
        ChassisType="RackMount",
        SerialNumber=machine["serial"],
        Location={"Placement": {"Rack": machine["rack"]}},
        NetworkAdapters={"@odata.id": collection["@odata.id"]},
        Links={"ComputerSystems": [{"@odata.id": _system(machine)}]},
    )
    return [chassis, collection, *adapters, *parts]


def _network_port(path: str, port: dict[str, Any]) -> Resource:
    neighbour = {
        "ChassisId": port["switch_id"],
        "ChassisIdSubtype": "MacAddr",
        "PortId": str(port["switch_port"]),
        "PortIdSubtype": "IfName",
        "SystemName": port["switch"],
    }
    return _resource(
        path,
        "Port.v1_11_0.Port",
        PortId=port["name"],  # inspection joins ports to interfaces by name
        PortProtocol=port["kind"],
        CurrentSpeedGbps=port["gbps"],
        LinkStatus="LinkUp",
        Ethernet={"AssociatedMACAddresses": [port["mac"]], "LLDPReceive": neighbour},
    )


def _ports(machine: dict[str, Any]) -> list[dict[str, Any]]:
    return [*machine["infiniband"], *machine["ethernet"]]


def _resource(path: str, kind: str, **fields: Any) -> Resource:
    name = path.rsplit("/", 1)[1]
    return {"@odata.id": path, "@odata.type": f"#{kind}", "Id": name, "Name": name, **fields}


def _collection(path: str, kind: str, members: list[Resource]) -> Resource:
    resource = _resource(path, f"{kind}Collection.{kind}Collection")
    resource["Members"] = [{"@odata.id": member["@odata.id"]} for member in members]
    resource["Members@odata.count"] = len(members)
    return resource
