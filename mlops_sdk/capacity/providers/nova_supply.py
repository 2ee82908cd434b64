"""How many more servers of a flavor there is room for, as far as the cloud says. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlops_sdk.capacity.flavors import Flavor, Offer
from mlops_sdk.capacity.providers.nova_api import Limits, Stock


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many more servers fit, and how that is known."""

    servers: int
    words: str


def room_for(
    flavor: Flavor, offer: Offer, *, limits: Limits, stock: Iterable[Stock] | None, held: int, most: int
) -> Room:
    """The least of what the quota leaves, what Placement has, and what this deployment allows itself.

    Args:
        flavor: Of the servers.
        offer: What it needs.
        limits: What is left of the quota.
        stock: What Placement shows; None when it shows nothing to this login.
        held: Servers of this flavor that there are.
        most: That this deployment may have of one flavor.

    Example:
        >>> small = Flavor(id="1", name="small", vcpus=2, ram_mb=1024, disk_gb=1)
        >>> from mlops_sdk.capacity.flavors import check_flavor
        >>> room_for(small, check_flavor(small), limits=Limits(cores=5), stock=[], held=0, most=16)
        Room(servers=0, words='the hosts have room for 0')
    """
    known = {"the settings allow": max(0, most - held)}
    left = _left(flavor, limits)
    if left is not None:
        known["the quota leaves"] = left
    if stock is not None:
        known["the hosts have room for"] = fits(offer.needs, stock)
    least = min(known.values())
    by = " and ".join(what for what, number in known.items() if number == least)
    blind = "; which hosts are free is not known: Placement does not show this login" if stock is None else ""
    return Room(servers=least, words=f"{by} {least}{blind}")


def fits(needs: Mapping[str, Mapping[str, int]], stock: Iterable[Stock]) -> int:
    """How many times the needs fit. Each resource class of a group comes out of one provider of a host.

    An upper bound: which of a host's providers go together (NUMA, one card for two groups) only Nova knows.
    """
    hosts: dict[str, list[Stock]] = {}
    for each in stock:
        hosts.setdefault(each.root, []).append(each)
    asked: dict[str, Counter[int]] = {}
    for wanted in needs.values():
        for name, amount in wanted.items():
            asked.setdefault(name, Counter())[amount] += 1
    return sum(
        min((_times(name, counts, host) for name, counts in asked.items()), default=0) for host in hosts.values()
    )


def _times(name: str, counts: Counter[int], host: Iterable[Stock]) -> int:
    """How many times a host has these amounts of one class: several groups that want the same share it."""
    free = [each.capacity.get(name, 0) - each.used.get(name, 0) for each in host]
    amount = max(counts)
    places = sum(max(0, left) // amount for left in free)
    return places // sum(counts.values())


def _left(flavor: Flavor, limits: Limits) -> int | None:
    found = [limits.servers] if limits.servers is not None else []
    if limits.cores is not None and flavor.vcpus:
        found.append(limits.cores // flavor.vcpus)
    if limits.ram_mb is not None and flavor.ram_mb:
        found.append(limits.ram_mb // flavor.ram_mb)
    return min(found, default=None)
