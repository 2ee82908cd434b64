"""Whether a machine is lost: unreachable is not gone. Pure.

Independent channels say about a machine. It is lost when `needed` of them say that nothing of it is to be seen, none
says that it lives, and that has been so for a while. A channel that is blind (it could not look, or cannot tell) counts
for nothing: whoever is cut off himself sees nobody, and a BMC that says "on" does not know whether the system hangs.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Channel(enum.Enum):
    """Who speaks: ways that do not fail together."""

    SSH = "ssh"  # our own login
    PEERS = "peers"  # the other machines of the lease, over their own network
    POWER = "power"  # its BMC, as the provider tells it


class Answer(enum.Enum):
    """What a channel says."""

    ALIVE = "alive"
    SILENT = "silent"
    OFF = "off"
    BLIND = "blind"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What one channel says of one machine, with what was seen."""

    channel: Channel
    answer: Answer
    words: str

    def to_json(self) -> dict[str, str]:
        """As journalled."""
        return {"channel": self.channel.value, "answer": self.answer.value, "words": self.words}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from all statements about one machine.

    Attributes:
        lost: Whether it may be fenced and replaced.
        statements: What was said.
        needed: How many channels had to agree.
    """

    lost: bool
    statements: tuple[Statement, ...]
    needed: int

    @property
    def words(self) -> str:
        """For a person.

        Example:
            >>> Verdict(lost=False, statements=(), needed=2).words
            'nobody could say anything'
        """
        said = "; ".join(f"{t.channel.value}: {t.answer.value} ({t.words})" for t in self.statements)
        return said or "nobody could say anything"

    def to_json(self) -> dict[str, Any]:
        """As journalled."""
        return {"lost": self.lost, "needed": self.needed, "statements": [t.to_json() for t in self.statements]}


def judge(statements: Iterable[Statement], *, needed: int) -> Verdict:
    """One look at one machine.

    Example:
        >>> ssh = Statement(channel=Channel.SSH, answer=Answer.SILENT, words="timed out")
        >>> judge([ssh], needed=2).lost
        False
    """
    said = tuple(statements)
    against = {t.channel for t in said if t.answer in {Answer.SILENT, Answer.OFF}}
    lives = any(t.answer is Answer.ALIVE for t in said)
    return Verdict(lost=not lives and len(against) >= needed, statements=said, needed=needed)


def blind_if_all_silent(seen: Mapping[str, Statement]) -> dict[str, Statement]:
    """One channel's look at all machines: who sees none of several is cut off himself, and says nothing of them."""
    if len(seen) < 2 or any(t.answer is not Answer.SILENT for t in seen.values()):  # noqa: PLR2004 - several
        return dict(seen)
    return {
        name: Statement(channel=t.channel, answer=Answer.BLIND, words=f"none of {len(seen)} answers: {t.words}")
        for name, t in seen.items()
    }


def of_peers(sees: Mapping[str, bool]) -> Statement:
    """What the peers of a machine say together: one that reaches it is enough.

    Args:
        sees: Of each peer that could be asked, whether it reaches the machine.
    """
    if not sees:
        return Statement(channel=Channel.PEERS, answer=Answer.BLIND, words="no peer could be asked")
    reach = sorted(name for name, yes in sees.items() if yes)
    if reach:
        return Statement(channel=Channel.PEERS, answer=Answer.ALIVE, words=f"{', '.join(reach)} reaches it")
    words = f"{', '.join(sorted(sees))} cannot reach it"
    return Statement(channel=Channel.PEERS, answer=Answer.SILENT, words=words)


class Suspicion:
    """One machine over several looks: lost only after it was so at each look for `lasting_s`.

    Args:
        lasting_s: From the first look at which it was lost to the one that decides.
    """

    def __init__(self, *, lasting_s: float) -> None:
        self._lasting_s = lasting_s
        self._since: float | None = None
        self.looks: list[Verdict] = []

    def look(self, verdict: Verdict, *, at: float) -> bool | None:
        """What follows: True (lost), False (it is not), None (look again).

        Args:
            verdict: Of this look.
            at: Monotonic seconds.
        """
        self.looks.append(verdict)
        if not verdict.lost:
            self._since = None
            return False
        if self._since is None:
            self._since = at
        return True if at - self._since >= self._lasting_s else None


def evidence_of(looks: Sequence[Verdict]) -> dict[str, Any]:
    """The first look at which a machine was lost and the last one, as journalled with its replacement."""
    lost = [look for look in looks if look.lost]
    return {"looks": len(lost), "first": lost[0].to_json(), "last": lost[-1].to_json()} if lost else {"looks": 0}
