"""What the BMCs show, walked as a client walks it: from link to link."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from types import ModuleType
from typing import Any

import pytest

from mlops_sdk.local.inventory import reference_inventory


@pytest.fixture
def machine() -> dict[str, Any]:
    return json.loads(json.dumps(asdict(reference_inventory("10.77.3.0/24").machines[2])))


def links(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "@odata.id":
                yield inner
            else:
                yield from links(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from links(inner)


def test_every_link_leads_somewhere(bmc: ModuleType, machine: dict[str, Any]) -> None:
    resources = bmc.resources(machine)
    system = f"/redfish/v1/Systems/{machine['system_uuid']}"
    emulated = {system}

    for resource in (*resources.values(), bmc.complete_system({}, machine)):
        for link in links({key: value for key, value in resource.items() if key != "@odata.id"}):
            assert link in resources or link in emulated, link


def test_gpus_are_found_by_their_pci_id(bmc: ModuleType, machine: dict[str, Any]) -> None:
    functions = [r for r in bmc.resources(machine).values() if r["@odata.type"].startswith("#PCIeFunction.")]

    assert [(f["VendorId"], f["DeviceId"]) for f in functions] == [("0x10de", "0x2335")] * 8


def test_every_port_names_its_switch_and_switch_port(bmc: ModuleType, machine: dict[str, Any]) -> None:
    ports = [r for r in bmc.resources(machine).values() if r["@odata.type"].startswith("#Port.")]
    neighbours = {port["Id"]: port["Ethernet"]["LLDPReceive"] for port in ports}

    assert len(ports) == 10
    assert (neighbours["rail3"]["SystemName"], neighbours["rail3"]["PortId"]) == ("leaf-02", "4")
    assert neighbours["eth1"]["SystemName"] == "tor-02"


def test_the_manager_tells_its_firmware(bmc: ModuleType, machine: dict[str, Any]) -> None:
    assert bmc.complete_manager({"Id": "x"}, machine)["FirmwareVersion"] == machine["bmc_firmware"]
