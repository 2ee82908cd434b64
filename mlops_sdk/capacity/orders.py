"""What was decided about a lease after it was asked for: a later deadline, notice, or to keep it without a job. Pure.

Whoever decides writes it down (`mlops_sdk.capacity.order_book`); the process that holds the lease follows at its next
heartbeat.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from mlops_sdk.capacity.lease import LeaseRequest, from_iso, to_iso
from mlops_sdk.capacity.lifecycle import EndReason
from mlops_sdk.errors import LeaseLost, SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """That a lease ends, and why.

    Attributes:
        ends_at: Then it is taken back.
        reason: `EndReason.DEADLINE` or `EndReason.PREEMPTED`.
        by: Key of the run that needs the machines ("" for none).
    """

    ends_at: datetime
    reason: EndReason
    by: str = ""

    def to_json(self) -> dict[str, str]:
        """As stored, journalled, and told to a job."""
        return {"ends_at": to_iso(self.ends_at), "reason": self.reason.value, "by": self.by}

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Notice:
        """From what `to_json` made.

        Raises:
            ValueError, KeyError: it did not.
        """
        return cls(ends_at=from_iso(raw["ends_at"]), reason=EndReason(raw["reason"]), by=str(raw["by"]))


class Keeping(enum.Enum):
    """Why a lease is kept though no job runs on it."""

    DEBUG = "debug"
    WARM = "warm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """That a lease is kept without a process that renews it."""

    until: datetime
    why: Keeping


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """All of it for one generation of a run.

    Attributes:
        deadline: A later one than what was asked for; None while it was not extended.
        credential: How often it was extended: which credential lasts that long.
        notice: That somebody else needs the machines; None while nobody does.
        kept: That no process renews it until then; None while one does.
    """

    deadline: datetime | None = None
    credential: int = 0
    notice: Notice | None = None
    kept: Kept | None = None

    @property
    def moved(self) -> bool:
        """Whether its machines are to carry another end than what was asked for."""
        return self.deadline is not None or self.notice is not None

    def deadline_of(self, request: LeaseRequest) -> datetime:
        """What the run may plan with: as asked for or extended."""
        return self.deadline or request.deadline

    def end_of(self, request: LeaseRequest) -> datetime:
        """When it ends at the latest: the deadline that its machines carry."""
        ends = [self.deadline_of(request)]
        if self.notice is not None:
            ends.append(self.notice.ends_at)
        if self.kept is not None and self.kept.why is Keeping.DEBUG:
            ends.append(self.kept.until)
        return min(ends)

    def words(self, run: str) -> str:
        """For a person who sees the machines of this run: what else there is to know about them."""
        texts: list[str] = []
        if self.kept is not None and self.kept.why is Keeping.DEBUG:
            texts.append(f"failed, stays until {self.kept.until:%H:%M:%S} UTC: mlops lease login {run}")
        elif self.kept is not None:
            texts.append(f"kept warm until {self.kept.until:%H:%M:%S} UTC")
        if self.notice is not None:
            texts.append(f"ends at {self.notice.ends_at:%H:%M:%S} UTC for run {self.notice.by}")
        return "; ".join(texts)

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        notice, kept = self.notice, self.kept
        return {
            "version": 1,
            "deadline": to_iso(self.deadline) if self.deadline else None,
            "credential": self.credential,
            "notice": notice and notice.to_json(),
            "kept": kept and {"until": to_iso(kept.until), "why": kept.why.value},
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Orders:
        """From a stored object.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is no such object.
        """
        notice, kept = raw["notice"], raw["kept"]
        return cls(
            deadline=from_iso(raw["deadline"]) if raw["deadline"] else None,
            credential=int(raw["credential"]),
            notice=Notice.parse(notice) if notice else None,
            kept=Kept(until=from_iso(kept["until"]), why=Keeping(kept["why"])) if kept else None,
        )


def extended(orders: Orders, request: LeaseRequest, deadline: datetime, *, now: datetime) -> Orders:
    """The orders with a later deadline. Asked again for the same one, they stay as they are.

    Raises:
        LeaseLost: the lease has ended, or was given notice for somebody else.
        SettingsError: the deadline is not later than the one that it has.
    """
    if deadline == orders.deadline_of(request):
        return orders
    if orders.notice is not None:
        raise LeaseLost(
            f"the lease cannot be extended to {to_iso(deadline)}",
            seen=f"it was given notice for run {orders.notice.by!r}: it ends at {to_iso(orders.notice.ends_at)}",
            next_step="let its job write a checkpoint and lease again, in the queue",
        )
    end = orders.end_of(request)
    if now >= end:
        raise LeaseLost(
            f"the lease cannot be extended to {to_iso(deadline)}",
            seen=f"it ended at {to_iso(end)}",
            next_step="release, and lease again with run.next_generation()",
        )
    if deadline <= end:
        raise SettingsError(
            f"a lease until {to_iso(end)} is not extended to {to_iso(deadline)}",
            seen="that is not later",
            next_step="name a later deadline, or give it back before: `mlops lease release`",
        )
    kept = orders.kept
    if kept is not None and kept.why is Keeping.DEBUG:
        kept = replace(kept, until=deadline)
    later = max(deadline, orders.deadline_of(request))
    return replace(orders, deadline=later, credential=orders.credential + 1, kept=kept)


def kept(orders: Orders, request: LeaseRequest, keep: Kept, *, now: datetime) -> Orders:
    """The orders to keep a lease without a process that renews it, not beyond its end.

    Raises:
        LeaseLost: it has ended, somebody else needs the machines, or it is kept for another reason.
    """
    if orders.kept is not None and orders.kept.why is not keep.why:
        raise LeaseLost(
            f"the lease cannot be kept ({keep.why.value})",
            seen=f"it is kept already ({orders.kept.why.value}), until {to_iso(orders.kept.until)}",
            next_step="lease it again, or release it",
        )
    end = orders.end_of(request)
    if orders.notice is not None or now >= end:
        raise LeaseLost(
            "the lease cannot be kept",
            seen=f"it ends at {to_iso(end)}" + (f" for run {orders.notice.by!r}" if orders.notice else ""),
            next_step="release it",
        )
    return replace(orders, kept=replace(keep, until=min(keep.until, end)))


def noticed(orders: Orders, notice: Notice) -> Orders:
    """The orders with a notice; the first one stays."""
    return orders if orders.notice is not None else replace(orders, notice=notice)


def reason_by(orders: Orders, reason: EndReason) -> EndReason:
    """Why a lease really ended of which its machines show only that it is past a time."""
    if reason is EndReason.DEADLINE and orders.notice is not None:
        return orders.notice.reason
    if orders.kept is None:
        return reason
    return EndReason.WORK_FAILED if orders.kept.why is Keeping.DEBUG else EndReason.IDLE


def notice_of(orders: Orders, request: LeaseRequest, *, now: datetime, notice_s: float) -> Notice | None:
    """The notice that a lease has at this moment; None while its end is not near."""
    if orders.notice is not None:
        return orders.notice
    end = orders.end_of(request)
    if now < end - timedelta(seconds=notice_s):
        return None
    return Notice(ends_at=end, reason=EndReason.DEADLINE)
