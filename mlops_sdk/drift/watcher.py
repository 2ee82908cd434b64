"""Looks at the prompts that are served: reads the counters on the serving host over SSH, remembers, judges, reports."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mlops_sdk.canonical import to_json
from mlops_sdk.drift.detector import Bounds, State, Verdict
from mlops_sdk.drift.profile import Profile, Reference
from mlops_sdk.drift.store import Alert, get_reference, raise_alert, report_key, state_key
from mlops_sdk.drift.watch import Look, Patience, WatchState, advance, announce, judge, serving
from mlops_sdk.errors import DriftError, ProfileDamaged
from mlops_sdk.objects import ObjectStore
from mlops_sdk.remote.ssh import Host, run_once

_ATTEMPTS = 5
_READ = 'for file in "$1"/*.json "$1"/*/*.json; do if [ -f "$file" ]; then cat -- "$file"; echo; fi; done'


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the serving host holds: the counters that could be read, and what was wrong with the others."""

    profiles: tuple[Profile, ...]
    ignored: tuple[str, ...] = ()


def read_profiles(host: Host, folder: str, *, timeout_s: float = 20.0) -> Reading:
    """The counters in `folder` on the host, or one level below. A folder that is not there is an empty reading.

    Raises:
        HostKeyMismatch, NodeFailed, RemoteCommandError: the host could not be asked.
    """
    return parse_profiles(run_once(host, ["sh", "-c", _READ, "sh", folder], timeout_s=timeout_s))


def parse_profiles(text: str) -> Reading:
    """One profile a line; a line that is none is reported, not fatal: the others still count."""
    profiles: list[Profile] = []
    ignored: list[str] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        try:
            profiles.append(Profile.parse(line.encode()))
        except DriftError as error:
            ignored.append(str(error))
    return Reading(profiles=tuple(profiles), ignored=tuple(ignored))


def look(
    store: ObjectStore,
    model: str,
    reading: Reading,
    *,
    by: str,
    bounds: Bounds | None = None,
    patience: Patience | None = None,
    now: datetime | None = None,
) -> Look:
    """One look at a model: count what is new, judge the window if it is large enough, write down what follows.

    Safe to repeat and to run twice at once: what was counted and what was announced change together, in one conditional
    PUT; reports and alerts have names that follow from them.

    Args:
        store: The deployment's bucket.
        model: Name of the registered model.
        reading: Of its serving hosts.
        by: Who looks (a DAG run): an announcement belongs to one of them.
        bounds: When a difference is a drift.
        patience: How long things are waited for.
        now: Default: this machine's clock.

    Raises:
        DriftError: the reference is not stored, or somebody else changes the state all the time.
        ProfileDamaged, ProfileMismatch: what is stored does not fit.
    """
    current = serving(reading.profiles)
    if not current:
        nothing = Verdict(state=State.TOO_FEW, prompts=0, traffic={})
        return Look(model=model, model_version="", fresh=0, verdict=nothing, judged=False, ignored=reading.ignored)
    reference = get_reference(store, current[0].reference)
    watch = _Watch(
        store=store, model=model, by=by, bounds=bounds or Bounds(), patience=patience or Patience(), reference=reference
    )
    for _ in range(_ATTEMPTS):
        found = watch.try_once(current, reading.ignored, now or datetime.now(UTC))
        if found is not None:
            return found
    raise DriftError(
        f"the watcher's state of {model!r} changed under every try",
        seen=f"{_ATTEMPTS} tries",
        next_step="let one watcher look at a model at a time (max_active_runs=1)",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watch:
    store: ObjectStore
    model: str
    by: str
    bounds: Bounds
    patience: Patience
    reference: Reference

    def try_once(self, current: Sequence[Profile], ignored: tuple[str, ...], now: datetime) -> Look | None:
        """None when somebody else was faster."""
        before, etag = self._remembered()
        counted, fresh = advance(before, current, self.reference)
        uri = self._uri(report_key(self.model, counted.windows + 1))
        state, verdict, opened = judge(
            counted,
            self.reference,
            bounds=self.bounds,
            patience=self.patience,
            model=self.model,
            now=now,
            uri=uri,
        )
        judged = state.windows > counted.windows
        if judged:
            self._report(counted, verdict, now)
        if opened:
            self._alert(state, verdict, now)
        state, told = announce(state, self.patience, by=self.by, now=now)
        if state != before and not self._remember(state, etag):
            return None
        episode = state.episode
        shown = episode.verdict if episode else verdict.to_json()
        return Look(
            model=self.model,
            model_version=state.model_version,
            fresh=fresh,
            verdict=verdict,
            judged=judged,
            report=uri if judged else episode.report if episode else "",
            alert=episode.alert if episode else "",
            opened=opened,
            announce=told,
            widen_to=tuple(shown["widen_to"]),
            closest=tuple(k for k, share in shown["traffic"].items() if share >= self.bounds.share_that_matters),
            instances=len(current),
            ignored=ignored,
        )

    def _remembered(self) -> tuple[WatchState, str]:
        found = self.store.get_with_etag(state_key(self.model))
        if found is None:
            return WatchState(), ""
        try:
            return WatchState.parse(json.loads(found[0])), found[1]
        except ValueError as error:
            raise ProfileDamaged(
                f"what was remembered of {self.model!r} is not JSON",
                seen=str(error),
                next_step=f"delete {state_key(self.model)!r}; the next look begins anew",
            ) from error

    def _remember(self, state: WatchState, etag: str) -> bool:
        body = to_json({**state.to_json(), "writer": uuid.uuid4().hex})  # two watchers may write equal states
        if not etag:
            return self.store.put_if_absent(state_key(self.model), body)
        return self.store.put_if_match(state_key(self.model), body, etag) is not None

    def _report(self, counted: WatchState, verdict: Verdict, now: datetime) -> None:
        body = {
            "version": 1,
            "at": now.isoformat(),
            "model": self.model,
            "model_version": counted.model_version,
            "reference": self.reference.sha256,
            "window": counted.pending.to_json() if counted.pending else None,
            "verdict": verdict.to_json(),
        }
        self.store.put(report_key(self.model, counted.windows + 1), to_json(body))

    def _alert(self, state: WatchState, verdict: Verdict, now: datetime) -> None:
        if state.episode is None:
            return
        alert = Alert(
            id=state.episode.alert,
            kind="drift",
            at=now,
            subject=f"{self.model} {state.model_version}",
            words=verdict.words(),
            details={
                "report": state.episode.report,
                "traffic": dict(verdict.traffic),
                "widen_to": list(verdict.widen_to),
            },
        )
        raise_alert(self.store, alert)

    def _uri(self, key: str) -> str:
        return f"s3://{self.store.bucket}/{key}"
