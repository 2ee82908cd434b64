"""Where everything in Ironic stands, from two lists: what a shared poller shows to all who wait. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, cast

from mlops_sdk.capacity.lease import MARKER, from_iso
from mlops_sdk.capacity.providers.ironic_states import Step, acquire_step
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine
from mlops_sdk.capacity.watching import Phase, Sight

_GOING = frozenset({"deleting", "cleaning", "clean wait"})
_MOMENTS: Final = 1 << 16
_PHASES: Mapping[Step, Phase] = {Step.WAIT: Phase.COMING, Step.ADOPT: Phase.READY}


def sights_of(allocations: Iterable[Allocation], machines: Iterable[Machine]) -> dict[str, Sight]:
    """Allocations by name and machines by id. The allocations were listed first: what shows one as active held it then.

    Example:
        >>> allocation = Allocation(id="1", name="ml-a-g1-0", state="active", node_id="m")
        >>> machine = Machine(id="m", name="gpu-01", provision_state="wait call-back")
        >>> sights_of([allocation], [machine])["ml-a-g1-0"].phase
        <Phase.COMING: 'coming'>
    """
    by_id = {machine.id: machine for machine in machines}
    found: dict[str, Sight] = {}
    for allocation in allocations:
        machine = by_id.get(allocation.node_id)
        found[allocation.name] = sight = _piece(allocation, machine)
        if machine is not None:
            found[machine.id] = sight
    for machine in by_id.values():
        if machine.id not in found:
            found[machine.id] = _machine(machine)
    return found


def _piece(allocation: Allocation, machine: Machine | None) -> Sight:
    marker = allocation.extra.get(MARKER)
    times: Mapping[str, Any] = cast("Mapping[str, Any]", marker) if isinstance(marker, Mapping) else {}
    state = machine.provision_state if machine is not None else allocation.state
    error = allocation.last_error or (machine.last_error if machine is not None else "")
    return Sight(
        phase=Phase.GOING if state in _GOING else _PHASES.get(acquire_step(allocation, machine), Phase.OTHER),
        words=f"{state}: {error}" if error else state,
        node_id=allocation.node_id,
        node_name=machine.name if machine is not None else "",
        deadline=_moment(str(times.get("deadline"))),
        renewed_until=_moment(str(times.get("renewed_until"))),
    )


@lru_cache(maxsize=_MOMENTS)
def _moment(text: str) -> datetime | None:
    """A time; most are the same in the next list."""
    try:
        return from_iso(text)
    except ValueError:
        return None


def _machine(machine: Machine) -> Sight:
    """A machine by itself: what matters is when it is back, or stuck."""
    state = machine.provision_state
    phase = Phase.GOING if state in _GOING else Phase.READY if state == "active" else Phase.OTHER
    return Sight(phase=phase, words=state, node_id=machine.id, node_name=machine.name)
