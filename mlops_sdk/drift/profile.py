"""What is known of prompts without keeping any: a reference cut into bins, and counts over those bins.

A *reference* is made once per model, from prompts as users would send them: for each feature the quantile edges of the
corpora that the model was trained on (the trained *kinds*), and over these edges the counts of every kind that is
known, trained on or not. A *profile* is what one serving process counted over the bins of one reference.

Runs inside the serving process: the standard library only. Pure.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

from mlops_sdk.canonical import to_json
from mlops_sdk.drift import features as prompt_features
from mlops_sdk.errors import ProfileDamaged, ProfileMismatch

BINS = 10
_REFERENCE = "mlops prompt reference 1"
_PROFILE = "mlops prompt profile 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many prompts fell into which bin: for each feature one number a bin, each feature's sum being `prompts`."""

    prompts: int
    bins: Mapping[str, tuple[int, ...]]

    @classmethod
    def none(cls, edges: Mapping[str, Sequence[float]]) -> Counts:
        """No prompt over these bins."""
        return cls(prompts=0, bins={name: (0,) * (len(cut) + 1) for name, cut in edges.items()})

    def plus(self, other: Counts) -> Counts:
        """Both together.

        Raises:
            ProfileMismatch: they were counted over other bins.
        """
        self.same_bins(other)
        bins = {
            name: tuple(a + b for a, b in zip(row, other.bins[name], strict=True)) for name, row in self.bins.items()
        }
        return Counts(prompts=self.prompts + other.prompts, bins=bins)

    def since(self, earlier: Counts) -> Counts:
        """What came after `earlier`, an earlier reading of the same counter.

        Raises:
            ProfileMismatch: other bins, or a counter that went back.
        """
        self.same_bins(earlier)
        bins = {
            name: tuple(a - b for a, b in zip(row, earlier.bins[name], strict=True)) for name, row in self.bins.items()
        }
        if any(value < 0 for row in bins.values() for value in row):
            raise ProfileMismatch(
                "a counter of served prompts went back",
                seen=f"{earlier.prompts} prompts before, {self.prompts} now",
                next_step="see whether something restored an old profile file on the serving host",
            )
        return Counts(prompts=self.prompts - earlier.prompts, bins=bins)

    def same_bins(self, other: Counts) -> None:
        """Nothing, if both were counted over the same number of bins.

        Raises:
            ProfileMismatch: they were not.
        """
        mine = {name: len(row) for name, row in self.bins.items()}
        theirs = {name: len(row) for name, row in other.bins.items()}
        if mine != theirs:
            raise ProfileMismatch(
                "profiles with different bins do not belong together",
                seen=f"{mine} and {theirs}",
                next_step="compare profiles of one reference only",
            )

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {"prompts": self.prompts, "bins": {name: list(row) for name, row in self.bins.items()}}

    @classmethod
    def parse(cls, raw: object) -> Counts:
        """From what was stored.

        Raises:
            ProfileDamaged: naming what is wrong.
        """
        data = _mapping(raw, "counts")
        prompts = _whole(data.get("prompts"), "prompts")
        bins = {
            str(name): tuple(_whole(n, name) for n in _list(row, name))
            for name, row in _mapping(data.get("bins"), "bins").items()
        }
        for name, row in bins.items():
            if sum(row) != prompts:
                raise _damaged(f"the bins of {name!r} hold {sum(row)} prompts of {prompts}")
        return cls(prompts=prompts, bins=bins)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What is normal for a model.

    Attributes:
        edges: For each feature the upper edges of all bins but the last; a value equal to an edge belongs below it.
        kinds: The counts of every known kind of text over these bins.
        trained: The kinds that the model was trained on.
    """

    edges: Mapping[str, tuple[float, ...]]
    kinds: Mapping[str, Counts]
    trained: tuple[str, ...]

    def bins_of(self, text: str) -> list[tuple[str, int]]:
        """For each feature the bin that a prompt falls into."""
        values = prompt_features.features(text)
        return [(name, bisect_left(self.edges[name], v)) for name, v in zip(prompt_features.NAMES, values, strict=True)]

    def count(self, prompts: Iterable[str]) -> Counts:
        """The counts of some prompts over these bins."""
        rows = {name: [0] * (len(cut) + 1) for name, cut in self.edges.items()}
        total = 0
        for text in prompts:
            total += 1
            for name, index in self.bins_of(text):
                rows[name][index] += 1
        return Counts(prompts=total, bins={name: tuple(row) for name, row in rows.items()})

    @property
    def sha256(self) -> str:
        """By which a profile names its reference, and under which it is stored."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return to_json(
            {
                "format": _REFERENCE,
                "features": prompt_features.VERSION,
                "edges": {name: list(cut) for name, cut in self.edges.items()},
                "kinds": {kind: counts.to_json() for kind, counts in self.kinds.items()},
                "trained": list(self.trained),
            }
        )

    @classmethod
    def parse(cls, body: bytes) -> Reference:
        """From `to_bytes`.

        Raises:
            ProfileDamaged: not JSON, not a reference, or inconsistent.
            ProfileMismatch: of another version of the features.
        """
        data = _document(body, _REFERENCE)
        if data.get("features") != prompt_features.VERSION:
            raise ProfileMismatch(
                "a reference was made with another version of the features",
                seen=f"version {data.get('features')!r}, this program has {prompt_features.VERSION}",
                next_step="make the reference again from the model's held-out text",
            )
        edges = {
            str(n): tuple(_number(v, n) for v in _list(c, n)) for n, c in _mapping(data.get("edges"), "edges").items()
        }
        kinds = {str(k): Counts.parse(c) for k, c in _mapping(data.get("kinds"), "kinds").items()}
        found = cls(edges=edges, kinds=kinds, trained=tuple(str(k) for k in _list(data.get("trained"), "trained")))
        found.check()
        return found

    def check(self) -> None:
        """Raises `ProfileDamaged` when the parts do not belong together."""
        if set(self.edges) != set(prompt_features.NAMES):
            raise _damaged(f"features {sorted(set(self.edges) ^ set(prompt_features.NAMES))} missing or unknown")
        if not self.trained or not set(self.trained) <= set(self.kinds):
            raise _damaged(f"trained on {list(self.trained)}, known are {sorted(self.kinds)}")
        empty = Counts.none(self.edges)
        for kind, counts in self.kinds.items():
            if not counts.prompts or {n: len(r) for n, r in counts.bins.items()} != {
                n: len(r) for n, r in empty.bins.items()
            }:
                raise _damaged(f"the counts of kind {kind!r} are empty or over other bins")
        if any(list(cut) != sorted(set(cut)) for cut in self.edges.values()):
            raise _damaged("edges do not rise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one serving process counted since it started.

    Attributes:
        model_version: Of the model that answered.
        instance: Names the process; a restarted one has another name and begins at zero.
        reference: SHA-256 of the reference whose bins these are.
        counts: Distinct prompts.
        repeats: Prompts that equalled a recent one; not in `counts`.
        skipped: Requests without a prompt that could be counted, by reason.
        started_at: When the process began to count.
        first_at: When the first counted prompt came; None before any.
        last_at: When the last one came.
    """

    model_version: str
    instance: str
    reference: str
    counts: Counts
    started_at: datetime
    repeats: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict[str, int])
    first_at: datetime | None = None
    last_at: datetime | None = None

    def to_bytes(self) -> bytes:
        """One line of canonical JSON."""
        return to_json(
            {
                "format": _PROFILE,
                "model_version": self.model_version,
                "instance": self.instance,
                "reference": self.reference,
                "counts": self.counts.to_json(),
                "repeats": self.repeats,
                "skipped": dict(self.skipped),
                "started_at": self.started_at.isoformat(),
                "first_at": self.first_at.isoformat() if self.first_at else "",
                "last_at": self.last_at.isoformat() if self.last_at else "",
            }
        )

    @classmethod
    def parse(cls, body: bytes) -> Profile:
        """From `to_bytes`.

        Raises:
            ProfileDamaged: not JSON, not a profile, or inconsistent.
        """
        data = _document(body, _PROFILE)
        return cls(
            model_version=_text(data.get("model_version"), "model_version"),
            instance=_text(data.get("instance"), "instance"),
            reference=_text(data.get("reference"), "reference"),
            counts=Counts.parse(data.get("counts")),
            repeats=_whole(data.get("repeats"), "repeats"),
            skipped={str(k): _whole(v, k) for k, v in _mapping(data.get("skipped"), "skipped").items()},
            started_at=_moment(data.get("started_at"), "started_at"),
            first_at=_moment(data["first_at"], "first_at") if data.get("first_at") else None,
            last_at=_moment(data["last_at"], "last_at") if data.get("last_at") else None,
        )


def build_reference(prompts: Mapping[str, Sequence[str]], *, trained: Sequence[str]) -> Reference:
    """A reference from example prompts of every known kind.

    The edges are the deciles of the trained kinds' prompts (nearest rank); where many prompts have the same value,
    neighbouring bins fall together.

    Args:
        prompts: For each known kind some prompts (a thousand or more; see `mlops_sdk.drift.prompts`).
        trained: The kinds that the model was trained on.

    Raises:
        ProfileDamaged: a trained kind is not among the known ones, or a kind has no prompt.
    """
    values = [prompt_features.features(text) for kind in trained for text in prompts.get(kind, ())]
    columns = list(zip(*values, strict=True)) or [()] * len(prompt_features.NAMES)
    edges = {name: _edges(sorted(column)) for name, column in zip(prompt_features.NAMES, columns, strict=True)}
    empty = Reference(edges=edges, kinds={}, trained=tuple(trained))
    found = replace(empty, kinds={kind: empty.count(texts) for kind, texts in sorted(prompts.items())})
    found.check()
    return found


def _edges(ordered: Sequence[float]) -> tuple[float, ...]:
    ranks = [max(0, -(-len(ordered) * i // BINS) - 1) for i in range(1, BINS)]
    return tuple(sorted({ordered[rank] for rank in ranks})) if ordered else ()


def _document(body: bytes, wanted: str) -> Mapping[str, Any]:
    try:
        data = _mapping(json.loads(body), "document")
    except (ValueError, RecursionError) as error:
        raise _damaged(f"not JSON: {error}") from error
    if data.get("format") != wanted:
        raise _damaged(f"format {data.get('format')!r} where {wanted!r} is expected")
    return data


def _mapping(raw: object, what: object) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise _damaged(f"{what} is not an object")
    return cast("Mapping[str, Any]", raw)


def _list(raw: object, what: object) -> list[Any]:
    if not isinstance(raw, list):
        raise _damaged(f"{what} is not a list")
    return cast("list[Any]", raw)


def _whole(raw: object, what: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or raw < 0:
        raise _damaged(f"{what} is not a whole number")
    return raw


def _number(raw: object, what: object) -> float:
    if not isinstance(raw, (int, float)) or isinstance(raw, bool) or raw != raw:  # noqa: PLR0124 - NaN
        raise _damaged(f"{what} is not a number")
    return float(raw)


def _text(raw: object, what: str) -> str:
    if not isinstance(raw, str) or not raw:
        raise _damaged(f"{what} is missing")
    return raw


def _moment(raw: object, what: str) -> datetime:
    try:
        moment = datetime.fromisoformat(_text(raw, what))
    except ValueError as error:
        raise _damaged(f"{what} is not a time") from error
    if moment.tzinfo is None:
        raise _damaged(f"{what} has no time zone")
    return moment


def _damaged(seen: str) -> ProfileDamaged:
    return ProfileDamaged(
        "this is not a profile or reference of prompts that can be used",
        seen=seen,
        next_step="delete the file on the serving host, or store the reference again",
    )
