"""What the compute profile offers its users: an image, a network, flavors and limits; made once its services answer."""

from __future__ import annotations

import io
import ipaddress
import time
from collections.abc import Callable
from typing import Any, Final

from openstack.connection import Connection
from openstack.exceptions import raise_from_response

from mlops_sdk.errors import StackError
from mlops_sdk.local.flavors import CYBORG_TRAIT, FLAVORS, MIG_CLASS, NETWORK, PROFILES, Flavor
from mlops_sdk.local.inventory import IMAGE_NAME
from mlops_sdk.local.layout import write_private_json
from mlops_sdk.local.services.keystone import OTHER_PROJECT, OUR_PROJECT, connect, identity
from mlops_sdk.local.site import Site

HOST: Final = "gpu-host-1"
PHYSICAL_NETWORK: Final = "machines"
_SUBNET: Final = "machines-v4"
_FIRST, _LAST = 100, 179  # of the stack's subnet: below are the machines behind BMCs, above static hosts
_INSTANCES: Final = {OUR_PROJECT: 12, OTHER_PROJECT: 2}
_STANDS_FOR: Final = "machine_image"  # what `infra/local/ironic_machine` looks for
_IMAGE_CHANGE: Final = "application/openstack-images-v2.1-json-patch"
_IMAGE_BYTES: Final = b"This machine boots what the stack's Python image holds.\n".ljust(512, b"\0")
_WITHIN_S: Final = 90.0
_EVERY_S: Final = 0.5


def offer(site: Site) -> None:
    """Make what is missing, and write `compute.json`. Idempotent; what is there already stays.

    Raises:
        StackError: the host does not appear in Nova or Placement.
    """
    cloud: Any = connect(site, "admin", site.secrets.keystone_admin, project_name="admin")
    _image(cloud, f"file://{site.tools.node_image}")
    network = _network(cloud, site.addresses.subnet)
    _profiles(cloud)
    for flavor in FLAVORS:
        _flavor(cloud, flavor)
    projects = identity(site)["projects"]
    for project, instances in _INSTANCES.items():
        cloud.set_compute_quotas(projects[project], instances=instances)
    wait_until(lambda: _has_gpus(cloud), f"{HOST} reports its GPUs to Placement", "nova-compute")
    wait_until(lambda: _has_cyborgs(cloud), f"Cyborg reports the cards of {HOST} to Placement", "cyborg-agent")
    wait_until(lambda: _is_mapped(cloud), f"Nova may place servers on {HOST}", "nova-scheduler")
    wait_until(lambda: _has_volumes(cloud), "Cinder has a place for volumes", "cinder-volume")
    write_private_json(
        site.layout.compute_json,
        {
            "compute_url": site.url("nova"),
            "image": IMAGE_NAME,
            "network": NETWORK,
            "network_id": network,
            "flavors": [flavor.name for flavor in FLAVORS],
            "instances": _INSTANCES,
        },
    )


def _image(cloud: Any, folder: str) -> None:
    """The image; Ironic is told by its property what to boot, and Nova's own host boots that anyway."""
    there = cloud.image.find_image(IMAGE_NAME)
    if there is not None:
        if there.properties.get(_STANDS_FOR) != folder:
            # openstacksdk's own update of a property that an image lacks is refused by Glance (409)
            change = [{"op": "add", "path": f"/{_STANDS_FOR}", "value": folder}]
            reply = cloud.image.patch(f"/images/{there.id}", json=change, headers={"Content-Type": _IMAGE_CHANGE})
            raise_from_response(reply)
        return
    for half_made in cloud.image.images(name=IMAGE_NAME):
        cloud.image.delete_image(half_made)
    cloud.image.create_image(
        IMAGE_NAME,
        data=io.BytesIO(_IMAGE_BYTES),
        container_format="bare",
        disk_format="raw",
        visibility="public",
        validate_checksum=False,
        **{_STANDS_FOR: folder},
    )


def _network(cloud: Any, subnet: str) -> str:
    """A network that every project may use, on the stack's own subnet. Returns its id."""
    block = ipaddress.IPv4Network(subnet)
    network = cloud.network.find_network(NETWORK) or cloud.network.create_network(
        name=NETWORK,
        is_shared=True,
        provider_network_type="flat",
        provider_physical_network=PHYSICAL_NETWORK,
        is_port_security_enabled=False,
    )
    if cloud.network.find_subnet(_SUBNET) is None:
        cloud.network.create_subnet(
            network_id=network.id,
            name=_SUBNET,
            ip_version=4,
            cidr=subnet,
            gateway_ip=None,
            is_dhcp_enabled=False,
            allocation_pools=[{"start": str(block[_FIRST]), "end": str(block[_LAST])}],
        )
    return str(network.id)


def _profiles(cloud: Any) -> None:
    """Cyborg's device profiles: what a flavor names instead of a resource."""
    there = {profile.name for profile in cloud.accelerator.device_profiles()}
    for name, groups in PROFILES.items():
        if name not in there:
            cloud.accelerator.create_device_profile(name=name, groups=list(groups))


def _flavor(cloud: Any, wanted: Flavor) -> None:
    flavor = cloud.compute.find_flavor(wanted.name) or cloud.compute.create_flavor(
        name=wanted.name, vcpus=wanted.vcpus, ram=wanted.memory_mib, disk=wanted.disk_gib
    )
    if wanted.extra_specs:
        cloud.compute.create_flavor_extra_specs(flavor, dict(wanted.extra_specs))


def _has_gpus(cloud: Connection) -> bool:
    """The host's smallest parts are counted; Nova writes the inventory of a host in one go."""
    return _counts(cloud, f"resources={MIG_CLASS}:1")


def _has_cyborgs(cloud: Connection) -> bool:
    """Cyborg's agent has looked at the host."""
    return _counts(cloud, f"resources=PGPU:1&required={CYBORG_TRAIT}")


def _counts(cloud: Connection, query: str) -> bool:
    """Placement has a provider of this kind."""
    reply = cloud.session.get(
        f"/resource_providers?{query}",
        endpoint_filter={"service_type": "placement"},
        headers={"OpenStack-API-Version": "placement 1.18"},
        raise_exc=False,  # before the class or trait exists, it is 400
    )
    return reply.ok and bool(reply.json()["resource_providers"])


def _is_mapped(cloud: Any) -> bool:
    """Nova's scheduler has found the host; until then it places nothing there."""
    return any(host.name == HOST and host.state == "up" for host in cloud.compute.hypervisors(details=True))


def _has_volumes(cloud: Any) -> bool:
    return any(s.binary == "cinder-volume" and s.state == "up" for s in cloud.block_storage.services())


def wait_until(condition: Callable[[], bool], what: str, service: str) -> None:
    """Look until it is so.

    Raises:
        StackError: not within the time for it.
    """
    deadline = time.monotonic() + _WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(
                "the compute profile is not usable",
                seen=f"not within {_WITHIN_S:.0f} s: {what}",
                next_step=f"see the log of {service}",
            )
        time.sleep(_EVERY_S)
