"""Returns what dead runs hold. A supervised process of its own: ``python -m mlops_sdk.capacity.reaper``.

It has its own credential and no memory: every period it lists, at every provider, what carries our marker, and returns
what is overdue by the provider's clock, through the same release path and fence as the runs themselves. So nothing is
held longer than the renewal time + one period + cleaning. It touches nothing that carries no marker of this deployment.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from mlops_sdk.capacity.evidence import NodeEvidence, Outcome
from mlops_sdk.capacity.fence import Claim
from mlops_sdk.capacity.lease import DEFAULT_PROVIDER, EndReason, Marker, belongs, overdue
from mlops_sdk.capacity.order_book import OrderBook
from mlops_sdk.capacity.orders import reason_by
from mlops_sdk.capacity.owned import Held, Owned, Standing, due_for_return
from mlops_sdk.capacity.provider import Provider, Returning
from mlops_sdk.capacity.reaper_figures import ReaperFigures
from mlops_sdk.capacity.textfile import write_textfile
from mlops_sdk.capacity.use import note_return
from mlops_sdk.config import Settings
from mlops_sdk.errors import DamagedObject, MlopsError, RemoteError
from mlops_sdk.history import History, Piece, read_history
from mlops_sdk.identity.audit_entry import AuditResult
from mlops_sdk.identity.credential import StoredCredential, first_name
from mlops_sdk.identity.credential_marker import Alive, why_dead
from mlops_sdk.journal import EntryKind, Journal, note_evidence
from mlops_sdk.names import ResourceName, parse_resource_name
from mlops_sdk.services import Services, connect_services
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
    not_due: int

    def to_json(self) -> dict[str, Any]:
        """For the CLI."""
        return {
            "due": [due.to_json() for due in self.due],
            "evidence": [item.to_json() for item in self.evidence],
            "errors": list(self.errors),
            "not_due": self.not_due,
        }


class Reaper:
    """One pass (`reap_once`) or for ever (`run`).

    Args:
        services: The deployment, through the reaper's own login.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings
        self._store = services.store
        self._broker = services.broker
        self._clock = services.clock
        self._deployment = str(services.settings.deployment_id)
        self._skew_s = services.settings.lease.clock_skew_s
        self._fence = services.fence()
        self._providers = {name: services.provider(name, by="reaper", fence=self._fence) for name in services.providers}
        self._in_flight: dict[str, Returning] = {}
        self._figures = ReaperFigures()

    @classmethod
    def connect(cls, settings: Settings) -> Reaper:
        """With the real services."""
        return cls(connect_services(settings, service="reaper"))

    def reap_once(self, *, dry_run: bool = False) -> ReapReport:
        """One pass; waits until what it began to return is cleaned, or the cleaning time is up.

        What does not answer is named in the report's errors; the rest is done all the same.
        """
        due, not_due, errors = self._scan(dry_run=dry_run)
        evidence: list[NodeEvidence] = []
        end = self._clock.monotonic() + self._settings.lease.clean_timeout_s
        while self._in_flight and self._clock.monotonic() < end:
            evidence.extend(self._step(errors))
            if self._in_flight:
                self._clock.sleep(self._settings.lease.poll_s)
        return ReapReport(due=tuple(due), evidence=tuple(evidence), errors=tuple(errors), not_due=not_due)

    def run(self, stop: threading.Event) -> None:
        """Passes until `stop`: a scan every period, in between what is under way is watched. Survives every outage."""
        failures = 0
        next_scan = self._clock.monotonic()
        while not stop.is_set():
            errors: list[str] = []
            if self._clock.monotonic() >= next_scan:
                due, held, errors = self._scan(dry_run=False)
                failures = failures + 1 if errors else 0
                next_scan = self._clock.monotonic() + self._pause_s(failures)
                self._figures = self._figures.after_pass(
                    [found.kind for found in due], held=held, errors=len(errors), at=self._moment()
                )
            known = len(errors)
            ended = self._step(errors)
            self._figures = self._figures.after_return(ended, errors=len(errors) - known)
            for text in errors:
                _LOG.error("could not do everything", extra={"data": {"error": text, "failures": failures}})
            self._tell()
            wait_s = next_scan - self._clock.monotonic()
            stop.wait(max(0.05, min(wait_s, self._settings.lease.poll_s) if self._in_flight else wait_s))

    def _moment(self) -> datetime | None:
        with suppress(MlopsError):  # what does not answer is among the errors of the pass
            return self._services.now()
        return None

    def _tell(self) -> None:
        """Leave the figures where Prometheus finds them, if that is wanted. Never ends the reaper."""
        if not self._settings.lease.metrics_file:
            return
        try:
            write_textfile(Path(self._settings.lease.metrics_file), self._figures.families())
        except OSError as error:
            _LOG.error("the figures could not be written", extra={"data": {"error": str(error)}})

    def _pause_s(self, failures: int) -> float:
        """Until the next scan: the period, longer while something does not answer."""
        period_s = self._settings.lease.reaper_period_s
        if not failures:
            return period_s
        return max(period_s, min(period_s * 2 ** min(failures, _MAX_DOUBLINGS), _MAX_BACKOFF_S))

    def _scan(self, *, dry_run: bool) -> tuple[list[Due], int, list[str]]:
        """Find what is due and (unless it is a dry run) begin to return it."""
        due: list[Due] = []
        errors: list[str] = []
        not_due = 0
        for provider in self._providers.values():
            try:
                owned, overdue_here = self._look(provider)
            except MlopsError as error:
                errors.append(str(error))
                continue
            not_due += len(owned) - len(overdue_here)
            due.extend(Due(kind=item.kind, resource=item.name, reason=reason) for item, reason in overdue_here)
            if not dry_run:
                for item, reason in overdue_here:
                    self._begin(provider, item.held, reason, item.id)
        for part in (self._reap_credentials, self._sweep_rules, self._sweep_fences):
            try:
                due.extend(part(dry_run, errors))
            except MlopsError as error:
                errors.append(str(error))
        return due, not_due, errors

    def _look(self, provider: Provider) -> tuple[list[Owned], list[tuple[Owned, EndReason]]]:
        owned = list(provider.list_owned())
        now = provider.now()
        due = due_for_return(owned, deployment_id=self._deployment, now=now, skew_s=self._skew_s)
        return owned, [(item, self._why(item.name, reason)) for item, reason in due]

    def _why(self, resource: str, reason: EndReason) -> EndReason:
        """Why it really ended: what was decided about its lease, if that can be read; else what its times show."""
        name = parse_resource_name(resource)
        if name is not None:
            with suppress(RemoteError, DamagedObject):
                return reason_by(OrderBook(self._store, name.run_key, name.generation).read(), reason)
        return reason

    def _begin(self, provider: Provider, held: Held, reason: EndReason, allocation_id: str) -> None:
        name = parse_resource_name(held.name)
        if name is None or allocation_id in self._in_flight:
            return
        _LOG.info("returning", extra={"data": {"resource": held.name, "by": provider.name, "reason": reason.value}})
        entitled = partial(self._entitled, provider)
        self._in_flight[allocation_id] = provider.returning(
            held, reason=reason, entitled=entitled, run_key=name.run_key
        )

    def _entitled(self, provider: Provider, name: str, marker: Marker | None) -> bool:
        """Asked again before each action: the run may have renewed in between."""
        if marker is None or not belongs(name, marker, self._deployment):
            return False
        now = provider.now()
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
            came_of_it = AuditResult.DONE if evidence.clean else AuditResult.FAILED
            self._broker.audit.note("machine.release", evidence.resource, came_of_it, **evidence.to_json())
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
        history = read_history(journal.entries())
        generation = history.generations.get(name.generation)
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
        if generation is not None and all(p.evidence or p is piece for p in generation.pieces.values()):
            OrderBook(self._store, name.run_key, name.generation).forget()
        half_life_s = self._settings.lease.share_half_life_s
        note_return(self._services.store, evidence, owner=history.owner, since=piece.since, half_life_s=half_life_s)

    def _reap_credentials(self, dry_run: bool, _errors: list[str]) -> list[Due]:
        due: list[Due] = []
        now = self._services.now()
        for stored in list(self._broker.stored()):
            name = parse_resource_name(stored.name)
            reason = self._why_dead(stored, name, now)
            if name is None or reason is None:
                continue
            due.append(Due(kind="credential", resource=stored.name, reason=reason))
            if not dry_run and self._broker.revoke(stored.name, still=partial(self._is_dead, stored, name)):
                _LOG.info("revoked", extra={"data": {"credential": stored.name, "reason": reason.value}})
                self._journal(name).note(
                    EntryKind.OUTCOME,
                    "credential.revoke",
                    stored.name,
                    generation=name.generation,
                    reason=reason.value,
                )
        return due

    def _sweep_rules(self, dry_run: bool, errors: list[str]) -> list[Due]:
        """Access rules whose credential is gone (its revoker died in between), of runs with a journal here."""
        due: list[Due] = []
        names = self._broker.names_of_rules()
        for text in sorted(names - {first_name(stored.name) for stored in self._broker.stored()}):
            name = parse_resource_name(text)
            try:
                if name is None or self._journal(name).first() is None:
                    continue
            except DamagedObject as error:  # of this run alone
                errors.append(str(error))
                continue
            due.append(Due(kind="access_rules", resource=text, reason=EndReason.NOT_RENEWED))
            if not dry_run:
                self._broker.forget_rules(text)
        return due

    def _is_dead(self, stored: StoredCredential, name: ResourceName) -> bool:
        """Asked again before it is revoked: the run may have said in between that it lives."""
        return self._why_dead(stored, name, self._services.now()) is not None

    def _why_dead(self, stored: StoredCredential, name: ResourceName | None, now: datetime) -> EndReason | None:
        marker = stored.marker
        if name is None or marker is None or marker.deployment_id != self._deployment:
            return None
        return why_dead(
            marker, self._alive(name), now=now, skew_s=self._skew_s, window_s=self._settings.lease.renew_for_s
        )

    def _alive(self, name: ResourceName) -> Alive | None:
        """What the run's last heartbeat says; the next beat of a run that lives replaces one that is damaged."""
        with suppress(DamagedObject):
            return Alive.parse(self._store.get_json(f"runs/{name.run_key}/heartbeat.json"))
        return None

    def _sweep_fences(self, dry_run: bool, _errors: list[str]) -> list[Due]:
        """Claims that outlived their claimant: finish what it began, or remove the claim when nothing is left."""
        due: list[Due] = []
        told: dict[str, History] = {}  # a run may have many claims; its journal is read once
        for claim in list(self._fence.claims()):
            if claim.live(self._services.now()) or claim.resource_id in self._in_flight:
                continue
            provider = self._providers.get(str(claim.details.get("provider") or DEFAULT_PROVIDER))
            if provider is None:
                _LOG.error("a claim is of a provider that is not configured", extra={"data": dict(claim.details)})
                continue
            held = Held(
                name=str(claim.details.get("name", "")),
                allocation_id=claim.resource_id,
                node_id=str(claim.details.get("node_id", "")),
                deployed=True,
            )
            standing = provider.inspect(held).standing
            if standing is Standing.HELD:
                continue  # its lease decides
            due.append(Due(kind="fence", resource=claim.resource_id, reason=EndReason.NOT_RENEWED))
            if not dry_run:
                self._finish_claim(provider, claim, held, standing, told)
        return due

    def _finish_claim(
        self, provider: Provider, claim: Claim, held: Held, standing: Standing, told: dict[str, History]
    ) -> None:
        """A provider may drop a lease though its machine did not get back; that one then waits for another try.

        And one that did get back, while nobody looked, has its end written down: what it cost counts until then.
        """
        piece = self._piece(held.name, told)
        if standing is Standing.UNFINISHED or (piece is not None and not piece.ended):
            known = replace(held, since=piece.since, deployed=piece.deployed) if piece is not None else held
            self._begin(provider, known, EndReason.NOT_RENEWED, claim.resource_id)
            return
        self._fence.drop(claim)

    def _piece(self, resource: str, told: dict[str, History]) -> Piece | None:
        """What its run's journal tells of it; `told` keeps what was read."""
        name = parse_resource_name(resource)
        if name is None:
            return None
        if name.run_key not in told:
            told[name.run_key] = read_history(self._journal(name).entries())
        generation = told[name.run_key].generations.get(name.generation)
        return generation.pieces.get(resource) if generation is not None else None

    def _journal(self, name: ResourceName) -> Journal:
        return Journal(self._store, name.run_key, now=self._services.now, writer="reaper")


def main(argv: list[str] | None = None, *, connect: Callable[[Settings], Reaper] = Reaper.connect) -> int:
    """Run until SIGTERM or SIGINT. Settings as everywhere: ``MLOPS_CONFIG`` names the file."""
    del argv
    return run_until_stopped(_LOG, lambda: connect(Settings.load()).run)


if __name__ == "__main__":
    sys.exit(main())
