"""A machine of a lease, as every other part sees it. Pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One leased machine.

    Attributes:
        id: The provider's id (Ironic: node UUID; fixed pool: the host's name).
        name: The provider's name for the machine.
        index: Position in the lease, 0-based.
        address: Where its SSH daemon answers; comes from the inventory.
        host_public_key: The one SSH host key it may show (OpenSSH one-line form): made for this lease, or known before.
        leaf: Name of the leaf switch its InfiniBand rails hang on ("" when unknown).
        position: Port number on that leaf (0 when unknown).
        resource_class: Ironic resource class.
        traits: Ironic traits, sorted.
        gpus: Number of accelerators.
        image: What the machine runs (image name and version).
        driver: Accelerator driver version ("" when unknown).
        firmware: BMC/BIOS firmware version ("" when unknown).
        port: TCP port of its SSH daemon.
        user: The account on it that leases use.
        gateway: Name of the gateway that it is reached through ("" for the direct way).
    """

    id: str
    name: str
    index: int
    address: str
    host_public_key: str
    leaf: str = ""
    position: int = 0
    resource_class: str = ""
    traits: tuple[str, ...] = ()
    gpus: int = 0
    image: str = ""
    driver: str = ""
    firmware: str = ""
    port: int = 22
    user: str = "root"
    gateway: str = ""
