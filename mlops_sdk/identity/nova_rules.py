"""What a run does at Nova, Neutron, Cinder, Glance and Cyborg, and reads in Ironic, as method and path. Pure.

Paths there hold ids that are not known before, so none can be narrowed to a run's own: within its project a run could
ask for another run's server to be deleted. The fence and the owner re-read before each action keep our own code from
it; a project for each team keeps a stranger's out. Placement is left out: it shows its figures to operators only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NOVA_CALLS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "compute": (
        ("POST", "/v2.1/servers"),
        ("GET", "/v2.1/servers/detail"),
        ("GET", "/v2.1/servers/*"),
        ("DELETE", "/v2.1/servers/*"),
        ("GET", "/v2.1/servers/*/os-instance-actions"),
        ("GET", "/v2.1/servers/*/os-instance-actions/*"),
        ("GET", "/v2.1/flavors/detail"),
        ("GET", "/v2.1/limits"),
    ),
    "network": (
        ("GET", "/v2.0/networks"),
        ("GET", "/v2.0/security-groups"),
        ("POST", "/v2.0/ports"),
        ("GET", "/v2.0/ports"),
        ("PUT", "/v2.0/ports/*"),
        ("DELETE", "/v2.0/ports/*"),
    ),
    "block-storage": (
        ("POST", "/v3/*/volumes"),
        ("GET", "/v3/*/volumes/detail"),
        ("DELETE", "/v3/*/volumes/*"),
    ),
    "image": (("GET", "/v2/images"),),
    "baremetal": (  # how the machine under a server of Ironic's ended: only reads
        ("GET", "/v1/nodes"),
        ("GET", "/v1/nodes/*"),
        ("GET", "/v1/nodes/*/history"),
    ),
    "accelerator": (  # what a device profile asks for; whether a server that is gone still holds a card
        ("GET", "/v2/device_profiles"),
        ("GET", "/v2/accelerator_requests"),
    ),
}
