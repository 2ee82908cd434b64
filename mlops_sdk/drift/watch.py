"""What a look at the serving hosts means: windows between readings of counters, and episodes of drift. Pure.

A serving process counts from zero for as long as it lives, so a window is the difference of two readings. What was
counted before the first look belongs to the first window; a process that was restarted is another counter. Prompts wait
in the pending window until it has enough of them to judge.

An *episode* begins with the first window that has drifted and ends with another model version or after some stable
windows in a row. It gets one alert, and is announced (so that training starts again) once; only if nothing came of that
for a long time, again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from mlops_sdk.drift.detector import Bounds, State, Verdict, detect
from mlops_sdk.drift.profile import Counts, Profile, Reference
from mlops_sdk.errors import ProfileDamaged, ProfileMismatch

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long things are waited for.

    Attributes:
        calm_windows: Stable windows in a row that end an episode.
        announce_again_after_s: An episode that still lasts is announced again after this time: the training that it
            called for was lost, refused, or did not help.
    """

    calm_windows: int = 3
    announce_again_after_s: float = 6 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A drift that lasts. `announced_by` names who told it last (empty: nobody yet); `calm` counts stable windows."""

    alert: str
    opened_at: datetime
    verdict: Mapping[str, Any]
    report: str
    calm: int = 0
    announced_by: str = ""
    announced_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchState:
    """What is remembered between two looks at one model.

    Attributes:
        model_version: That was serving at the last look; empty before the first.
        seen: The last reading of each counter of that version.
        pending: Prompts that no verdict was passed on yet.
        windows: Windows judged so far, of all versions; numbers the reports.
        episodes: Episodes so far, of all versions.
        episode: The one that lasts, if any.
    """

    model_version: str = ""
    seen: Mapping[str, Counts] = field(default_factory=dict[str, Counts])
    pending: Counts | None = None
    windows: int = 0
    episodes: int = 0
    episode: Episode | None = None

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {
            "version": _VERSION,
            "model_version": self.model_version,
            "seen": {instance: counts.to_json() for instance, counts in self.seen.items()},
            "pending": self.pending.to_json() if self.pending else None,
            "windows": self.windows,
            "episodes": self.episodes,
            "episode": _episode_to_json(self.episode) if self.episode else None,
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> WatchState:
        """From what was stored.

        Raises:
            ProfileDamaged: it is not what `to_json` gives.
        """
        try:
            return cls(
                model_version=str(raw["model_version"]),
                seen={str(name): Counts.parse(counts) for name, counts in raw["seen"].items()},
                pending=Counts.parse(raw["pending"]) if raw["pending"] else None,
                windows=int(raw["windows"]),
                episodes=int(raw["episodes"]),
                episode=_episode_from_json(raw["episode"]) if raw["episode"] else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProfileDamaged(
                "what was remembered of earlier looks cannot be read",
                seen=f"{type(error).__name__}: {error}",
                next_step="delete the state object; the next look begins anew",
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look found.

    Attributes:
        model: That is watched.
        model_version: That serves; empty when nothing does.
        fresh: Distinct prompts since the look before.
        verdict: On the pending window.
        judged: Whether the window had enough prompts, and so has a report.
        report: URI of the report of the newest judged window, or of the one that opened the episode.
        alert: Id of the alert of the episode that lasts; empty when none does.
        opened: Whether this look opened it.
        announce: Whether whoever looks must now set off a training on `widen_to`.
        widen_to: Kinds of text to train on; empty when that would not help.
        closest: Kinds of text that the traffic looks like, most alike first.
        instances: Serving processes that were seen.
        ignored: Profiles that could not be used, and why.
    """

    model: str
    model_version: str
    fresh: int
    verdict: Verdict
    judged: bool
    report: str = ""
    alert: str = ""
    opened: bool = False
    announce: bool = False
    widen_to: tuple[str, ...] = ()
    closest: tuple[str, ...] = ()
    instances: int = 0
    ignored: tuple[str, ...] = ()

    def words(self) -> str:
        """One sentence for people."""
        if not self.instances:
            return f"no profile of {self.model!r} on the serving host" + "".join(f"; {text}" for text in self.ignored)
        about = f"{self.model} {self.model_version}: {self.verdict.words()}"
        return f"{about} (alert {self.alert})" if self.alert else about

    def to_json(self) -> dict[str, Any]:
        """For XCom and the command line."""
        return {
            "model": self.model,
            "model_version": self.model_version,
            "state": self.verdict.state.value,
            "fresh": self.fresh,
            "prompts": self.verdict.prompts,
            "report": self.report,
            "alert": self.alert,
            "announce": self.announce,
            "widen_to": list(self.widen_to),
            "closest": list(self.closest),
            "instances": self.instances,
            "ignored": list(self.ignored),
            "words": self.words(),
        }

    def event(self) -> dict[str, Any]:
        """What whoever trains again must know."""
        return {
            "alert": self.alert,
            "report": self.report,
            "model": self.model,
            "model_version": self.model_version,
            "closest": list(self.closest),
            "widen_to": list(self.widen_to),
        }


def serving(profiles: Sequence[Profile]) -> list[Profile]:
    """The profiles of the model version whose newest process began last: the one that serves, or is about to."""
    if not profiles:
        return []
    newest = max(profiles, key=lambda profile: (profile.started_at, profile.instance))
    return [p for p in profiles if (p.model_version, p.reference) == (newest.model_version, newest.reference)]


def advance(state: WatchState, profiles: Sequence[Profile], reference: Reference) -> tuple[WatchState, int]:
    """Take in a reading of the counters of one model version; the new state and how many prompts came since the last.

    A counter that went back is taken as read, and counts nothing: twice would be worse than not.

    Raises:
        ProfileMismatch: the profiles are of several model versions, or over other bins than the reference's.
    """
    if len({(p.model_version, p.reference) for p in profiles}) != 1 or profiles[0].reference != reference.sha256:
        raise ProfileMismatch("a look takes profiles of one model version, and its reference", next_step="select first")
    version = profiles[0].model_version
    if version != state.model_version:
        state = WatchState(model_version=version, windows=state.windows, episodes=state.episodes)
    none = Counts.none(reference.edges)
    fresh = none
    for profile in profiles:
        try:
            fresh = fresh.plus(profile.counts.since(state.seen.get(profile.instance, none)))
        except ProfileMismatch:
            none.same_bins(profile.counts)
    seen = {**state.seen, **{p.instance: p.counts for p in profiles}}
    pending = (state.pending or none).plus(fresh) if fresh.prompts else state.pending
    return replace(state, seen=seen, pending=pending), fresh.prompts


def judge(
    state: WatchState, reference: Reference, *, bounds: Bounds, patience: Patience, model: str, now: datetime, uri: str
) -> tuple[WatchState, Verdict, bool]:
    """Pass a verdict on the pending window; the new state, the verdict, and whether it opened an episode.

    `uri` is where the report of this window will be, should it have enough prompts.
    """
    window = state.pending or Counts.none(reference.edges)
    verdict = detect(window, reference, bounds)
    if verdict.state is State.TOO_FEW:
        return state, verdict, False
    state = replace(state, pending=None, windows=state.windows + 1)
    episode = state.episode
    if verdict.state is State.STABLE:
        calm = replace(episode, calm=episode.calm + 1) if episode else None
        return replace(state, episode=None if calm and calm.calm >= patience.calm_windows else calm), verdict, False
    if episode is not None:
        # the newest window knows best what to train on: the first one may hold traffic from before the change
        newest = replace(episode, calm=0, verdict=verdict.to_json(), report=uri)
        return replace(state, episode=newest), verdict, False
    number = state.episodes + 1
    alert = f"{model}-{state.model_version}-drift-{number}".replace("/", "-")
    opened = Episode(alert=alert, opened_at=now, verdict=verdict.to_json(), report=uri)
    return replace(state, episodes=number, episode=opened), verdict, True


def announce(state: WatchState, patience: Patience, *, by: str, now: datetime) -> tuple[WatchState, bool]:
    """Whether `by` must announce the episode, and the state in which that is written down.

    True for whoever asks first, for the same `by` again (its first try may have died before anybody heard), and for
    anybody once the last announcement is old. Never for a drift that training on known text would not cure, or
    that the newest window no longer shows.
    """
    episode = state.episode
    if episode is None or episode.calm or not episode.verdict.get("widen_to"):
        return state, False
    if episode.announced_by == by:
        return state, True
    told = episode.announced_at
    if told is not None and (now - told).total_seconds() < patience.announce_again_after_s:
        return state, False
    return replace(state, episode=replace(episode, announced_by=by, announced_at=now)), True


def _episode_to_json(episode: Episode) -> dict[str, Any]:
    return {
        "alert": episode.alert,
        "opened_at": episode.opened_at.isoformat(),
        "verdict": dict(episode.verdict),
        "report": episode.report,
        "calm": episode.calm,
        "announced_by": episode.announced_by,
        "announced_at": episode.announced_at.isoformat() if episode.announced_at else "",
    }


def _episode_from_json(raw: Mapping[str, Any]) -> Episode:
    return Episode(
        alert=str(raw["alert"]),
        opened_at=datetime.fromisoformat(str(raw["opened_at"])),
        verdict=dict(raw["verdict"]),
        report=str(raw["report"]),
        calm=int(raw["calm"]),
        announced_by=str(raw["announced_by"]),
        announced_at=datetime.fromisoformat(str(raw["announced_at"])) if raw["announced_at"] else None,
    )
