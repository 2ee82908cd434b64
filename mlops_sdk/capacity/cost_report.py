"""What runs cost, for people and programs: one row a run, or one a model version. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from mlops_sdk.capacity.cost_lines import UNIT, Line, Portion, by_line, node_seconds_of, total
from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.errors import SettingsError

TAG: Final = "mlops.cost."
_AGO: Final = re.compile(r"^(\d+(?:\.\d+)?)([smhdw])$")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """What a run cost in the time reported on.

    Attributes:
        key: Of the run.
        name: Of the run.
        owner: Who is charged.
        state: Of its latest lease.
        model: Name of the model that it trained for; empty when it ordered no training.
        versions: URIs of the model versions that it registered; they share its cost equally.
        portions: Its lines by class of machine.
    """

    key: str
    name: str
    owner: str
    state: str
    model: str
    versions: tuple[str, ...]
    portions: tuple[Portion, ...]

    @property
    def cost(self) -> float:
        """All lines together."""
        return total(self.portions)

    def to_json(self) -> dict[str, Any]:
        """For the CLI and the bucket."""
        return {
            "key": self.key,
            "name": self.name,
            "owner": self.owner,
            "state": self.state,
            "model": self.model,
            "versions": list(self.versions),
            "node_seconds": round(node_seconds_of(self.portions), 3),
            "lines": _lines_to_json(by_line(self.portions)),
            "portions": [
                {
                    "line": item.line.value,
                    "resource_class": item.resource_class,
                    "quantity": round(item.quantity, 6),
                    "unit": UNIT[item.line],
                    "cost": round(item.cost, 6),
                }
                for item in self.portions
            ],
            "cost": round(self.cost, 6),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionCost:
    """What a model version cost: its share of the runs that registered it. `uri` is empty for what led to none."""

    model: str
    uri: str
    runs: tuple[str, ...]
    lines: dict[Line, float]

    @property
    def cost(self) -> float:
        """All lines together."""
        return sum(self.lines.values())

    def to_json(self) -> dict[str, Any]:
        """For the CLI and the bucket."""
        return {
            "model": self.model,
            "version": self.uri,
            "runs": list(self.runs),
            "lines": _lines_to_json(self.lines),
            "cost": round(self.cost, 6),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CostReport:
    """What runs cost.

    Attributes:
        at: Until when.
        since: From when on; None: from their beginning.
        currency: Of all amounts.
        runs: Those that cost something then.
    """

    at: datetime
    since: datetime | None
    currency: str
    runs: tuple[RunCost, ...]

    @property
    def cost(self) -> float:
        """All runs together."""
        return sum(run.cost for run in self.runs)

    def of_model(self, model: str) -> CostReport:
        """Only the runs that trained for this model, or registered a version of it."""
        return CostReport(
            at=self.at,
            since=self.since,
            currency=self.currency,
            runs=tuple(run for run in self.runs if model == run.model or model in map(_name_of, run.versions)),
        )

    def versions(self) -> tuple[VersionCost, ...]:
        """The same by model version; together as much as the runs."""
        found: dict[tuple[str, str], tuple[list[str], dict[Line, float]]] = {}
        for run in self.runs:
            lines = by_line(run.portions)
            for uri in run.versions or ("",):
                runs, sums = found.setdefault((_name_of(uri) or run.model, uri), ([], dict.fromkeys(Line, 0.0)))
                runs.append(run.key)
                for line, cost in lines.items():
                    sums[line] += cost / max(1, len(run.versions))
        return tuple(
            VersionCost(model=model, uri=uri, runs=tuple(runs), lines=lines)
            for (model, uri), (runs, lines) in sorted(found.items(), key=lambda item: _by_number(item[0]))
        )

    def to_json(self) -> dict[str, Any]:
        """For the CLI and the bucket."""
        return {
            "at": to_iso(self.at),
            "since": to_iso(self.since) if self.since else "",
            "currency": self.currency,
            "runs": [run.to_json() for run in self.runs],
            "versions": [version.to_json() for version in self.versions()],
            "lines": _lines_to_json(sum_lines(by_line(run.portions) for run in self.runs)),
            "cost": round(self.cost, 6),
        }

    def run_table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Headings and rows by run, the sum last."""
        rows: list[Sequence[str]] = [
            (run.key, run.name, run.owner, run.state, *_cells(by_line(run.portions)), f"{run.cost:.2f}")
            for run in self.runs
        ]
        sums = sum_lines(by_line(run.portions) for run in self.runs)
        rows.append(("all", "", "", "", *_cells(sums), f"{self.cost:.2f}"))
        return ("run", "name", "owner", "state", *(line.value for line in Line), f"sum {self.currency}"), rows

    def version_table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Headings and rows by model version, the sum last."""
        found = self.versions()
        rows: list[Sequence[str]] = [
            (v.uri or f"{v.model or 'no model'}, no version", str(len(v.runs)), *_cells(v.lines), f"{v.cost:.2f}")
            for v in found
        ]
        rows.append(("all", str(len(self.runs)), *_cells(sum_lines(v.lines for v in found)), f"{self.cost:.2f}"))
        return ("model version", "runs", *(line.value for line in Line), f"sum {self.currency}"), rows


def cost_tags(version: VersionCost, *, currency: str, at: datetime) -> dict[str, str]:
    """What MLflow shows on a model version: each line, the sum, and until when they count."""
    lines = {f"{TAG}{line.value}": f"{cost:.4f}" for line, cost in version.lines.items()}
    return {**lines, f"{TAG}total": f"{version.cost:.4f}", f"{TAG}currency": currency, f"{TAG}until": to_iso(at)}


def sum_lines(items: Iterable[dict[Line, float]]) -> dict[Line, float]:
    """Line by line."""
    found = dict.fromkeys(Line, 0.0)
    for item in items:
        for line, cost in item.items():
            found[line] += cost
    return found


def ago(text: str) -> timedelta:
    """How long ``7d``, ``12h``, ``30m``, ``45s`` or ``2w`` is.

    Raises:
        SettingsError: it is none of these.
    """
    match = _AGO.match(text.strip())
    if match is None:
        raise SettingsError(f"{text!r} is not a length of time", next_step="write it as 7d, 12h, 30m, 45s or 2w")
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])


def split_uri(uri: str) -> tuple[str, int]:
    """Name and number of a model version from ``models:/<name>/<number>``; ("", 0) when it is none."""
    name, _, number = uri.removeprefix("models:/").rpartition("/")
    return (name, int(number)) if uri.startswith("models:/") and number.isdigit() else ("", 0)


def _name_of(uri: str) -> str:
    return split_uri(uri)[0]


def _by_number(model_and_uri: tuple[str, str]) -> tuple[str, int]:
    model, uri = model_and_uri
    return model, split_uri(uri)[1]


def _lines_to_json(lines: dict[Line, float]) -> dict[str, float]:
    return {line.value: round(cost, 6) for line, cost in lines.items()}


def _cells(lines: dict[Line, float]) -> tuple[str, ...]:
    return tuple(f"{lines[line]:.2f}" for line in Line)
