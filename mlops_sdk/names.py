"""Names and secrets that follow from a run id alone, so that any process can find or rebuild them.

Pure: no clock, no socket, no file, no randomness.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import re
import uuid
from dataclasses import dataclass

PREFIX = "ml"
_KEY_LENGTH = 12
_NAME = re.compile(rf"^{PREFIX}-([a-z2-7]{{{_KEY_LENGTH}}})-g(\d{{1,6}})-([a-z0-9-]{{1,14}})$")


def run_id_for(deployment_id: uuid.UUID, *parts: str) -> uuid.UUID:
    """The id of a run: uuid5 over the deployment and what started it (DAG id and DAG run id, or a chosen name)."""
    return uuid.uuid5(deployment_id, "/".join(parts))


@functools.lru_cache(maxsize=1024)
def run_key(run_id: uuid.UUID) -> str:
    """The 12 base32 characters (60 bits) by which outside resources name their run."""
    return base64.b32encode(run_id.bytes)[:_KEY_LENGTH].decode().lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceName:
    """A parsed resource name: which run, which generation, which piece (a node index, or a word such as ``cred``)."""

    run_key: str
    generation: int
    index: str

    def __str__(self) -> str:
        return f"{PREFIX}-{self.run_key}-g{self.generation}-{self.index}"


def resource_name(run_id: uuid.UUID, generation: int, index: int | str) -> str:
    """``ml-<12 base32>-g<generation>-<index>``, at most 40 characters.

    Example:
        >>> resource_name(uuid.UUID(int=0), 1, 0)
        'ml-aaaaaaaaaaaa-g1-0'
    """
    name = str(ResourceName(run_key=run_key(run_id), generation=generation, index=str(index)))
    if not _NAME.match(name):
        raise ValueError(f"{name!r} is not a resource name: index must match [a-z0-9-]{{1,14}}")
    return name


@functools.lru_cache(maxsize=4096)
def parse_resource_name(name: str) -> ResourceName | None:
    """The parts of one of our names, or None for anything that is not ours."""
    match = _NAME.match(name)
    if match is None:
        return None
    return ResourceName(run_key=match[1], generation=int(match[2]), index=match[3])


def piece_number(name: str) -> int:
    """The number of a piece of a lease, by its name; -1 for what is none.

    Example:
        >>> piece_number("ml-aaaaaaaaaaaa-g1-3")
        3
    """
    parsed = parse_resource_name(name)
    return int(parsed.index) if parsed is not None and parsed.index.isdigit() else -1


def derive_secret(broker_key: str, run_id: uuid.UUID, generation: int, purpose: str) -> bytes:
    """32 secret bytes for one purpose of one generation of one run (HMAC-SHA256 under the broker key).

    Because it is chosen before the remote call that stores it, a lost reply loses nothing: the caller derives it again.
    """
    message = f"{run_id}|{generation}|{purpose}".encode()
    return hmac.new(broker_key.encode(), message, hashlib.sha256).digest()
