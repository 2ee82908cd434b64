"""What a lease would cost and whether it could be had now. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from mlops_sdk.capacity.lease import LeaseRequest, to_iso
from mlops_sdk.capacity.queue import Turn

_HOUR_S: Final = 3600.0
_DAY_S: Final = 24 * _HOUR_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The answer to "what if I asked for this now?".

    Attributes:
        request: What was asked for.
        free: Suitable machines that are free now.
        busy: Suitable machines that somebody holds.
        out_of_service: Suitable machines in maintenance or not in the pool.
        waiting: Requests of this resource class that wait for a machine.
        price_per_node_second: By the settings' price list; 0 when it names no price for the class.
        total: Price of all machines from now until the deadline.
        currency: Of the prices.
        turn: Its place among those who wait, when somebody looked.
        checked_at: When the free machine that was seen to be in order longest ago was: its last cleaning or inspection.
            None when none is free, or the provider does not say.
        partitions: Of the fabric, and how many of the free machines are in each; empty where none is named.
        now: When it was asked.
        notes: What else the provider says: what such a machine is, how the number of free ones is known.
    """

    request: LeaseRequest
    free: int
    busy: int
    out_of_service: int
    waiting: int
    price_per_node_second: float
    total: float
    currency: str
    now: datetime
    checked_at: datetime | None = None
    partitions: Mapping[str, int] = field(default_factory=dict[str, int])
    turn: Turn | None = None
    notes: tuple[str, ...] = ()

    @property
    def available_now(self) -> bool:
        """Whether the request could be met at once."""
        return self.free >= self.request.nodes if self.turn is None else self.turn.may_ask

    def to_json(self) -> dict[str, Any]:
        """For the CLI."""
        expected_at = self.turn.expected_at if self.turn is not None else None
        return {
            "provider": self.request.provider,
            "nodes": self.request.nodes,
            "resource_class": self.request.resource_class,
            "traits": list(self.request.traits),
            "deadline": to_iso(self.request.deadline),
            "available_now": self.available_now,
            "free": self.free,
            "busy": self.busy,
            "out_of_service": self.out_of_service,
            "waiting": self.waiting,
            "price_per_node_second": self.price_per_node_second,
            "total": round(self.total, 6),
            "currency": self.currency,
            "position": self.turn.position if self.turn is not None else 0,
            "expected_at": to_iso(expected_at) if expected_at is not None else "",
            "checked_at": to_iso(self.checked_at) if self.checked_at is not None else "",
            "partitions": dict(self.partitions),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        when = "now" if self.available_now else self.turn.words() if self.turn else f"not now ({self.free} free)"
        parts = [
            f"{self.request}: {when}",
            f"{self.free} free, {self.busy} busy, {self.waiting} waiting",
            f"{self.total:.2f} {self.currency} until {self.request.deadline:%Y-%m-%d %H:%M} UTC",
        ]
        if self.checked_at is not None:
            parts.append(f"last seen in order at most {_age(self.now - self.checked_at)} ago")
        if self.partitions:
            parts.append(f"in partition {', '.join(f'{name} ({free})' for name, free in self.partitions.items())}")
        return "; ".join((*parts, *self.notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """How many machines there are that suit a request: free, held by somebody, out of service; and who waits.

    `checked_at` and `partitions` as in `Quote`.
    """

    free: int
    busy: int
    out_of_service: int
    waiting: int = 0
    checked_at: datetime | None = None
    partitions: Mapping[str, int] = field(default_factory=dict[str, int])


def _age(passed: timedelta) -> str:
    """In the largest unit that is not too coarse."""
    seconds = max(0.0, passed.total_seconds())
    if seconds >= 2 * _DAY_S:
        return f"{seconds / _DAY_S:.0f} days"
    return f"{seconds / _HOUR_S:.0f} h" if seconds >= 2 * _HOUR_S else f"{seconds / 60:.0f} min"


def priced(
    request: LeaseRequest, supply: Supply, *, prices: Mapping[str, float], currency: str, now: datetime
) -> Quote:
    """The quote of a request, from how many suitable machines there are: any provider's."""
    price = prices.get(request.resource_class, 0.0)
    seconds = max(0.0, (request.deadline - now).total_seconds())
    return Quote(
        request=request,
        free=supply.free,
        busy=supply.busy,
        out_of_service=supply.out_of_service,
        waiting=supply.waiting,
        price_per_node_second=price,
        total=(request.nodes + request.spares) * seconds * price,
        currency=currency,
        now=now,
        checked_at=supply.checked_at,
        partitions=supply.partitions,
    )
