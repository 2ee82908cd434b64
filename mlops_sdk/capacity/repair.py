"""Puts another machine in the place of a lost one, while the rest of the lease stays.

The order is what makes it safe: it is written down; the lost machine is cut off through its BMC, and that is confirmed;
only then does another machine take its place; the lost one is given back. Each step may be done again, so whoever finds
a repair that was cut off carries it out from its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from mlops_sdk.boundaries import Boundaries
from mlops_sdk.capacity.evidence import NodeEvidence
from mlops_sdk.capacity.lease import EndReason
from mlops_sdk.capacity.members import Replacement
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.owned import Held, Standing
from mlops_sdk.capacity.provider import Fencing, Grant, Provider
from mlops_sdk.clock import Clock
from mlops_sdk.config import LeaseSettings
from mlops_sdk.errors import SettingsError
from mlops_sdk.journal import EntryKind, Journal
from mlops_sdk.names import run_key
from mlops_sdk.steps import Steps, pauses


class Repair:
    """Repairs of one generation.

    Args:
        journal: Of the run.
        boundaries: Told before and after what changes something.
        provider: Through the run's own login.
        operator: The same through the deployment's login: a run's own may not switch machines off.
        settings: Time-outs.
        clock: Durations.
        note: Writes the evidence of what was given back already.
    """

    def __init__(
        self,
        journal: Journal,
        boundaries: Boundaries,
        *,
        provider: Provider,
        operator: Provider,
        settings: LeaseSettings,
        clock: Clock,
        note: Callable[[NodeEvidence], None],
    ) -> None:
        self._journal = journal
        self._boundaries = boundaries
        self._provider = provider
        self._fencing = fencing_of(operator)
        self._settings = settings
        self._clock = clock
        self._note = note

    def carry_out(
        self, replacement: Replacement, *, lost: Held, grant: Grant, deployed: Collection[str]
    ) -> Steps[tuple[Node, ...]]:
        """Fence, fill the place, give the lost one back; what took its place (nothing for a spare).

        Args:
            replacement: Already journalled.
            lost: What is known of the lost piece.
            grant: Of the piece that takes its place.
            deployed: Pieces whose machine was in use already.

        Raises:
            NotFenced: it is not known to be off; nothing has taken its place.
            NoCapacity: there is no machine for its place.
            NodeFailed: the one that was to take it failed, too.
        """
        if not replacement.unfenced:
            with self._boundaries.around("machine.fence", lost.name, generation=grant.generation, node_id=lost.node_id):
                yield from self._fencing.cut_off(lost, entitled=grant.owns)
        nodes: tuple[Node, ...] = ()
        if replacement.by >= 0:
            nodes = yield from self._provider.acquire(grant, deployed=deployed)
        yield from self.begin_return(lost, grant)
        self._journal.append(
            EntryKind.OUTCOME,
            "node.replace",
            lost.name,
            generation=grant.generation,
            lost=replacement.lost,
            by=replacement.by,
            nodes=[{"id": node.id, "name": node.name} for node in nodes],
        )
        return nodes

    def begin_return(self, held: Held, grant: Grant) -> Steps[None]:
        """Ask for it to be torn down, and leave its cleaning to whoever watches: nobody renews it any more."""
        returning = self._provider.returning(
            held, reason=EndReason.NODE_FAILED, entitled=grant.owns, run_key=run_key(grant.run_id)
        )
        pause, end = pauses(self._settings.poll_s), self._clock.monotonic() + self._settings.fence_timeout_s
        while (evidence := returning.step()) is None and self._clock.monotonic() < end:
            if self._provider.inspect(held).standing is not Standing.HELD:
                return
            yield next(pause)
        if evidence is not None:
            self._note(evidence)


def fencing_of(provider: Provider) -> Fencing:
    """The provider as one whose machines can be cut off.

    Raises:
        SettingsError: its machines cannot.
    """
    if not isinstance(provider, Fencing):
        raise SettingsError(
            f"machines of provider {provider.name!r} can be neither replaced one by one nor kept in reserve",
            seen="it cannot switch a machine off through a BMC",
            next_step="lease again in the next generation when one is lost; ask for no spares",
        )
    return provider
