"""Ends a leased server for good before another takes its place: its host has to say that it did.

A server has no BMC; what stands for it is its host, through Nova. Unreachable is not gone: Nova forgets a server also
while its host is down, and the guest may go on there. So nothing but the host's own report counts; of a whole machine
of Ironic, that Ironic shows it torn down: Nova's host reports success also when that failed.
"""

from __future__ import annotations

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import EndReason
from mlops_sdk.capacity.loss import Answer, Channel, Statement
from mlops_sdk.capacity.owned import Held
from mlops_sdk.capacity.provider import Entitled, Party
from mlops_sdk.capacity.providers.nova_api import ComputeApi
from mlops_sdk.capacity.providers.nova_release import ServerReturn
from mlops_sdk.capacity.providers.nova_states import chosen
from mlops_sdk.capacity.providers.nova_view import is_of
from mlops_sdk.errors import LeaseLost, NotFenced
from mlops_sdk.names import parse_resource_name
from mlops_sdk.steps import Steps, pauses

_OFF = {"SHUTOFF", "SHELVED_OFFLOADED"}


def power_of(api: ComputeApi, held: Held) -> Statement:
    """What Nova knows of a server. That it runs is no sign of life: a system that hangs runs, too."""
    found = chosen(s for s in api.list_servers(held.name) if s.name == held.name and is_of(s.name, s.marker))
    if found is None:
        used = [port.server for port in api.list_ports([held.name]) if port.server and is_of(port.name, port.marker)]
        away = next((one for ident in used if (one := api.get_server(ident)) is not None), None)
        if away is not None:  # in no list, as its cell does not answer
            return Statement(channel=Channel.POWER, answer=Answer.BLIND, words=str(away))
        return Statement(channel=Channel.POWER, answer=Answer.OFF, words="Nova knows no server of this name of ours")
    off = found.status in _OFF and not found.task
    return Statement(channel=Channel.POWER, answer=Answer.OFF if off else Answer.BLIND, words=str(found))


def cut_off(api: ComputeApi, party: Party, held: Held, *, entitled: Entitled) -> Steps[None]:
    """See `Fencing.cut_off`: deletes it, with what was made for it, and waits until its host has said that it is gone.

    Raises:
        NotFenced: its host does not say so.
        LeaseLost: it is somebody else's.
    """
    settings = party.settings.lease
    name = parse_resource_name(held.name)
    returning = ServerReturn(
        api,
        party,
        held,
        reason=EndReason.NODE_FAILED,
        entitled=entitled,
        run_key=name.run_key if name is not None else "",
    )
    end, pause = party.clock.monotonic() + settings.fence_timeout_s, pauses(settings.poll_s)
    while (evidence := returning.step()) is None:
        if returning.torn_down:  # its cleaning may take hours; whoever gives the lease back waits for it
            returning.let_go()
            return
        if party.clock.monotonic() >= end:
            evidence = returning.evidence(Outcome.PENDING)
            break
        yield next(pause)
    if returning.abandoned:
        raise LeaseLost(f"{held.name!r} is not this run's", seen=evidence.provision_state, next_step="leave it alone")
    if not evidence.clean and not returning.torn_down:
        raise NotFenced(
            f"server {held.name!r} was not confirmed to be gone within {settings.fence_timeout_s:g} s",
            seen=evidence.last_error or f"status {evidence.provision_state or 'unknown'}",
            next_step="see its host; then replace it with the words of whoever ended it (unfenced=...)",
        )
