"""Where every server of Nova stands, from two lists: what a shared poller shows to all who wait. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mlops_sdk.capacity.lease import Marker
from mlops_sdk.capacity.providers.nova_states import AcquireStep, ReturnStep, acquire_step, chosen, return_step
from mlops_sdk.capacity.providers.nova_view import Port, Server, in_force, records
from mlops_sdk.capacity.watching import Phase, Sight

_PHASES: Mapping[AcquireStep, Phase] = {AcquireStep.WAIT: Phase.COMING, AcquireStep.READY: Phase.READY}


def sights_of(servers: Iterable[Server], ports: Iterable[Port]) -> dict[str, Sight]:
    """Servers by name (of several the chosen one) and by id.

    Example:
        >>> sights_of([Server(id="1", name="ml-a-g1-0", status="BUILD")], [])["ml-a-g1-0"].phase
        <Phase.COMING: 'coming'>
    """
    record = records(ports)
    by_name: dict[str, list[Server]] = {}
    found: dict[str, Sight] = {}
    for server in servers:
        by_name.setdefault(server.name, []).append(server)
        found[server.id] = _sight(server, record)
    for name, same in by_name.items():
        kept = chosen(same)
        if kept is not None:
            found[name] = found[kept.id]
    return found


def _sight(server: Server, record: Mapping[str, Marker]) -> Sight:
    marker = in_force(server.name, server.marker, record)
    going = return_step(server) is ReturnStep.WAIT
    return Sight(
        phase=Phase.GOING if going else _PHASES.get(acquire_step(server), Phase.OTHER),
        words=str(server),
        node_id=server.id,
        node_name=server.name,
        deadline=marker.deadline if marker is not None else None,
        renewed_until=marker.renewed_until if marker is not None else None,
    )
