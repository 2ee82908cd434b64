"""What every provider of machines does: one protocol, and the words that it shares with those who lease and give back.

A provider is a way to machines (Ironic, a fixed pool of hosts, ...) through one login and on behalf of one party. It
looks before it makes anything, returns early instead of waiting (see `mlops_sdk.steps`), and takes "gone" for success.
`mlops_sdk.testing.provider_contract` is what each of them is held to.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol, runtime_checkable

from pydantic import SecretStr

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.evidence import NodeEvidence, Outcome
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.lease import EndReason, LeaseRequest, Marker
from mlops_sdk.capacity.loss import Statement
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.owned import Held, Owned, PoolMachine, Seen
from mlops_sdk.capacity.quote import Quote
from mlops_sdk.clock import Clock
from mlops_sdk.config import LeaseSettings, Settings
from mlops_sdk.names import resource_name, run_key
from mlops_sdk.steps import Steps, pauses

Entitled = Callable[[str, Marker | None], bool]
"""Whether we may give back the piece of this name that carries this marker; asked again before each action."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """On whose behalf a provider acts, and with what.

    Attributes:
        settings: The deployment.
        fence: This party's claims.
        clock: Durations. Pauses are yielded.
        by: Noted in the evidence of what is given back.
        boundary: Told before and after each call that changes something.
    """

    settings: Settings
    fence: Fence
    clock: Clock
    by: Literal["run", "reaper", "person"] = "run"
    boundary: Boundary = no_boundary


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """For whom machines are leased: run, generation, request, and the key from which SSH keys follow.

    Attributes:
        run_id: The run.
        deployment_id: Its deployment.
        generation: Of its lease.
        owner: Who pays.
        request: What was asked for.
        broker_key: From which SSH keys follow.
        numbers: Which pieces of it are meant; None for those that were asked for. Only a provider that is `Fencing`
            is asked for others.
        avoid: Ids of machines that are taken only when there are no others: they failed this run before.
    """

    run_id: uuid.UUID
    deployment_id: uuid.UUID
    generation: int
    owner: str
    request: LeaseRequest
    broker_key: SecretStr
    numbers: tuple[int, ...] | None = None
    avoid: frozenset[str] = frozenset()

    @property
    def indices(self) -> tuple[int, ...]:
        """Numbers of all pieces that are meant."""
        return tuple(range(self.request.nodes)) if self.numbers is None else self.numbers

    def name(self, index: int) -> str:
        """Name under which one machine is leased."""
        return resource_name(self.run_id, self.generation, index)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all pieces."""
        return tuple(self.name(index) for index in self.indices)

    def marker(self, index: int, *, now: datetime, renew_for_s: float) -> Marker:
        """What one piece carries from now on."""
        return Marker(
            run_id=str(self.run_id),
            deployment_id=str(self.deployment_id),
            generation=self.generation,
            index=index,
            nodes=self.request.nodes,
            owner=self.owner,
            deadline=self.request.deadline,
            renewed_until=now + timedelta(seconds=renew_for_s),
            priority=self.request.priority,
            preemptible=self.request.preemptible,
        )

    def owns(self, name: str, marker: Marker | None) -> bool:
        """Whether what carries this marker is ours to give back (`Entitled`, of the run itself)."""
        del name
        return (
            marker is not None
            and marker.run_id == str(self.run_id)
            and marker.deployment_id == str(self.deployment_id)
            and marker.generation == self.generation
        )


class Returning(Protocol):
    """The return of one piece: call `step` until it gives evidence. Every action is preceded by a claim on the fence.

    Attributes:
        abandoned: It turned out not to be ours to give back (any more): renewed meanwhile, or somebody else's.
    """

    abandoned: bool

    @property
    def name(self) -> str:
        """Name under which the piece was leased."""
        ...

    def step(self) -> NodeEvidence | None:
        """Look, act once if there is something to do, and return the evidence when it is over."""
        ...

    def evidence(self, outcome: Outcome) -> NodeEvidence:
        """What is known now, under the given outcome."""
        ...


class Provider(Protocol):
    """A way to machines, through one login and for one `Party`. Safe to call again after a crash at any point."""

    @property
    def name(self) -> str:
        """As in `LeaseRequest.provider`."""
        ...

    def now(self) -> datetime:
        """The clock by which its leases are judged."""
        ...

    def quote(self, request: LeaseRequest) -> Quote:
        """What a request would cost, and whether it could be met now."""
        ...

    def pool(self) -> Iterator[PoolMachine]:
        """Every machine this login sees, and who holds it."""
        ...

    def address_of(self, node_id: str) -> str:
        """Where a person who may see it finds this machine."""
        ...

    def acquire(self, grant: Grant, *, deployed: Collection[str] = ()) -> Steps[tuple[Node, ...]]:
        """All machines of a lease, ready for SSH; what this generation has already is adopted.

        On `NoCapacity` nothing is held any more. On any other error the caller gives back (`release`).

        Args:
            grant: For whom.
            deployed: Pieces whose machine the journal knows to be in use: if one is gone, it is not made again.

        Raises:
            NoCapacity: fewer than asked for were to be had within the waiting time.
            NodeFailed: a machine failed, was never ready in time, or shows a state we do not know.
            LeaseLost: a name belongs to somebody else, or this generation was given back.
        """
        ...

    def begin(self, grant: Grant, *, deployed: Collection[str] = ()) -> Steps[None]:
        """The first half of `acquire`, which does not wait for the machines. Raises what that raises."""
        ...

    def inspect(self, held: Held) -> Seen:
        """What is there of one piece now. By `allocation_id` where it is known, else by name."""
        ...

    def renew(self, grant: Grant) -> int:
        """Move `renewed_until` of every piece there is to now + renewal time; how many there were."""
        ...

    def extend(self, grant: Grant, *, renewed_until: datetime | None = None) -> int:
        """Move the deadline of every piece there is to the grant's, earlier or later, and renew; how many there were.

        Args:
            grant: With the deadline.
            renewed_until: For a lease that nobody will renew until then; None: as `renew`.
        """
        ...

    def returning(self, held: Held, *, reason: EndReason, entitled: Entitled, run_key: str) -> Returning:
        """The return of one piece, which nothing has been done for yet."""
        ...

    def release(
        self,
        grant: Grant,
        held: Iterable[Held],
        *,
        reason: EndReason,
        on_evidence: Callable[[NodeEvidence], None],
    ) -> Steps[tuple[NodeEvidence, ...]]:
        """Give pieces back and wait for their cleaning. What is gone is proven by what `held` knows."""
        ...

    def list_owned(self) -> Iterator[Owned]:
        """Everything that carries a marker of this deployment under a name that agrees with it; nothing else."""
        ...


@runtime_checkable
class Fencing(Protocol):
    """A provider that can cut a machine's power through its BMC: its machines can be replaced, and kept in reserve."""

    def power(self, held: Held) -> Statement:
        """What the machine's BMC says of it."""
        ...

    def take_out(self, node_id: str, words: str) -> bool:
        """Let nobody get this machine until a person has looked; False when somebody has it, or it is out already."""
        ...

    def cut_off(self, held: Held, *, entitled: Entitled) -> Steps[None]:
        """Switch the machine off and wait until its BMC confirms that: from here on nothing runs on it. Idempotent.

        What is not leased under this name any more was switched off when it was given back.

        Raises:
            NotFenced: its BMC does not do it, or does not answer; nothing may take its place.
        """
        ...


def release_held(
    provider: Provider,
    party: Party,
    grant: Grant,
    held: Iterable[Held],
    *,
    reason: EndReason,
    on_evidence: Callable[[NodeEvidence], None],
) -> Steps[tuple[NodeEvidence, ...]]:
    """`Provider.release` by its `returning`, for all that is held."""
    key = run_key(grant.run_id)
    releases = [provider.returning(item, reason=reason, entitled=grant.owns, run_key=key) for item in held]
    return release_all(releases, settings=party.settings.lease, clock=party.clock, on_evidence=on_evidence)


def release_all(
    releases: Sequence[Returning],
    *,
    settings: LeaseSettings,
    clock: Clock,
    on_evidence: Callable[[NodeEvidence], None],
) -> Steps[tuple[NodeEvidence, ...]]:
    """Walk several returns side by side until each ended or the cleaning time is up. In the order given."""
    end = clock.monotonic() + settings.clean_timeout_s
    found: dict[str, NodeEvidence] = {}
    pause = pauses(settings.poll_s)
    while True:
        for release in releases:
            if release.name in found:
                continue
            evidence = release.step()
            if evidence is not None:
                found[release.name] = evidence
                on_evidence(evidence)
        if len(found) == len(releases):
            break
        if clock.monotonic() >= end:
            for release in releases:
                if release.name not in found:
                    found[release.name] = release.evidence(Outcome.PENDING)
                    on_evidence(found[release.name])
            break
        yield next(pause)
    return tuple(found[release.name] for release in releases)
