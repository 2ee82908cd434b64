"""Whether an owner may spend on machines what a lease would cost. Pure.

A budget is for one owner and one calendar month, UTC. What counts against it:

- spent: machines held in that month until now,
- promised: leases that last, from now until their deadline,
- reserved: leases that are just being asked for and are not in a journal yet,

each with the part that falls into the month; so a lease over the end of a month needs room in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mlops_sdk.capacity.cost import Interval
from mlops_sdk.capacity.cost_lines import Prices, Spending, portions, total
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.spending import RunRecord
from mlops_sdk.errors import BudgetExceeded

_DECEMBER = 12


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Month:
    """A calendar month, UTC; written ``2026-05``."""

    year: int
    number: int

    @classmethod
    def of(cls, moment: datetime) -> Month:
        """The one that a moment is in."""
        utc = moment.astimezone(UTC)
        return cls(year=utc.year, number=utc.month)

    @property
    def start(self) -> datetime:
        """Its first moment."""
        return datetime(self.year, self.number, 1, tzinfo=UTC)

    @property
    def next(self) -> Month:
        """The one after it."""
        if self.number == _DECEMBER:
            return Month(year=self.year + 1, number=1)
        return Month(year=self.year, number=self.number + 1)

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.number:02d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What an owner has in a month.

    Attributes:
        owner: Who.
        month: Which.
        limit: What may be spent; None: as much as they like.
        spent: On machines, until now.
        promised: On leases that last, from now until their deadlines.
        reserved: On leases that are being asked for at this moment.
        currency: Of all of them.
    """

    owner: str
    month: Month
    limit: float | None
    spent: float
    promised: float
    reserved: float = 0.0
    currency: str = "EUR"

    @property
    def left(self) -> float:
        """What may be promised still; infinite without a limit, and never negative."""
        if self.limit is None:
            return float("inf")
        return max(0.0, self.limit - self.spent - self.promised - self.reserved)

    def to_json(self) -> dict[str, object]:
        """For the CLI."""
        return {
            "owner": self.owner,
            "month": str(self.month),
            "limit": self.limit,
            "spent": round(self.spent, 6),
            "promised": round(self.promised, 6),
            "reserved": round(self.reserved, 6),
            "left": None if self.limit is None else round(self.left, 6),
            "currency": self.currency,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much each owner may spend in a month. `others`: those that `owners` does not name; None: no limit."""

    owners: Mapping[str, float] = field(default_factory=dict[str, float])
    others: float | None = None
    raised_by: str = ""

    def of(self, owner: str) -> float | None:
        """The limit of one."""
        return self.owners.get(owner, self.others)


def months(start: datetime, end: datetime) -> tuple[Month, ...]:
    """The months that a time touches, at least that of its start."""
    found = [Month.of(start)]
    while found[-1].next.start < end:
        found.append(found[-1].next)
    return tuple(found)


def price_in(intervals: Iterable[Interval], prices: Prices, month: Month) -> float:
    """What machines cost in a month, each interval on its own (they are promises for different machines)."""
    start, end = month.start, month.next.start
    return sum(
        max(0.0, (min(i.end, end) - max(i.start, start)).total_seconds())
        * prices.node_second.get(i.resource_class, 0.0)
        for i in intervals
    )


def wanted_of(request: LeaseRequest, now: datetime) -> tuple[Interval, ...]:
    """The machines of a request, from now until its deadline."""
    end = max(now, request.deadline)
    return tuple(
        Interval(node_id=str(index), resource_class=request.resource_class, start=now, end=end)
        for index in range(request.nodes + request.spares)
    )


def account_of(
    owner: str, month: Month, records: Iterable[RunRecord], prices: Prices, limits: Limits, *, now: datetime
) -> Account:
    """What an owner has in a month, by the journals of all runs."""
    spent, promised = 0.0, 0.0
    until = min(now, month.next.start)
    for record in records:
        if record.history.owner == owner:
            machines = Spending(holds=record.spending.holds)
            spent += total(portions(machines, prices, since=month.start, until=max(until, month.start)))
            promised += price_in(record.ahead(now), prices, month)
    return Account(
        owner=owner,
        month=month,
        limit=limits.of(owner),
        spent=spent,
        promised=promised,
        currency=prices.currency,
    )


def admit(account: Account, wanted: float, *, what: str, raised_by: str) -> None:
    """Nothing, if there is room for it. What costs nothing is never refused.

    Args:
        account: In the month in question.
        wanted: What would be spent in that month.
        what: The request, in words.
        raised_by: Who may raise the limit.

    Raises:
        BudgetExceeded: says what is spent, what this would cost, and who may raise it.
    """
    if account.limit is None or wanted <= account.left or wanted <= 0:
        return
    unit = account.currency
    reserved = f", {account.reserved:.2f} {unit} are being asked for now" if account.reserved else ""
    raise BudgetExceeded(
        f"{what} would cost {wanted:.2f} {unit} in {account.month}, more than {account.owner!r} has left",
        seen=f"of {account.limit:.2f} {unit}, {account.spent:.2f} {unit} are spent and {account.promised:.2f} {unit} "
        f"are promised to leases that last{reserved}; {account.left:.2f} {unit} are left",
        next_step="ask for fewer machines or an earlier deadline, give back what is not needed (`mlops lease list`), "
        f"or let {raised_by or 'whoever keeps the deployment settings'} raise the budget (settings: budget)",
    )
