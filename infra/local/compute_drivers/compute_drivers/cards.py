"""Cyborg's driver of the embedded stack: the host's A30 cards, each handed out whole.

Cyborg reports what is found here to Placement, below Nova's own provider of the host, and keeps account of who has
which.
"""

from __future__ import annotations

import json
from typing import Any

from cyborg.accelerator.drivers.driver import GenericDriver
from cyborg.common import constants
from cyborg.conf import CONF
from cyborg.objects.driver_objects.driver_attach_handle import DriverAttachHandle
from cyborg.objects.driver_objects.driver_attribute import DriverAttribute
from cyborg.objects.driver_objects.driver_controlpath_id import DriverControlPathID
from cyborg.objects.driver_objects.driver_deployable import DriverDeployable
from cyborg.objects.driver_objects.driver_device import DriverDevice

from compute_drivers import hardware


class HostCards(GenericDriver):
    """What the host has, as Cyborg's agent asks for it."""

    def discover(self) -> list[DriverDevice]:
        """Every card, each with one thing to attach: itself."""
        return [_device(name, address) for name, address in hardware.whole_cards(CONF.host).items()]

    def update(self, control_path: Any, image_path: Any) -> bool:
        """A GPU takes no bitstream."""
        del control_path, image_path
        return False

    def get_stats(self) -> dict[str, Any]:
        """Nothing is measured."""
        return {}


def _device(name: str, address: str) -> DriverDevice:
    domain, bus, rest = address.split(":")
    slot, function = rest.split(".")
    where = json.dumps({"domain": domain, "bus": bus, "device": slot, "function": function})
    attributes = {"rc": hardware.WHOLE_CLASS, "trait0": hardware.WHOLE_TRAIT}
    return DriverDevice(
        vendor=hardware.VENDOR,
        model="NVIDIA A30",
        type=constants.DEVICE_GPU,
        std_board_info=json.dumps({"product_id": hardware.WHOLE_PRODUCT}),
        stub=False,
        controlpath_id=DriverControlPathID(cpid_type=constants.CPID_TYPE_PCI, cpid_info=where),
        deployable_list=[
            DriverDeployable(
                name=name,
                num_accelerators=1,
                driver_name="host_cards",
                attach_handle_list=[
                    DriverAttachHandle(attach_type=constants.AH_TYPE_PCI, attach_info=where, in_use=False)
                ],
                attribute_list=[DriverAttribute(key=key, value=value) for key, value in attributes.items()],
            )
        ],
    )
