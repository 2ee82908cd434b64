"""Returns what dead runs hold. A supervised process of its own: ``python -m mlops_sdk.capacity.reaper``.

It has its own credential and no memory: every period it lists what carries our marker and returns what is overdue by
Ironic's clock, through the same release path and fence as the runs themselves. So nothing is held longer than the
renewal time + one period + cleaning. It touches nothing that carries no marker of this deployment.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from mlops_sdk.capacity.evidence import NodeEvidence, Outcome
from mlops_sdk.capacity.fence import Claim, Fence
from mlops_sdk.capacity.lease import Allocation, EndReason, belongs, due_for_return, overdue
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi, IronicApi
from mlops_sdk.capacity.providers.ironic_release import Held, Release
from mlops_sdk.clock import Clock, SystemClock
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import Settings
from mlops_sdk.errors import MlopsError
from mlops_sdk.history import Piece, read_history
from mlops_sdk.identity.credential import Alive, CredentialBroker, StoredCredential, why_dead
from mlops_sdk.identity.keystone import KeystoneCredentials
from mlops_sdk.journal import EntryKind, Journal, note_evidence
from mlops_sdk.names import ResourceName, parse_resource_name
from mlops_sdk.objects import ObjectStore
from mlops_sdk.supervised import run_until_stopped

_LOG = logging.getLogger("mlops.reaper")
_MAX_BACKOFF_S = 60.0
_MAX_DOUBLINGS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Something that is (or, in a dry run, would be) taken back."""

    kind: str
    resource: str
    reason: EndReason

    def to_json(self) -> dict[str, str]:
        """For the CLI."""
        return {"kind": self.kind, "resource": self.resource, "reason": self.reason.value}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapReport:
    """What one pass found and did."""

    due: tuple[Due, ...]
    evidence: tuple[NodeEvidence, ...]
    errors: tuple[str, ...]
    others: int

    def to_json(self) -> dict[str, Any]:
        """For the CLI."""
        return {
            "due": [due.to_json() for due in self.due],
            "evidence": [item.to_json() for item in self.evidence],
            "errors": list(self.errors),
            "not_ours_or_not_due": self.others,
        }


class Reaper:
    """One pass (`reap_once`) or for ever (`run`).

    Args:
        settings: The deployment, with the reaper's own login.
        store: Its bucket.
        baremetal: Ironic through that login.
        broker: Keystone through that login.
        clock: Durations and pauses.
    """

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        baremetal: BaremetalApi,
        broker: CredentialBroker,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._baremetal = baremetal
        self._broker = broker
        self._clock = clock or SystemClock()
        self._deployment = str(settings.deployment_id)
        self._skew_s = settings.lease.clock_skew_s
        self._fence = Fence(store, now=baremetal.now, ttl_s=settings.lease.renew_for_s)
        self._in_flight: dict[str, Release] = {}

    @classmethod
    def connect(cls, settings: Settings) -> Reaper:
        """With the real services."""
        cloud = Cloud(settings.keystone)
        broker = CredentialBroker(KeystoneCredentials(cloud), settings.broker_key)
        return cls(settings, ObjectStore.open(settings.s3), IronicApi(cloud), broker)

    def reap_once(self, *, dry_run: bool = False) -> ReapReport:
        """One pass; waits until what it began to return is cleaned, or the cleaning time is up.

        Raises:
            MlopsError: Ironic's allocations could not be listed.
        """
        due, others, errors = self._scan(dry_run=dry_run)
        evidence: list[NodeEvidence] = []
        end = self._clock.monotonic() + self._settings.lease.clean_timeout_s
        while self._in_flight and self._clock.monotonic() < end:
            evidence.extend(self._step(errors))
            if self._in_flight:
                self._clock.sleep(self._settings.lease.poll_s)
        return ReapReport(due=tuple(due), evidence=tuple(evidence), errors=tuple(errors), others=others)

    def run(self, stop: threading.Event) -> None:
        """Passes until `stop`: a scan every period, in between what is under way is watched. Survives every outage."""
        failures = 0
        next_scan = self._clock.monotonic()
        while not stop.is_set():
            errors: list[str] = []
            if self._clock.monotonic() >= next_scan:
                try:
                    _, _, errors = self._scan(dry_run=False)
                except MlopsError as error:
                    errors = [str(error)]
                failures = failures + 1 if errors else 0
                next_scan = self._clock.monotonic() + self._pause_s(failures)
            self._step(errors)
            for text in errors:
                _LOG.error("could not do everything", extra={"data": {"error": text, "failures": failures}})
            wait_s = next_scan - self._clock.monotonic()
            stop.wait(max(0.05, min(wait_s, self._settings.lease.poll_s) if self._in_flight else wait_s))

    def _pause_s(self, failures: int) -> float:
        """Until the next scan: the period, longer while something does not answer."""
        period_s = self._settings.lease.reaper_period_s
        if not failures:
            return period_s
        return max(period_s, min(period_s * 2 ** min(failures, _MAX_DOUBLINGS), _MAX_BACKOFF_S))

    def _scan(self, *, dry_run: bool) -> tuple[list[Due], int, list[str]]:
        """Find what is due and (unless it is a dry run) begin to return it."""
        allocations = list(self._baremetal.list_allocations())
        now = self._baremetal.now()
        found = due_for_return(allocations, deployment_id=self._deployment, now=now, skew_s=self._skew_s)
        due = [Due(kind="allocation", resource=a.name, reason=reason) for a, reason in found]
        errors: list[str] = []
        if not dry_run:
            for allocation, reason in found:
                self._begin(Held(name=allocation.name, node_id=allocation.node_id), reason, allocation.id)
        for part in (partial(self._reap_credentials, now), self._sweep_rules, self._sweep_fences):
            try:
                due.extend(part(dry_run))
            except MlopsError as error:
                errors.append(str(error))
        return due, len(allocations) - len(found), errors

    def _begin(self, held: Held, reason: EndReason, allocation_id: str) -> None:
        name = parse_resource_name(held.name)
        if name is None or allocation_id in self._in_flight:
            return
        _LOG.info("returning", extra={"data": {"allocation": held.name, "reason": reason.value}})
        self._in_flight[allocation_id] = Release(
            self._baremetal,
            self._fence,
            held,
            reason=reason,
            entitled=self._entitled,
            run_key=name.run_key,
            by="reaper",
            skew_s=self._skew_s,
        )

    def _entitled(self, allocation: Allocation) -> bool:
        """Asked again before each action: the run may have renewed in between."""
        marker = allocation.marker
        if marker is None or not belongs(allocation, self._deployment):
            return False
        now = self._baremetal.now()
        return (
            overdue(deadline=marker.deadline, renewed_until=marker.renewed_until, now=now, skew_s=self._skew_s)
            is not None
        )

    def _step(self, errors: list[str]) -> list[NodeEvidence]:
        """One step of everything under way; what ended, with its evidence in the run's journal."""
        ended: list[NodeEvidence] = []
        for allocation_id, release in list(self._in_flight.items()):
            try:
                evidence = release.step()
            except MlopsError as error:  # the next scan finds it again
                errors.append(str(error))
                del self._in_flight[allocation_id]
                continue
            if evidence is None:
                continue
            del self._in_flight[allocation_id]
            if evidence.outcome is Outcome.PENDING:
                continue  # renewed by its run
            _LOG.info("returned", extra={"data": evidence.to_json()})
            ended.append(evidence)
            try:
                self._write_down(evidence)
            except MlopsError as error:
                errors.append(str(error))
        return ended

    def _write_down(self, evidence: NodeEvidence) -> None:
        name = parse_resource_name(evidence.resource)
        if name is None:
            return
        journal = self._journal(name)
        generation = read_history(journal.entries()).generations.get(name.generation)
        piece = generation.pieces.get(evidence.resource) if generation else None
        piece = piece or Piece(name=evidence.resource)
        known = piece.evidence
        if known is not None and (known.outcome, known.last_error) == (evidence.outcome, evidence.last_error):
            return
        request = generation.request if generation else None
        note_evidence(
            journal,
            evidence,
            generation=name.generation,
            resource_class=request.resource_class if request else "",
            since=piece.since,
        )

    def _reap_credentials(self, now: datetime, dry_run: bool) -> list[Due]:
        due: list[Due] = []
        for stored in list(self._broker.stored()):
            name = parse_resource_name(stored.name)
            reason = self._why_dead(stored, name, now)
            if name is None or reason is None:
                continue
            due.append(Due(kind="credential", resource=stored.name, reason=reason))
            if not dry_run:
                self._broker.revoke(stored.name)
                _LOG.info("revoked", extra={"data": {"credential": stored.name, "reason": reason.value}})
                self._journal(name).note(
                    EntryKind.OUTCOME,
                    "credential.revoke",
                    stored.name,
                    generation=name.generation,
                    reason=reason.value,
                )
        return due

    def _sweep_rules(self, dry_run: bool) -> list[Due]:
        """Access rules whose credential is gone (its revoker died in between), of runs with a journal here."""
        due: list[Due] = []
        names = self._broker.names_of_rules()
        for text in sorted(names - {stored.name for stored in self._broker.stored()}):
            name = parse_resource_name(text)
            if name is None or self._journal(name).first() is None:
                continue
            due.append(Due(kind="access_rules", resource=text, reason=EndReason.NOT_RENEWED))
            if not dry_run:
                self._broker.forget_rules(text)
        return due

    def _why_dead(self, stored: StoredCredential, name: ResourceName | None, now: datetime) -> EndReason | None:
        marker = stored.marker
        if name is None or marker is None or marker.deployment_id != self._deployment:
            return None
        alive = Alive.parse(self._store.get_json(f"runs/{name.run_key}/heartbeat.json"))
        return why_dead(marker, alive, now=now, skew_s=self._skew_s, window_s=self._settings.lease.renew_for_s)

    def _sweep_fences(self, dry_run: bool) -> list[Due]:
        """Claims that outlived their claimant: finish what it began, or remove the claim when nothing is left."""
        due: list[Due] = []
        for claim in list(self._fence.claims()):
            if claim.live(self._baremetal.now()) or claim.resource_id in self._in_flight:
                continue
            if self._baremetal.get_allocation(claim.resource_id) is not None:
                continue  # its allocation decides
            due.append(Due(kind="fence", resource=claim.resource_id, reason=EndReason.NOT_RENEWED))
            if not dry_run:
                self._finish_claim(claim)
        return due

    def _finish_claim(self, claim: Claim) -> None:
        """Ironic drops an allocation even when the tear-down failed; its machine then waits in `error` for another."""
        node_id = str(claim.details.get("node_id", ""))
        name = str(claim.details.get("name", ""))
        machine = self._baremetal.get_machine(node_id) if node_id else None
        if machine is not None and machine.provision_state == "error" and not machine.allocation_id:
            held = Held(name=name, allocation_id=claim.resource_id, node_id=node_id, deployed=True)
            self._begin(held, EndReason.NOT_RENEWED, claim.resource_id)
            return
        self._fence.drop(claim)

    def _journal(self, name: ResourceName) -> Journal:
        return Journal(self._store, name.run_key, now=self._baremetal.now, writer="reaper")


def main(argv: list[str] | None = None, *, connect: Callable[[Settings], Reaper] = Reaper.connect) -> int:
    """Run until SIGTERM or SIGINT. Settings as everywhere: ``MLOPS_CONFIG`` names the file."""
    del argv
    return run_until_stopped(_LOG, lambda: connect(Settings.load()).run)


if __name__ == "__main__":
    sys.exit(main())
