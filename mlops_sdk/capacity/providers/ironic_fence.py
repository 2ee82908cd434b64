"""Cuts the power of a leased machine through its BMC, which Ironic drives, and waits until that is confirmed.

Only then may another machine take its place: one that nobody reaches may still write checkpoints and hold ranks.
"""

from __future__ import annotations

from mlops_sdk.capacity.loss import Answer, Channel, Statement
from mlops_sdk.capacity.owned import Held
from mlops_sdk.capacity.provider import Entitled, Party
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi, NotYet
from mlops_sdk.capacity.providers.ironic_view import Machine, words_of
from mlops_sdk.errors import LeaseLost, NotFenced
from mlops_sdk.steps import Steps, pauses

_OFF = "power off"


def power_of(api: BaremetalApi, held: Held) -> Statement:
    """What Ironic knows of a machine's power. On is no sign of life: a system that hangs is on, too."""
    machine = _ours(api, held)
    if machine is None:
        return Statement(channel=Channel.POWER, answer=Answer.OFF, words="it is not leased under this name any more")
    words = f"{machine.power_state or 'unknown'}, {words_of(machine)}"
    off = machine.power_state == _OFF and not machine.target_power_state
    return Statement(channel=Channel.POWER, answer=Answer.OFF if off else Answer.BLIND, words=words)


def cut_off(api: BaremetalApi, party: Party, held: Held, *, entitled: Entitled) -> Steps[None]:
    """See `Fencing.cut_off`."""
    settings = party.settings.lease
    end, pause, seen = party.clock.monotonic() + settings.fence_timeout_s, pauses(settings.poll_s), "nothing yet"
    asked = False
    while True:
        allocation = api.get_allocation(held.name)
        if allocation is None:
            return  # given back: tear-down switches it off before its allocation goes
        if not entitled(allocation.name, allocation.marker):
            raise LeaseLost(f"{held.name!r} is not this run's", seen=allocation.state, next_step="leave it alone")
        machine = api.get_machine(allocation.node_id) if allocation.node_id else None
        if machine is None or machine.allocation_id != allocation.id:
            return
        # asked once in any case: what Ironic knows may be old, and its answer to this is the BMC's
        busy = bool(machine.target_power_state) or machine.locked
        if asked and machine.power_state == _OFF and not busy:
            return
        seen = machine.last_error or f"power state {machine.power_state or 'unknown'!r}"
        if party.clock.monotonic() >= end:
            raise _not_fenced(machine, settings.fence_timeout_s, seen)
        try:
            if not busy:
                api.power_off(machine.id)
                asked = True
        except NotYet as signal:
            seen = str(signal)
        yield next(pause)


def _ours(api: BaremetalApi, held: Held) -> Machine | None:
    allocation = api.get_allocation(held.name)
    machine = api.get_machine(allocation.node_id) if allocation is not None and allocation.node_id else None
    return machine if machine is not None and allocation and machine.allocation_id == allocation.id else None


def _not_fenced(machine: Machine, within_s: float, seen: str) -> NotFenced:
    return NotFenced(
        f"machine {machine.name!r} was not confirmed to be off within {within_s:g} s",
        seen=seen,
        next_step="switch it off by hand, then replace it with the words of whoever did (unfenced=...)",
    )
