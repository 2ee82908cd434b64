"""Every status of a Nova server, and what is done next about it: on the way to a lease, and on the way back. Pure.

The statuses are those of ``nova/api/openstack/common.py`` (34.0). One that is not in a table is an error after a few
polls, with the raw value shown.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from typing import Final

from mlops_sdk.capacity.providers.nova_view import Server, Volume, age


class AcquireStep(enum.Enum):
    """What to do next about a server of a lease that is being acquired."""

    WAIT = "wait"
    READY = "ready"  # it runs: does it answer SSH?
    NO_ROOM = "no_room"  # no host has room for it: give it back, and ask again while time is left
    NEXT_GENERATION = "next_generation"  # it failed, or somebody did something to it
    UNKNOWN = "unknown"


class ReturnStep(enum.Enum):
    """What to do next about a server, or a volume, that is being given back."""

    DELETE = "delete"
    FORCE = "force"  # it is in the recycle bin: out of that too
    WAIT = "wait"
    STUCK = "stuck"  # only an operator of the cloud can go on
    UNKNOWN = "unknown"


ACQUIRE: Final[Mapping[str, AcquireStep]] = {
    "BUILD": AcquireStep.WAIT,
    "ACTIVE": AcquireStep.READY,
    "PASSWORD": AcquireStep.READY,
    "REBOOT": AcquireStep.WAIT,  # a guest, or its operator, restarts it
    "HARD_REBOOT": AcquireStep.WAIT,
    "MIGRATING": AcquireStep.WAIT,  # live, to another host: it goes on running
    "ERROR": AcquireStep.NEXT_GENERATION,  # or NO_ROOM: see `acquire_step`
    "SHUTOFF": AcquireStep.NEXT_GENERATION,
    "PAUSED": AcquireStep.NEXT_GENERATION,
    "SUSPENDED": AcquireStep.NEXT_GENERATION,
    "SHELVED": AcquireStep.NEXT_GENERATION,
    "SHELVED_OFFLOADED": AcquireStep.NEXT_GENERATION,
    "RESCUE": AcquireStep.NEXT_GENERATION,
    "REBUILD": AcquireStep.NEXT_GENERATION,  # with another disk than ours
    "RESIZE": AcquireStep.NEXT_GENERATION,  # to another flavor than ours
    "VERIFY_RESIZE": AcquireStep.NEXT_GENERATION,
    "REVERT_RESIZE": AcquireStep.NEXT_GENERATION,
    "SOFT_DELETED": AcquireStep.NEXT_GENERATION,
    "DELETED": AcquireStep.NEXT_GENERATION,
    "UNKNOWN": AcquireStep.UNKNOWN,  # its cell does not answer
}

RETURN: Final[Mapping[str, ReturnStep]] = {
    "BUILD": ReturnStep.DELETE,
    "ACTIVE": ReturnStep.DELETE,
    "PASSWORD": ReturnStep.DELETE,
    "REBOOT": ReturnStep.DELETE,
    "HARD_REBOOT": ReturnStep.DELETE,
    "MIGRATING": ReturnStep.DELETE,
    "ERROR": ReturnStep.DELETE,
    "SHUTOFF": ReturnStep.DELETE,
    "PAUSED": ReturnStep.DELETE,
    "SUSPENDED": ReturnStep.DELETE,
    "SHELVED": ReturnStep.DELETE,
    "SHELVED_OFFLOADED": ReturnStep.DELETE,
    "RESCUE": ReturnStep.DELETE,
    "REBUILD": ReturnStep.DELETE,
    "RESIZE": ReturnStep.DELETE,
    "VERIFY_RESIZE": ReturnStep.DELETE,
    "REVERT_RESIZE": ReturnStep.DELETE,
    "SOFT_DELETED": ReturnStep.FORCE,
    "DELETED": ReturnStep.WAIT,  # gone with the next look
    "UNKNOWN": ReturnStep.UNKNOWN,
}

VOLUME: Final[Mapping[str, ReturnStep]] = {
    "available": ReturnStep.DELETE,
    "error": ReturnStep.DELETE,
    "error_deleting": ReturnStep.STUCK,  # Cinder deletes it only after its state was reset
    "error_restoring": ReturnStep.DELETE,
    "error_extending": ReturnStep.DELETE,
    "error_managing": ReturnStep.DELETE,
    "creating": ReturnStep.WAIT,
    "downloading": ReturnStep.WAIT,
    "uploading": ReturnStep.WAIT,
    "extending": ReturnStep.WAIT,
    "retyping": ReturnStep.WAIT,
    "backing-up": ReturnStep.WAIT,
    "reserved": ReturnStep.WAIT,  # Nova lets go of it when the server is gone
    "attaching": ReturnStep.WAIT,
    "in-use": ReturnStep.WAIT,
    "detaching": ReturnStep.WAIT,
    "deleting": ReturnStep.WAIT,
}

_ENDING: Final = {"deleting", "soft-deleting"}
_NO_ROOM: Final = ("No valid host", "Exceeded maximum number of retries", "Insufficient compute resources")


def acquire_step(server: Server) -> AcquireStep:
    """The next step towards a server that runs.

    A fault that is a want of room is told from one of the machine by Nova's words: it has no code for either.
    """
    if server.task in _ENDING:
        return AcquireStep.NEXT_GENERATION
    if server.status == "ERROR" and not server.launched and any(words in server.fault for words in _NO_ROOM):
        return AcquireStep.NO_ROOM
    return ACQUIRE.get(server.status, AcquireStep.UNKNOWN)


def return_step(server: Server) -> ReturnStep:
    """The next step towards a server that is gone."""
    if server.task in _ENDING:
        return ReturnStep.WAIT
    return RETURN.get(server.status, ReturnStep.UNKNOWN)


def volume_step(volume: Volume) -> ReturnStep:
    """The next step towards a volume that is gone."""
    return VOLUME.get(volume.status, ReturnStep.UNKNOWN)


def chosen(servers: Iterable[Server]) -> Server | None:
    """Which of several servers of one name is the lease's: the oldest that is healthy, else the oldest.

    Everybody who looks chooses the same; the rest is given back.
    """
    ranked = sorted(servers, key=lambda server: (_is_lost(server), *age(server)))
    return ranked[0] if ranked else None


def _is_lost(server: Server) -> bool:
    return acquire_step(server) in {AcquireStep.NEXT_GENERATION, AcquireStep.NO_ROOM}


class Refusal(enum.Enum):
    """Why a service did not take a request."""

    FULL = "full"  # a quota
    AGAIN = "again"  # not now: a conflict, or too many requests
    WRONG = "wrong"  # never, as it is


_TOO_MANY: Final = {413, 429}
_CHILD: Final = re.compile(r"\b(port|volume) ")
_GONE: Final = ("could not be found", "failed to get volume", "status must be")
_QUOTA_WORDS: Final = ("quota", "maximum number of", "limit exceeded", "exceeds allowed")


def refusal_of(status: int, words: str) -> Refusal:
    """What a refusal means: 403 of Nova and 409 of Neutron with a word of quota, 413 of Cinder, 429, 409, 400.

    Example:
        >>> refusal_of(403, "Quota exceeded for instances: Requested 1, but already used 10 of 10 instances")
        <Refusal.FULL: 'full'>
    """
    plain = words.lower()
    if status in {403, 409, 413} and any(said in plain for said in _QUOTA_WORDS):
        return Refusal.FULL
    if status in _TOO_MANY or status == 409:  # noqa: PLR2004 - HTTP: conflict
        return Refusal.AGAIN
    if _CHILD.search(plain) and any(said in plain for said in _GONE):
        return Refusal.AGAIN  # taken, or taken away, between our look and the service's: the next look shows it
    return Refusal.WRONG
