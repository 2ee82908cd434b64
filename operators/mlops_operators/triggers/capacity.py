"""Waiting for machines, and for their return."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from mlops_operators.triggers.base import MlopsTrigger
from mlops_sdk.capacity.lease import DEFAULT_PROVIDER, EndReason, LeaseRequest, Priority, from_iso, to_iso
from mlops_sdk.capacity.lifecycle import STATE_TEXT, LeaseState
from mlops_sdk.capacity.members import all_numbers
from mlops_sdk.capacity.provider import Grant
from mlops_sdk.client import Client
from mlops_sdk.errors import CapacityError, LeaseLost, MlopsError, NodeFailed
from mlops_sdk.history import Generation
from mlops_sdk.journal import EntryKind
from mlops_sdk.names import run_id_for
from mlops_sdk.run import Run


class ProvisionTrigger(MlopsTrigger):
    """Leases machines in one generation of a run. Made again elsewhere, it adopts what is there and goes on.

    Args:
        generation: Which; written down by the task before this trigger existed.
        asked_by: Writer of the run's journal under which that task has begun to lease it.
        quote: What the lease costs, as that task was told; empty when an earlier try asked for it.
        nodes: How many machines.
        resource_class: Of each.
        traits: That each must have.
        hours: Until the deadline, from the first request on.
        wait_s: How long to wait for capacity.
        priority: Its class while there are too few: ``batch``, ``normal``, ``urgent``.
        preemptible: Whether the lease may be ended, with notice, for a higher priority.
        provider: Whose machines.
        spares: How many more to keep ready for the place of a lost one.
        hold_on_failure_s: How long the machines stay for a person when a job on them failed.
        until: Deadline (ISO) instead of `hours`, of a lease that goes on where another one ended; "" for none.
        connections: See `MlopsTrigger`.
    """

    def __init__(
        self,
        *,
        generation: int,
        asked_by: str,
        quote: str,
        nodes: int,
        resource_class: str,
        traits: list[str],
        hours: float,
        wait_s: float,
        priority: str = "normal",
        preemptible: bool = False,
        provider: str = DEFAULT_PROVIDER,
        hold_on_failure_s: float = 0.0,
        spares: int = 0,
        until: str = "",
        **connections: str,
    ) -> None:
        super().__init__(**connections)
        self.generation = generation
        self.asked_by = asked_by
        self.quote = quote
        self.nodes = nodes
        self.resource_class = resource_class
        self.traits = traits
        self.hours = hours
        self.wait_s = wait_s
        self.priority = priority
        self.preemptible = preemptible
        self.provider = provider
        self.hold_on_failure_s = hold_on_failure_s
        self.spares = spares
        self.until = until
        self._adopts = False
        self._run: Run | None = None

    def arguments(self) -> dict[str, Any]:
        """See `MlopsTrigger.arguments`."""
        return {
            **super().arguments(),
            "generation": self.generation,
            "asked_by": self.asked_by,
            "quote": self.quote,
            "nodes": self.nodes,
            "resource_class": self.resource_class,
            "traits": self.traits,
            "hours": self.hours,
            "wait_s": self.wait_s,
            "priority": self.priority,
            "preemptible": self.preemptible,
            "provider": self.provider,
            "hold_on_failure_s": self.hold_on_failure_s,
            "spares": self.spares,
            "until": self.until,
        }

    def request(self, now: datetime) -> LeaseRequest:
        """What is leased, if it is asked for at this moment by the cloud's clock."""
        return LeaseRequest(
            nodes=self.nodes,
            resource_class=self.resource_class,
            traits=tuple(self.traits),
            deadline=from_iso(self.until) if self.until else now + timedelta(hours=self.hours),
            wait_s=self.wait_s,
            priority=Priority.named(self.priority),
            preemptible=self.preemptible,
            hold_on_failure_s=self.hold_on_failure_s,
            spares=self.spares,
            provider=self.provider,
        )

    async def work(self) -> dict[str, Any]:
        """Lease; the machines by name."""
        client = await self.client()
        with self.caretaker.pollers.keeping(client.services, self._asked_for(client)):
            await self._while_on_their_way(client)
            return await self._lease(client)

    async def _lease(self, client: Client) -> dict[str, Any]:
        """Adopt what there is, ask for what is not, or give back."""
        run = self._run = await self.blocking(client.start_run, self.run_name)
        try:
            self._adopts = await self.blocking(self._was_asked_for_before, run)
            request = self.request(await self.blocking(client.services.now))
            lease = await self.drive(run.leasing_in(self.generation, request), client)
            provider = client.services.provider(request.provider)
            link = await self.blocking(provider.address_of, lease.nodes[0].id)
        except BaseException:
            self.caretaker.let_go(run)
            raise
        self.hand_over(run)
        self.log.info("leased %s until %s", ", ".join(node.name for node in lease.nodes), to_iso(lease.deadline))
        return {
            "run": run.key,
            "generation": lease.generation,
            "nodes": [node.name for node in lease.nodes],
            "deadline": to_iso(lease.deadline),
            "quote": self.quote,
            "link": link,
        }

    async def _while_on_their_way(self, client: Client) -> None:
        """Wait as one of many while nothing has to be done for machines that the task has asked for.

        Takes no journal, credential or thread of its own; whatever else than "on its way" is seen is for `_lease`.
        """
        poller = self.caretaker.pollers.of(client.services, self.provider)
        if poller is not None:
            # half of the time that machines have to come up: the rest is for what happens when they do not
            half = client.settings.lease.deploy_timeout_s / 2
            await poller.ready(self._asked_for(client).names[: self.nodes], at_most_s=half)

    def _asked_for(self, client: Client) -> Grant:
        """What the task has asked for, spares too; the times of the request are those that the pieces carry."""
        request = self.request(datetime.now(UTC))
        return Grant(
            run_id=run_id_for(client.settings.deployment_id, self.run_name),
            deployment_id=client.settings.deployment_id,
            generation=self.generation,
            owner="",
            request=request,
            broker_key=client.settings.broker_key,
            numbers=all_numbers(request),
        )

    def failed(self, error: MlopsError) -> dict[str, Any]:
        """The event of a failure; says whether it was about machines of an earlier try, or those that the task got.

        Nobody renews between task and trigger: when that took too long, the reaper has taken them back.
        """
        return {**super().failed(error), "adopted": self._adopts or isinstance(error, LeaseLost)}

    async def on_kill(self) -> None:
        """A person ended the task: give back what it got, unless another try has taken it over already."""
        await self.caretaker.finish(self._give_back())

    async def _give_back(self) -> None:
        client = await self.client()
        run = self._run or await self.blocking(client.find, self.run_name)
        if run is not None and await self.blocking(self._is_mine, run):
            await self.drive(run.releasing(EndReason.CANCELLED), client)

    def _was_asked_for_before(self, run: Run) -> bool:
        """Whether another than the task that made this trigger has asked for the lease: an earlier try."""
        return any(writer != self.asked_by for writer in self._askers(run))

    def _is_mine(self, run: Run) -> bool:
        """Whether this trigger's own process, or the task that began it, was the last to ask for the lease."""
        askers = self._askers(run)
        return run.generation == self.generation and bool(askers) and askers[-1] in {run.journal.writer, self.asked_by}

    def _askers(self, run: Run) -> list[str]:
        """Journal writers that asked for this generation's lease, oldest first."""
        return [
            entry.writer
            for entry in run.journal.entries()
            if entry.action == "lease" and entry.kind is EntryKind.INTENT and entry.generation == self.generation
        ]


class ReleaseTrigger(MlopsTrigger):
    """Gives back whatever the run holds, and proves it. Idempotent; a run that never began is proven at once.

    Args:
        keep_warm_s: How long to keep the machines for a later task instead; 0: not at all.
        connections: See `MlopsTrigger`.
    """

    def __init__(self, *, keep_warm_s: float = 0.0, **connections: str) -> None:
        super().__init__(**connections)
        self.keep_warm_s = keep_warm_s

    def arguments(self) -> dict[str, Any]:
        """See `MlopsTrigger.arguments`."""
        return {**super().arguments(), "keep_warm_s": self.keep_warm_s}

    async def work(self) -> dict[str, Any]:
        """Give back; the outcome of each machine."""
        client = await self.client()
        run: Run | None = await self.blocking(client.find, self.run_name)
        if run is None:
            return {"run": "", "machines": {}}
        self.caretaker.take_over(run.key)
        if (kept := await self.blocking(self._kept, run)) is not None:
            return kept
        await self.drive(run.releasing(), client)
        return await self.blocking(returned, run)

    def _kept(self, run: Run) -> dict[str, Any] | None:
        """The machines that stay, and until when; None when they are to be given back."""
        state = _latest(run).state
        if self.keep_warm_s > 0 and state in {LeaseState.ACTIVE, LeaseState.WARM}:
            with suppress(CapacityError):  # somebody else needs them
                run.park(self.keep_warm_s)
        elif state is not LeaseState.HELD_FOR_DEBUG:
            return None
        latest = _latest(run)
        if latest.state not in {LeaseState.WARM, LeaseState.HELD_FOR_DEBUG} or latest.end is None:
            return None
        self.log.info("%s until %s: %s", STATE_TEXT[latest.state], to_iso(latest.end), f"mlops lease login {run.key}")
        machines = {piece.node_name or piece.name: latest.state.value for piece in latest.pieces.values()}
        return {"run": run.key, "machines": machines, "until": to_iso(latest.end)}


def _latest(run: Run) -> Generation:
    return run.history().latest or Generation(number=run.generation)


def returned(run: Run) -> dict[str, Any]:
    """What became of every machine that a run ever had.

    Raises:
        NodeFailed: something is not back, or not clean.
    """
    proof = run.prove()
    if not proof.complete:
        raise NodeFailed(
            f"run {run.key!r} has not given everything back",
            seen="; ".join(f"{item.kind.value} {item.resource}: {item.evidence}" for item in proof.missing),
            next_step=f"the reaper keeps at it; look again with `mlops runs show {run.key}`",
        )
    pieces = [piece for generation in run.history().generations.values() for piece in generation.pieces.values()]
    outcomes = {p.node_name or p.name: p.evidence.outcome.value for p in pieces if p.evidence is not None}
    return {"run": run.key, "machines": outcomes}
