"""What can go wrong with one call."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass
from math import ceil
from typing import Final

from mlops_sdk.testing.http_cloud.ironic_wire import fault as ironic_fault
from mlops_sdk.testing.http_cloud.messages import Answer, Call
from mlops_sdk.testing.http_cloud.s3 import failure as s3_failure


class Kind(enum.Enum):
    """Ways in which a call fails."""

    CRASH_BEFORE = "crash before"  # the process is gone; the call was never sent
    CRASH_AFTER = "crash after"  # it was carried out, and then the process was gone
    LOST_REPLY = "lost reply"  # carried out; the caller waits in vain
    TIMEOUT = "time-out"  # not carried out; the caller waits in vain
    LATE = "late"  # the caller gives up waiting; it is carried out later, whatever happened meanwhile
    FROZEN = "frozen"  # the process stands still just before the call, and then goes on as if nothing had been
    DUPLICATE = "duplicate"  # carried out twice, by a proxy on the way; the second answer comes back
    CONFLICT = "409"
    THROTTLED = "429"  # to everybody for a while, which the answer says (`Retry-After`)
    ERROR = "503"  # not carried out
    ERROR_DONE = "500, done"  # carried out; the answer says that it failed
    EXPIRED = "401"  # the token is refused, once
    CLOCK_JUMP = "clock jump"  # Ironic's clock is another one from now on
    STALE = "stale"  # a list as it was some changes ago
    OUTAGE = "outage"  # this service does not answer for a while: an n-node create gets part of its machines


_DONE: Final = {Kind.ERROR_DONE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One failure.

    Attributes:
        kind: How.
        seconds: How long or how much, for the kinds that need it.
    """

    kind: Kind
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind.value}{f' {self.seconds:g} s' if self.seconds else ''}"

    @property
    def done(self) -> bool:
        """Whether the call is carried out although its answer says that it failed."""
        return self.kind in _DONE

    def answer(self, call: Call) -> Answer | None:
        """The answer that the caller gets instead; None for a failure that is no answer."""
        status = _STATUS.get(self.kind)
        if status is None:
            return None
        if call.service == "s3":
            return s3_failure(*_S3[status])
        words = _WORDS[status]
        fault = {"error": {"code": status, "message": words}}
        body = ironic_fault(status, words).body if call.service == "baremetal" else fault
        return Answer(
            status=status, body=body, headers={"Retry-After": str(ceil(self.seconds))} if self.seconds else {}
        )


_STATUS: Final = {
    Kind.CONFLICT: 409,
    Kind.THROTTLED: 429,
    Kind.ERROR: 503,
    Kind.ERROR_DONE: 500,
    Kind.EXPIRED: 401,
}
_WORDS: Final = {
    401: "The request you have made requires authentication.",
    409: "Node 1be2 is locked by host conductor-1, please retry after the current operation is completed.",
    429: "Too many requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_S3: Final = {
    401: (403, "ExpiredToken"),
    409: (409, "ConditionalRequestConflict"),
    429: (503, "SlowDown"),
    500: (500, "InternalError"),
    503: (503, "ServiceUnavailable"),
}
_SECONDS: Final = {
    Kind.LATE: (31.0, 45.0, 90.0, 160.0, 300.0),
    Kind.FROZEN: (5.0, 60.0, 125.0, 200.0, 400.0),
    Kind.DUPLICATE: (0.01, 0.3, 2.0),
    Kind.CLOCK_JUMP: (-300.0, -60.0, -5.0, 5.0, 40.0, 600.0),
    Kind.THROTTLED: (0.0, 3.0, 20.0, 60.0),
    Kind.STALE: (1.0, 2.0, 4.0),
    Kind.OUTAGE: (1.0, 20.0, 100.0, 200.0),
}
SINGLES: Final = tuple(Fault(kind=kind, seconds=seconds) for kind in Kind for seconds in _SECONDS.get(kind, (0.0,)))
"""Each failure, with each of its lengths."""


def drawn(source: random.Random) -> Fault:
    """One of them: first the kind, so that each is as likely as another."""
    kind = source.choice(list(Kind))
    return Fault(kind=kind, seconds=source.choice(_SECONDS.get(kind, (0.0,))))
