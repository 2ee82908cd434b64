"""The life of a lease as one table: states, what happens, one line an edge; and why a lease ended. Pure.

A state is stable, or transient: then `TARGET` names the state that it is on its way to. What happens to a lease is
known from its run's journal (`mlops_sdk.history`). An event that has no edge from a state is an error.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Final

from mlops_sdk.errors import ImpossibleEvent, LeaseEnding, LeaseLost, NoCapacity, NodeFailed, Preempted


class LeaseState(enum.Enum):
    """Where a lease stands; the value is what a person reads."""

    NEW = "open"
    REQUESTED = "requested"
    WAITING = "waiting"
    PENDING = "pending"
    ACTIVE = "active"
    BEFORE_END = "before_end"
    HELD_FOR_DEBUG = "held_for_debug"
    WARM = "warm"
    RELEASING = "releasing"
    LOST = "lost"
    RELEASED = "released"


STATE_TEXT: Final[Mapping[LeaseState, str]] = {
    LeaseState.NEW: "nothing was asked for yet",
    LeaseState.REQUESTED: "it was asked for; nothing exists yet",
    LeaseState.WAITING: "it has a place in the queue",
    LeaseState.PENDING: "machines are allocated and deployed for it",
    LeaseState.ACTIVE: "all machines are there, and renewed",
    LeaseState.BEFORE_END: "it was given notice: the job writes its last checkpoint",
    LeaseState.HELD_FOR_DEBUG: "its job failed; the machines stay for a person to look at, and end by themselves",
    LeaseState.WARM: "a task gave it back, and it is kept for the next one for a while",
    LeaseState.RELEASING: "its machines are being given back and cleaned",
    LeaseState.LOST: "the reaper took the machines back",
    LeaseState.RELEASED: "nothing of it is held any more",
}

TARGET: Final[Mapping[LeaseState, LeaseState]] = {
    LeaseState.REQUESTED: LeaseState.ACTIVE,
    LeaseState.WAITING: LeaseState.ACTIVE,
    LeaseState.PENDING: LeaseState.ACTIVE,
    LeaseState.BEFORE_END: LeaseState.RELEASED,
    LeaseState.RELEASING: LeaseState.RELEASED,
    LeaseState.LOST: LeaseState.RELEASED,
}
"""What each transient state is on its way to; a state that is not here is stable."""

OVER: Final = frozenset({LeaseState.RELEASING, LeaseState.LOST, LeaseState.RELEASED})
"""Nothing can be done with such a lease but give it back."""

HOLDS: Final = frozenset({LeaseState.ACTIVE, LeaseState.BEFORE_END, LeaseState.HELD_FOR_DEBUG, LeaseState.WARM})
"""All machines of such a lease were got, and nobody has begun to give them back."""


class LeaseEvent(enum.Enum):
    """What happens to a lease."""

    ASKED = "asked"
    QUEUED = "queued"
    BEGUN = "begun"
    LEASED = "leased"
    NOTICED = "noticed"
    EXTENDED = "extended"
    HELD = "held"
    PARKED = "parked"
    GIVING_BACK = "giving_back"
    TAKEN = "taken"
    RETURNED = "returned"


EVENT_TEXT: Final[Mapping[LeaseEvent, str]] = {
    LeaseEvent.ASKED: "a process asks for it, or takes it over",
    LeaseEvent.QUEUED: "others are before it",
    LeaseEvent.BEGUN: "its first machine is asked for",
    LeaseEvent.LEASED: "all machines are there",
    LeaseEvent.NOTICED: "its end is near, or somebody of a higher priority needs the machines",
    LeaseEvent.EXTENDED: "it gets a later deadline",
    LeaseEvent.HELD: "its job failed, and it was asked to be kept then",
    LeaseEvent.PARKED: "a task is done with it, another may need it",
    LeaseEvent.GIVING_BACK: "the run gives it back",
    LeaseEvent.TAKEN: "the reaper has returned every machine",
    LeaseEvent.RETURNED: "every machine is back, the credential revoked",
}

Edge = tuple[LeaseState, LeaseEvent, LeaseState]

EDGES: Final[tuple[Edge, ...]] = (
    (LeaseState.NEW, LeaseEvent.ASKED, LeaseState.REQUESTED),
    # getting machines
    (LeaseState.REQUESTED, LeaseEvent.ASKED, LeaseState.REQUESTED),
    (LeaseState.REQUESTED, LeaseEvent.QUEUED, LeaseState.WAITING),
    (LeaseState.REQUESTED, LeaseEvent.BEGUN, LeaseState.PENDING),
    (LeaseState.REQUESTED, LeaseEvent.LEASED, LeaseState.ACTIVE),
    (LeaseState.REQUESTED, LeaseEvent.GIVING_BACK, LeaseState.RELEASING),
    (LeaseState.REQUESTED, LeaseEvent.TAKEN, LeaseState.LOST),
    (LeaseState.WAITING, LeaseEvent.ASKED, LeaseState.WAITING),
    (LeaseState.WAITING, LeaseEvent.QUEUED, LeaseState.WAITING),
    (LeaseState.WAITING, LeaseEvent.BEGUN, LeaseState.PENDING),
    (LeaseState.WAITING, LeaseEvent.LEASED, LeaseState.ACTIVE),
    (LeaseState.WAITING, LeaseEvent.GIVING_BACK, LeaseState.RELEASING),
    (LeaseState.WAITING, LeaseEvent.TAKEN, LeaseState.LOST),
    (LeaseState.PENDING, LeaseEvent.ASKED, LeaseState.PENDING),
    (LeaseState.PENDING, LeaseEvent.QUEUED, LeaseState.WAITING),  # it got too few, gave them back, and waits again
    (LeaseState.PENDING, LeaseEvent.BEGUN, LeaseState.PENDING),
    (LeaseState.PENDING, LeaseEvent.LEASED, LeaseState.ACTIVE),
    (LeaseState.PENDING, LeaseEvent.NOTICED, LeaseState.BEFORE_END),
    (LeaseState.PENDING, LeaseEvent.GIVING_BACK, LeaseState.RELEASING),
    (LeaseState.PENDING, LeaseEvent.TAKEN, LeaseState.LOST),
    # holding them
    (LeaseState.ACTIVE, LeaseEvent.ASKED, LeaseState.ACTIVE),
    (LeaseState.ACTIVE, LeaseEvent.QUEUED, LeaseState.ACTIVE),  # another process had begun to wait for the same lease
    (LeaseState.ACTIVE, LeaseEvent.BEGUN, LeaseState.ACTIVE),  # one machine is replaced
    (LeaseState.ACTIVE, LeaseEvent.LEASED, LeaseState.ACTIVE),
    (LeaseState.ACTIVE, LeaseEvent.NOTICED, LeaseState.BEFORE_END),
    (LeaseState.ACTIVE, LeaseEvent.EXTENDED, LeaseState.ACTIVE),
    (LeaseState.ACTIVE, LeaseEvent.HELD, LeaseState.HELD_FOR_DEBUG),
    (LeaseState.ACTIVE, LeaseEvent.PARKED, LeaseState.WARM),
    (LeaseState.ACTIVE, LeaseEvent.GIVING_BACK, LeaseState.RELEASING),
    (LeaseState.ACTIVE, LeaseEvent.TAKEN, LeaseState.LOST),
    (LeaseState.BEFORE_END, LeaseEvent.ASKED, LeaseState.BEFORE_END),
    (LeaseState.BEFORE_END, LeaseEvent.QUEUED, LeaseState.BEFORE_END),
    (LeaseState.BEFORE_END, LeaseEvent.BEGUN, LeaseState.BEFORE_END),
    (LeaseState.BEFORE_END, LeaseEvent.LEASED, LeaseState.BEFORE_END),
    (LeaseState.BEFORE_END, LeaseEvent.NOTICED, LeaseState.BEFORE_END),
    (LeaseState.BEFORE_END, LeaseEvent.EXTENDED, LeaseState.ACTIVE),
    (LeaseState.BEFORE_END, LeaseEvent.HELD, LeaseState.HELD_FOR_DEBUG),
    (LeaseState.BEFORE_END, LeaseEvent.PARKED, LeaseState.WARM),
    (LeaseState.BEFORE_END, LeaseEvent.GIVING_BACK, LeaseState.RELEASING),
    (LeaseState.BEFORE_END, LeaseEvent.TAKEN, LeaseState.LOST),
    # kept though no job runs
    (LeaseState.HELD_FOR_DEBUG, LeaseEvent.ASKED, LeaseState.HELD_FOR_DEBUG),
    (LeaseState.HELD_FOR_DEBUG, LeaseEvent.LEASED, LeaseState.HELD_FOR_DEBUG),
    (LeaseState.HELD_FOR_DEBUG, LeaseEvent.NOTICED, LeaseState.HELD_FOR_DEBUG),
    (LeaseState.HELD_FOR_DEBUG, LeaseEvent.EXTENDED, LeaseState.HELD_FOR_DEBUG),
    (LeaseState.HELD_FOR_DEBUG, LeaseEvent.HELD, LeaseState.HELD_FOR_DEBUG),
    (LeaseState.HELD_FOR_DEBUG, LeaseEvent.GIVING_BACK, LeaseState.RELEASING),
    (LeaseState.HELD_FOR_DEBUG, LeaseEvent.TAKEN, LeaseState.LOST),
    (LeaseState.WARM, LeaseEvent.ASKED, LeaseState.WARM),
    (LeaseState.WARM, LeaseEvent.LEASED, LeaseState.ACTIVE),
    (LeaseState.WARM, LeaseEvent.NOTICED, LeaseState.WARM),
    (LeaseState.WARM, LeaseEvent.EXTENDED, LeaseState.WARM),
    (LeaseState.WARM, LeaseEvent.PARKED, LeaseState.WARM),
    (LeaseState.WARM, LeaseEvent.HELD, LeaseState.HELD_FOR_DEBUG),  # of who had just taken it over
    (LeaseState.WARM, LeaseEvent.GIVING_BACK, LeaseState.RELEASING),
    (LeaseState.WARM, LeaseEvent.TAKEN, LeaseState.LOST),
    # giving them back
    (LeaseState.RELEASING, LeaseEvent.GIVING_BACK, LeaseState.RELEASING),
    (LeaseState.RELEASING, LeaseEvent.RETURNED, LeaseState.RELEASED),
    (LeaseState.LOST, LeaseEvent.GIVING_BACK, LeaseState.RELEASING),
    (LeaseState.LOST, LeaseEvent.RETURNED, LeaseState.RELEASED),
    (LeaseState.RELEASED, LeaseEvent.GIVING_BACK, LeaseState.RELEASED),
    (LeaseState.RELEASED, LeaseEvent.RETURNED, LeaseState.RELEASED),
)

LATE: Final = frozenset(LeaseEvent) - {LeaseEvent.GIVING_BACK, LeaseEvent.TAKEN, LeaseEvent.RETURNED}
"""What another process may still write down about a lease that is over for this one; it changes nothing any more."""

_NEXT: Final[Mapping[tuple[LeaseState, LeaseEvent], LeaseState]] = {
    **{(state, event): state for state in OVER for event in LATE},
    **{(state, event): following for state, event, following in EDGES},
}


def advance(state: LeaseState, event: LeaseEvent, *, raw: str) -> LeaseState:
    """The state after an event.

    Args:
        state: Before.
        event: What happened.
        raw: What told of it, in the words of its source.

    Raises:
        ImpossibleEvent: the event has no edge from this state.

    Example:
        >>> advance(LeaseState.NEW, LeaseEvent.ASKED, raw="lease intent").value
        'requested'
    """
    following = _NEXT.get((state, event))
    if following is None:
        raise ImpossibleEvent(
            f"a lease that is {state.value!r} cannot be {event.value!r}",
            seen=raw,
            next_step="see the run's journal (`mlops runs show`); it can still be given back (`mlops lease release`)",
        )
    return following


class EndReason(enum.Enum):
    """Why a lease ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    WORK_FAILED = "work_failed"
    NO_CAPACITY = "no_capacity"
    NODE_FAILED = "node_failed"
    DEADLINE = "deadline"
    PREEMPTED = "preempted"
    IDLE = "idle"
    NOT_RENEWED = "not_renewed"


class EndStatus(enum.Enum):
    """What an end means for what the lease was for."""

    DONE = "done"
    STOPPED = "stopped"  # somebody or a limit ended it; nothing was wrong
    FAILED = "failed"


class Retry(enum.Enum):
    """What whoever wanted the lease may do next."""

    NO = "no"
    LATER = "later"
    NEXT_GENERATION = "next_generation"
    QUEUE_AGAIN = "queue_again"


RETRY_TEXT: Final[Mapping[Retry, str]] = {
    Retry.NO: "nothing",
    Retry.LATER: "ask again later",
    Retry.NEXT_GENERATION: "lease again at once, as the next generation",
    Retry.QUEUE_AGAIN: "back into the queue as the next generation; the job resumes from its last checkpoint",
}

END_TEXT: Final[Mapping[EndReason, str]] = {
    EndReason.FINISHED: "the run gave the machines back",
    EndReason.CANCELLED: "the run was cancelled",
    EndReason.WORK_FAILED: "what ran on the machines failed",
    EndReason.NO_CAPACITY: "not enough machines became free within the stated waiting time",
    EndReason.NODE_FAILED: "a machine did not come up, or went away",
    EndReason.DEADLINE: "the lease reached its deadline",
    EndReason.PREEMPTED: "a run of a higher priority needed the machines, and it was given notice",
    EndReason.IDLE: "it was kept for a next task, and none came in time",
    EndReason.NOT_RENEWED: "nobody renewed the lease: its run died",
}

END_STATUS: Final[Mapping[EndReason, EndStatus]] = {
    EndReason.FINISHED: EndStatus.DONE,
    EndReason.CANCELLED: EndStatus.STOPPED,
    EndReason.WORK_FAILED: EndStatus.FAILED,
    EndReason.NO_CAPACITY: EndStatus.FAILED,
    EndReason.NODE_FAILED: EndStatus.FAILED,
    EndReason.DEADLINE: EndStatus.STOPPED,
    EndReason.PREEMPTED: EndStatus.STOPPED,
    EndReason.IDLE: EndStatus.DONE,
    EndReason.NOT_RENEWED: EndStatus.FAILED,
}

END_RETRY: Final[Mapping[EndReason, Retry]] = {
    EndReason.FINISHED: Retry.NO,
    EndReason.CANCELLED: Retry.NO,
    EndReason.WORK_FAILED: Retry.NO,
    EndReason.NO_CAPACITY: Retry.LATER,
    EndReason.NODE_FAILED: Retry.NEXT_GENERATION,
    EndReason.DEADLINE: Retry.NO,
    EndReason.PREEMPTED: Retry.QUEUE_AGAIN,
    EndReason.IDLE: Retry.NO,
    EndReason.NOT_RENEWED: Retry.NEXT_GENERATION,
}


_REASON_OF: Final[Mapping[type[BaseException], EndReason]] = {
    KeyboardInterrupt: EndReason.CANCELLED,
    SystemExit: EndReason.CANCELLED,
    NoCapacity: EndReason.NO_CAPACITY,
    NodeFailed: EndReason.NODE_FAILED,
    LeaseLost: EndReason.NODE_FAILED,
    LeaseEnding: EndReason.DEADLINE,
    Preempted: EndReason.PREEMPTED,
}


def reason_of(error: BaseException) -> EndReason:
    """Why a lease ended whose work this error has ended.

    Example:
        >>> reason_of(ZeroDivisionError()).value
        'work_failed'
    """
    kinds = (kind for kind in type(error).__mro__ if kind in _REASON_OF)
    return _REASON_OF[kind] if (kind := next(kinds, None)) else EndReason.WORK_FAILED


def as_markdown() -> str:
    """The diagram, the states, and the reasons, as the documentation shows them."""
    return "\n".join([*_diagram(), "", *_states(), "", *_reasons()])


def _diagram() -> Iterable[str]:
    """Mermaid; edges that stay in their state are left out, those between the same two states share an arrow."""
    arrows: dict[tuple[LeaseState, LeaseState], list[str]] = {}
    for state, event, following in EDGES:
        if state is not following:
            arrows.setdefault((state, following), []).append(event.value)
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {LeaseState.NEW.value}"
    for (state, following), events in arrows.items():
        yield f"    {state.value} --> {following.value}: {', '.join(events)}"
    yield f"    {LeaseState.RELEASED.value} --> [*]"
    yield "```"


def _states() -> Iterable[str]:
    yield "| state | on its way to | meaning | stays so when |"
    yield "|---|---|---|---|"
    for state in LeaseState:
        target = f"`{TARGET[state].value}`" if state in TARGET else "- (stable)"
        stays = [event.value for event in LeaseEvent if _NEXT.get((state, event)) is state]
        yield f"| `{state.value}` | {target} | {STATE_TEXT[state]} | {', '.join(stays) or '-'} |"


def _reasons() -> Iterable[str]:
    yield "| ended because | `EndReason` | status | what whoever wanted it may do |"
    yield "|---|---|---|---|"
    for reason in EndReason:
        cells = (END_TEXT[reason], f"`{reason.value}`", END_STATUS[reason].value, RETRY_TEXT[END_RETRY[reason]])
        yield f"| {' | '.join(cells)} |"
