"""Leases on a fixed pool of SSH hosts: `[[static_hosts]]` of the settings, each claimed by a conditional PUT in S3.

`static_acquire` claims hosts and lets a lease in, `static_release` cleans and frees them, `static_pool` holds the
claims, `static_shell` is what is done over SSH.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from mlops_sdk.capacity.evidence import NodeEvidence
from mlops_sdk.capacity.lease import EndReason, LeaseRequest, belongs
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.owned import Held, Owned, PoolMachine, Seen, Standing
from mlops_sdk.capacity.provider import Entitled, Grant, Party, Provider, Returning, release_held
from mlops_sdk.capacity.providers.static_acquire import HostAcquisition, suitable
from mlops_sdk.capacity.providers.static_claim import ClaimState, HostClaim, judge
from mlops_sdk.capacity.providers.static_pool import HostPool, Stored
from mlops_sdk.capacity.providers.static_release import NAME, HostReturn
from mlops_sdk.capacity.providers.static_shell import HostShell, SshShell
from mlops_sdk.capacity.providers.static_sights import sights_of
from mlops_sdk.capacity.quote import Quote, Supply, priced
from mlops_sdk.capacity.watching import Sight
from mlops_sdk.config import StaticHost
from mlops_sdk.errors import MlopsError, SettingsError
from mlops_sdk.names import parse_resource_name
from mlops_sdk.objects import ObjectStore
from mlops_sdk.steps import Steps


class StaticHosts(Provider):
    """`Provider` on a fixed pool. It needs no login to a cloud: the bucket's and the pool's key are the deployment's.

    Args:
        store: The deployment's bucket.
        party: Who acts.
        now: The clock by which leases are judged.
        shell: What is done on a host; default: over SSH.
    """

    def __init__(
        self, store: ObjectStore, party: Party, now: Callable[[], datetime], shell: HostShell | None = None
    ) -> None:
        self._party = party
        self._now = now
        self._settings = party.settings.lease
        self._hosts = {host.name: host for host in party.settings.static_hosts}
        self._pool = HostPool(store, tuple(self._hosts))
        self._shell = shell or SshShell(party.settings)
        self._seen_at: dict[str, str] = {}

    @property
    def name(self) -> str:
        """See `Provider.name`."""
        return NAME

    def now(self) -> datetime:
        """See `Provider.now`."""
        return self._now()

    def quote(self, request: LeaseRequest) -> Quote:
        """See `Provider.quote`."""
        slots = self._pool.read_all()
        claims = [slots[name].claim for name in suitable(self._hosts, request)]
        states = [claim.state for claim in claims]
        supply = Supply(
            free=states.count(ClaimState.FREE),
            busy=states.count(ClaimState.HELD),
            out_of_service=states.count(ClaimState.OUT),
            checked_at=min((c.cleaned_at for c in claims if c.state is ClaimState.FREE and c.cleaned_at), default=None),
        )
        settings = self._party.settings
        return priced(request, supply, prices=settings.node_seconds_price, currency=settings.currency, now=self._now())

    def pool(self) -> Iterator[PoolMachine]:
        """See `Provider.pool`."""
        deployment = str(self._party.settings.deployment_id)
        for name, stored in self._pool.read_all().items():
            claim, host = stored.claim, self._hosts.get(name)
            held = claim.state is ClaimState.HELD
            if host is None and not held:
                continue  # stored of a host that the settings named once
            reason = f": {claim.words}" if claim.state is ClaimState.OUT else ""
            yield PoolMachine(
                provider=NAME,
                id=name,
                name=name,
                resource_class=host.resource_class if host else "",
                state=f"{claim.state.value}{reason}",
                held_by=claim.name if held else "",
                traits=tuple(sorted(host.traits)) if host else (),
                free=host is not None and claim.state is ClaimState.FREE,
                in_service=host is not None and claim.state is not ClaimState.OUT,
                since=claim.created_at if held else "",
                marker=claim.marker if held and belongs(claim.name, claim.marker, deployment) else None,
            )

    def sights(self) -> Mapping[str, Sight]:
        """See `mlops_sdk.capacity.watching.Watchable`."""
        return sights_of(self._pool.shown())

    def address_of(self, node_id: str) -> str:
        """As an SSH address."""
        host = self._known(node_id)
        return f"ssh://{host.user}@{host.address}:{host.port}"

    def acquire(self, grant: Grant, *, deployed: Collection[str] = ()) -> Steps[tuple[Node, ...]]:
        """See `Provider.acquire`."""
        return self._acquisition(grant).acquire(deployed)

    def begin(self, grant: Grant, *, deployed: Collection[str] = ()) -> Steps[None]:
        """See `Provider.begin`: claims, and does not wait for the hosts."""
        return self._acquisition(grant).begin(deployed)

    def inspect(self, held: Held) -> Seen:
        """See `Provider.inspect`."""
        slots = self._pool.read_all()
        found = [s.claim for s in slots.values() if s.claim.state is ClaimState.HELD and _is(held, s.claim)]
        standing = Standing.HELD if found else Standing.ENDED
        words = f"host {found[0].host!r} is claimed" if found else "no host is claimed under this name"
        if not held.node_id:
            return Seen(standing=standing, words=words)
        claim = slots.get(held.node_id, Stored(claim=HostClaim(host=held.node_id))).claim
        outcome = judge(claim, deployed=held.deployed, since=held.since, skew_s=self._settings.clock_skew_s)
        cleaned = f", cleaned {claim.cleaned_at:%Y-%m-%dT%H:%M:%S}Z" if claim.cleaned_at else ""
        return Seen(standing=standing, words=words, outcome=outcome, machine_words=f"{claim.state.value}{cleaned}")

    def renew(self, grant: Grant) -> int:
        """See `Provider.renew`."""
        return self._move_times(grant)

    def extend(self, grant: Grant, *, renewed_until: datetime | None = None) -> int:
        """See `Provider.extend`."""
        return self._move_times(grant, deadline=grant.request.deadline, renewed_until=renewed_until)

    def returning(self, held: Held, *, reason: EndReason, entitled: Entitled, run_key: str) -> Returning:
        """See `Provider.returning`."""
        return HostReturn(
            self._pool,
            self._shell,
            self._hosts,
            self._party,
            held,
            reason=reason,
            entitled=entitled,
            run_key=run_key,
            now=self._now,
        )

    def release(
        self,
        grant: Grant,
        held: Iterable[Held],
        *,
        reason: EndReason,
        on_evidence: Callable[[NodeEvidence], None],
    ) -> Steps[tuple[NodeEvidence, ...]]:
        """See `Provider.release`."""
        return release_held(self, self._party, grant, held, reason=reason, on_evidence=on_evidence)

    def list_owned(self) -> Iterator[Owned]:
        """See `Provider.list_owned`."""
        deployment = str(self._party.settings.deployment_id)
        for stored in self._pool.read_all().values():
            claim = stored.claim
            if claim.state is not ClaimState.HELD or claim.marker is None:
                continue
            if belongs(claim.name, claim.marker, deployment):
                yield Owned(
                    provider=NAME,
                    kind="host",
                    id=claim.id,
                    name=claim.name,
                    marker=claim.marker,
                    created_at=claim.created_at,
                    node_id=claim.host,
                    node_name=claim.host,
                )

    def clean(self, name: str) -> str:
        """Clean a host that is out of the pool, and put it back; what was done, in words. For a person.

        Raises:
            MlopsError: there is no such host, somebody holds it, or it is not clean.
        """
        host, seen = self._known(name), self._pool.read(name)
        claim = seen.claim
        if claim.state is ClaimState.HELD:
            raise MlopsError(
                f"host {name!r} is leased", seen=f"as {claim.name}", next_step="see `mlops lease list`; release its run"
            )
        if claim.state is ClaimState.FREE:
            return "it is in the pool"
        words = "it lets us in"
        piece = parse_resource_name(claim.name)
        if claim.used and claim.before is not None and piece is not None:
            words = self._shell.clean(host, claim.before, piece.run_key, claim.id)
        else:
            self._shell.look(host)
        if self._pool.put(seen, claim.freed(cleaned_at=self._now(), words=words)) is None:
            raise MlopsError(
                f"host {name!r} was changed by somebody else meanwhile", next_step="see `mlops lease list`"
            )
        return words

    def _move_times(
        self, grant: Grant, *, deadline: datetime | None = None, renewed_until: datetime | None = None
    ) -> int:
        def moved(seen: HostClaim) -> HostClaim:
            if seen.state is not ClaimState.HELD or seen.marker is None:
                return seen
            until = renewed_until or self._now() + timedelta(seconds=self._settings.renew_for_s)
            marker = replace(seen.marker, renewed_until=until, deadline=deadline or seen.marker.deadline)
            return replace(seen, marker=marker)

        return sum(self._pool.change(claim.host, claim.id, moved) is not None for claim in self._ours(grant).values())

    def _ours(self, grant: Grant) -> dict[str, HostClaim]:
        """The claims of a grant, by name: where they were seen last, and in the whole pool only if one is not there."""

        def ours(claims: Iterable[HostClaim]) -> dict[str, HostClaim]:
            held = (claim for claim in claims if claim.state is ClaimState.HELD and claim.name in grant.names)
            return {claim.name: claim for claim in held if grant.owns(claim.name, claim.marker)}

        found = ours(self._pool.read(self._seen_at[name]).claim for name in grant.names if name in self._seen_at)
        if len(found) < len(grant.names):
            found = ours(stored.claim for stored in self._pool.read_all().values())
        self._seen_at = {name: claim.host for name, claim in found.items()}
        return found

    def _acquisition(self, grant: Grant) -> HostAcquisition:
        def give_back(claims: Collection[HostClaim]) -> Steps[None]:
            for claim in claims:
                held = Held(name=claim.name, allocation_id=claim.id, node_id=claim.host)
                yield from self.release(grant, [held], reason=EndReason.NO_CAPACITY, on_evidence=lambda _: None)

        return HostAcquisition(
            self._pool,
            self._shell,
            self._hosts,
            self._party,
            grant=grant,
            now=self._now,
            give_back=give_back,
        )

    def _known(self, name: str) -> StaticHost:
        if name not in self._hosts:
            raise SettingsError(
                f"there is no static host {name!r}",
                seen=f"the settings name {', '.join(self._hosts) or 'none'}",
                next_step="add it to static_hosts, or see `mlops lease list`",
            )
        return self._hosts[name]


def _is(held: Held, claim: HostClaim) -> bool:
    return claim.id == held.allocation_id if held.allocation_id else claim.name == held.name
