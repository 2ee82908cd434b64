"""Gives one host of the fixed pool back, a step at a time: claim, look again, clean, free. Run and reaper alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from mlops_sdk.capacity.evidence import NodeEvidence, Outcome
from mlops_sdk.capacity.fence import Claim
from mlops_sdk.capacity.lease import EndReason, to_iso
from mlops_sdk.capacity.owned import Held
from mlops_sdk.capacity.provider import Entitled, Party, Returning
from mlops_sdk.capacity.providers.static_claim import Before, ClaimState, HostClaim, age, judge
from mlops_sdk.capacity.providers.static_pool import HostPool
from mlops_sdk.capacity.providers.static_shell import HostShell
from mlops_sdk.config import StaticHost
from mlops_sdk.errors import MlopsError

NAME = "static"
_CLEANINGS = 3  # at least so many tries, and for at least as long as a machine may take to answer


class HostReturn(Returning):
    """The return of what is held under one name. See `Returning`.

    Args:
        pool: The claims.
        shell: What is done on a host.
        hosts: The hosts of the settings, by name.
        party: Who acts.
        held: What to give back; with an id exactly that claim, else whatever is claimed under its name.
        reason: Why.
        entitled: Whether we may.
        run_key: Whose it is.
        now: The service's clock.
    """

    def __init__(
        self,
        pool: HostPool,
        shell: HostShell,
        hosts: Mapping[str, StaticHost],
        party: Party,
        held: Held,
        *,
        reason: EndReason,
        entitled: Entitled,
        run_key: str,
        now: Callable[[], datetime],
    ) -> None:
        self._pool = pool
        self._shell = shell
        self._hosts = hosts
        self._party = party
        self._held = held
        self._reason = reason
        self._entitled = entitled
        self._run_key = run_key
        self._now = now
        self._started_at: datetime | None = None
        self._claim: HostClaim | None = None
        self._ours: Claim | None = None
        self._cleanings = 0
        self._first_cleaning = 0.0
        self._words = ""
        self.abandoned = False

    @property
    def name(self) -> str:
        """Name under which the host is leased."""
        return self._held.name

    def step(self) -> NodeEvidence | None:
        """See `Returning.step`. Cleaning blocks for as long as the host takes: seconds, a minute at most."""
        claim = self._look()
        if self.abandoned:
            return self.evidence(Outcome.PENDING)
        if claim is None:
            return self.evidence(self._judged())
        if claim.state is ClaimState.OUT:
            self._words = claim.words
            return self.evidence(Outcome.NOT_CLEAN if claim.used else Outcome.NEVER_DEPLOYED)
        self._ours = self._party.fence.claim(
            claim.id, provider=NAME, name=self.name, node_id=claim.host, run_key=self._run_key
        )
        if self._ours is None:
            return None  # somebody else gives it back; we only watch
        again = self._look()  # claiming took time: is it still the same lease, and still ours to give back?
        if again is None or again.id != claim.id or self.abandoned:
            return self.evidence(Outcome.PENDING) if self.abandoned else None
        return self._clean(again) if again.used else self._free(again)

    def evidence(self, outcome: Outcome) -> NodeEvidence:
        """What is known now, under the given outcome."""
        claim = self._claim
        node_id = claim.host if claim else self._held.node_id
        slot = self._pool.read(node_id).claim if node_id else None
        return NodeEvidence(
            resource=self.name,
            allocation_id=claim.id if claim else self._held.allocation_id,
            node_id=node_id,
            node_name=node_id,
            outcome=outcome,
            reason=self._reason,
            released_by=self._party.by,
            provision_state=slot.state.value if slot else "",
            cleaned_at=to_iso(slot.cleaned_at) if slot and slot.cleaned_at else "",
            last_error=self._words if outcome in {Outcome.NOT_CLEAN, Outcome.PENDING} else "",
            started_at=to_iso(self._started_at) if self._started_at else "",
            finished_at=to_iso(self._now()),
        )

    def _look(self) -> HostClaim | None:
        """The claim as it is now, what is held first and the oldest first; kept for the evidence."""
        if self._started_at is None:
            self._started_at = self._held.since or self._now()
        found = [stored.claim for stored in self._pool.read_all().values() if self._is_it(stored.claim)]
        if not found:
            return None
        claim = min(found, key=lambda seen: (seen.state is not ClaimState.HELD, age(seen)))
        if claim.state is ClaimState.HELD and not self._entitled(claim.name, claim.marker):
            self.abandoned = True
            if self._ours is not None:
                self._party.fence.yield_up(self._ours)
            return None
        self._claim = claim
        return claim

    def _is_it(self, claim: HostClaim) -> bool:
        if self._held.allocation_id:
            return claim.id == self._held.allocation_id
        return claim.name == self.name

    def _free(self, claim: HostClaim) -> NodeEvidence | None:
        """Nobody was let in: nothing of ours was on it."""
        with self._party.boundary("allocation.delete", self.name, node_id=claim.host, provision_state="available"):
            left = self._pool.change(
                claim.host, claim.id, lambda seen: seen if seen.used else seen.freed(cleaned_at=None)
            )
        if left is not None and left.claim.state is ClaimState.HELD:
            return None  # somebody was let in meanwhile: it has to be cleaned
        return self._ended(Outcome.NEVER_DEPLOYED)

    def _clean(self, claim: HostClaim) -> NodeEvidence | None:
        with self._party.boundary("machine.tear_down", self.name, node_id=claim.host):
            self._words, clean = self._cleaned(claim)
            given_up = not clean and self._enough_tries()
            if clean:
                self._pool.change(
                    claim.host, claim.id, lambda seen: seen.freed(cleaned_at=self._now(), words=self._words)
                )
            elif given_up:
                self._pool.change(claim.host, claim.id, lambda seen: out(seen, self._words))
        if clean:
            return self._ended(Outcome.CLEANED)
        return self._ended(Outcome.NOT_CLEAN) if given_up else None

    def _enough_tries(self) -> bool:
        self._cleanings += 1
        now = self._party.clock.monotonic()
        if self._cleanings == 1:
            self._first_cleaning = now
        waited = now - self._first_cleaning
        return self._cleanings >= _CLEANINGS and waited >= self._party.settings.lease.ssh_timeout_s

    def _cleaned(self, claim: HostClaim) -> tuple[str, bool]:
        host = self._hosts.get(claim.host)
        if host is None:
            return f"host {claim.host!r} is not in the settings any more", False
        try:
            return self._shell.clean(host, claim.before or Before(), self._run_key, claim.id), True
        except MlopsError as error:
            return error.seen or error.what, False

    def _ended(self, outcome: Outcome) -> NodeEvidence | None:
        """Over, unless two processes had each claimed a host under this name: then the other one is next."""
        if self._ours is not None:
            self._party.fence.drop(self._ours)
        evidence = self.evidence(outcome)
        if self._held.allocation_id:
            return evidence
        left = self._pool.read_all().values()
        if any(s.claim.state is ClaimState.HELD and self._is_it(s.claim) for s in left):
            self._cleanings = 0
            return None
        return evidence

    def _judged(self) -> Outcome:
        """The lease is gone: by what its host shows."""
        node_id = self._claim.host if self._claim else self._held.node_id
        deployed = self._claim.used if self._claim else self._held.deployed
        slot = self._pool.read(node_id).claim if node_id else None
        return judge(slot, deployed=deployed, since=self._started_at, skew_s=self._party.settings.lease.clock_skew_s)


def out(claim: HostClaim, words: str) -> HostClaim:
    """The host out of the pool, with the reason; what has to be undone is kept for the next cleaning."""
    return HostClaim(
        host=claim.host,
        state=ClaimState.OUT,
        id=claim.id,
        name=claim.name,
        marker=claim.marker,
        created_at=claim.created_at,
        used=claim.used,
        before=claim.before,
        cleaned_at=claim.cleaned_at,
        words=words,
    )
