"""Where every host of the fixed pool stands, from one list: what a shared poller shows to all who wait. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from mlops_sdk.capacity.providers.static_claim import ClaimState, HostClaim, age
from mlops_sdk.capacity.watching import Phase, Sight


def sights_of(claims: Iterable[HostClaim]) -> dict[str, Sight]:
    """Leased hosts by the name of the lease's piece (of several the oldest claim), and all hosts by their own name.

    Example:
        >>> sights_of([HostClaim(host="lab-1", state=ClaimState.HELD, name="ml-a-g1-0", ready=True)])["lab-1"].phase
        <Phase.READY: 'ready'>
    """
    found: dict[str, Sight] = {}
    for claim in sorted(claims, key=age):
        found[claim.host] = sight = _sight(claim)
        if claim.state is ClaimState.HELD:
            found.setdefault(claim.name, sight)
    return found


def _sight(claim: HostClaim) -> Sight:
    held = claim.state is ClaimState.HELD
    phase = (Phase.READY if claim.ready else Phase.TENDED) if held else Phase.OTHER
    return Sight(
        phase=phase,
        words=f"{claim.state.value}: {claim.words}" if claim.words else claim.state.value,
        node_id=claim.host,
        node_name=claim.host,
        deadline=claim.marker.deadline if held and claim.marker else None,
        renewed_until=claim.marker.renewed_until if held and claim.marker else None,
    )
