"""The machines of Ironic under the servers that one return is about: noted in time, and watched until they are clean.

A server of Nova is gone as soon as its machine is being cleaned, and with it the way to the machine. So the machine is
written into the server's record (its port) before the server is deleted, and the record stays until it is known how the
machine ended: whoever goes on after a crash finds it there.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.flavors import Delivery
from mlops_sdk.capacity.providers.ironic_view import Machine
from mlops_sdk.capacity.providers.nova_api import ComputeApi
from mlops_sdk.capacity.providers.nova_marker import Metal, noted, to_line
from mlops_sdk.capacity.providers.nova_metal import NOT_SHOWN, MetalEnd, judge_metal
from mlops_sdk.capacity.providers.nova_view import Port, Server, is_of
from mlops_sdk.config import NovaSettings
from mlops_sdk.errors import ServiceUnavailable

_LOOKS = 5  # after which a machine that still has a server on it, of which Nova knows nothing, is taken for forgotten
_WORST = (Outcome.PENDING, Outcome.NOT_CLEAN, Outcome.UNPROVEN, Outcome.CLEANED)


def may_be_metal(nova: NovaSettings | None) -> bool:
    """Whether the settings know a flavor of whole machines of Ironic."""
    return nova is not None and any(flavor.delivery is Delivery.BARE_METAL for flavor in nova.flavors.values())


class MetalReturn:
    """See the module.

    Args:
        api: The cloud.
        skew_s: By which the clocks of Nova and Ironic may differ.
    """

    def __init__(self, api: ComputeApi, *, skew_s: float) -> None:
        self._api = api
        self._skew_s = skew_s
        self._noted: set[Metal] = set()
        self._ends: dict[Metal, MetalEnd] = {}
        self._looks: dict[Metal, int] = {}
        self.seen_virtual = False  # a record was seen that tells of no machine of Ironic

    def note(self, server: Server, ports: Iterable[Port]) -> None:
        """Before a server is deleted: find its machine, and write it into its records."""
        records = [port for port in ports if port.id in server.children and is_of(port.name, port.marker)]
        if not server.bare_metal and all(port.metal is None for port in records):
            return
        machine: Machine | None = None
        with suppress(ServiceUnavailable):  # what costs money goes back all the same; it was noted before, as a rule
            machine = self._api.machine_under(server.id)
        if machine is None:
            self._noted |= {port.metal or Metal() for port in records} or {Metal()}
            return
        now = self._api.now()
        for port in records:
            metal = noted(port.metal, machine.id, server.id, now)
            self._noted.add(metal)
            if metal != port.metal and port.marker is not None:
                self._api.set_line(port.id, to_line(port.marker, metal))
        if not records:
            self._noted.add(Metal(node_id=machine.id, server_id=server.id, noted_at=now))

    def under_way(self, records: Iterable[Port]) -> str:
        """What a machine is still waited for, in words; "" when it is known how each ended.

        Args:
            records: The ports that are to be given back.
        """
        for port in records:
            if port.metal is None:
                self.seen_virtual = True
            else:
                self._noted.add(port.metal)
        known = {metal for metal in self._noted if metal.node_id}
        over = {metal: end for metal, end in self._ends.items() if end.outcome is not Outcome.PENDING}
        self._ends = {metal: over.get(metal) or self._end_of(metal) for metal in known or self._noted}
        return "; ".join(end.words for end in self._ends.values() if end.outcome is Outcome.PENDING)

    def forgotten(self) -> list[Metal]:
        """The machines that Nova has left deployed, as several looks showed: nobody else will end them."""
        left = [metal for metal, end in self._ends.items() if end.forgotten]
        for metal in left:
            self._looks[metal] = self._looks.get(metal, 0) + 1
        return [metal for metal in left if self._looks[metal] >= _LOOKS]

    @property
    def torn_down(self) -> bool:
        """Whether there is a whole machine, and Ironic shows that nothing of ours runs on it any more."""
        return bool(self._ends) and all(end.torn_down for end in self._ends.values())

    def ended(self, by_nova: Outcome) -> tuple[Outcome, MetalEnd | None]:
        """How it ended after what Nova says: a machine that nothing was ever put on needs no cleaning."""
        worst = min(self._ends.values(), key=lambda end: _WORST.index(end.outcome), default=None)
        if worst is None or (by_nova is Outcome.NEVER_DEPLOYED and not any(metal.node_id for metal in self._noted)):
            return by_nova, None
        return worst.outcome, worst

    def _end_of(self, metal: Metal) -> MetalEnd:
        if not metal.node_id:
            return MetalEnd(outcome=Outcome.UNPROVEN, words=NOT_SHOWN)
        machine, cleaning = self._api.machine(metal.node_id) or (None, None)
        return judge_metal(metal, machine, cleaning, skew_s=self._skew_s)
