"""What a machine is deployed with (Ironic's `instance_info`): the image, and for whom. Pure.

Ironic forgets it when it tears the machine down, and deploys nothing without an image. So a request for a deployment
that arrives after the machine was given back is refused; where Ironic needs no image and deploys it all the same, the
machine says whose it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlops_sdk.capacity.lease import MARKER, Marker
from mlops_sdk.capacity.providers.ironic_view import Machine

_NAME = "display_name"  # Ironic shows it as the name of the instance


def instance_of(image: Mapping[str, Any], *, allocation: str, marker: Marker) -> dict[str, Any]:
    """What to tell Ironic before a deployment.

    Args:
        image: What it says of the image (`IronicImage.instance_info`); empty for machines that need none.
        allocation: Name of the lease on the machine.
        marker: Of that lease.
    """
    return {_NAME: allocation, MARKER: marker.to_json(), **image}


def deployed_for(machine: Machine) -> str:
    """Name of the allocation for which a machine was told what to be deployed with; "" when nobody said, or not we."""
    return str(machine.instance.get(_NAME, "")) if marker_of(machine) is not None else ""


def marker_of(machine: Machine) -> Marker | None:
    """Ours, as it was when the deployment began."""
    return Marker.parse(machine.instance)


def same_instance(machine: Machine, wanted: Mapping[str, Any]) -> bool:
    """Whether the machine was told the same before. The marker's times move, and Ironic adds what it finds out."""
    told = all(machine.instance.get(key) == value for key, value in wanted.items() if key != MARKER)
    return told and deployed_for(machine) == wanted[_NAME]
