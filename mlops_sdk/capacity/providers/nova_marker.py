"""How a marker is kept where OpenStack has room for 255 characters a value. Pure.

A server carries it as several metadata keys, written in the call that creates it and never again: Nova lets nobody
change the metadata of a server that is being built, moved or has failed. A port and a volume carry it as one line in
their description, which can be changed at any time. So the port, which is made first, is the record of a lease: its
times are the ones that count (`nova_view`), and it tells which machine of Ironic is under the server (`Metal`).
"""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from mlops_sdk.capacity.lease import MARKER, Marker, priority_of

LONGEST: Final = 255
_FORM: Final = "mlops/1"
_PARTS: Final = 11
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNKNOWN: Final = "-"
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metal:
    """That a server is a whole machine of Ironic, and which.

    Attributes:
        node_id: Ironic's id; "" while it is not known, or where Ironic does not show this login.
        server_id: The server that was seen on it.
        noted_at: When: a cleaning that ended later is of after our use.
    """

    node_id: str = ""
    server_id: str = ""
    noted_at: datetime | None = None

    def __str__(self) -> str:
        """As the last part of a line.

        Example:
            >>> str(Metal())
            '-'
        """
        if not self.node_id or self.noted_at is None:
            return _UNKNOWN
        ids = (uuid.UUID(self.node_id).hex, uuid.UUID(self.server_id).hex)
        return "@".join((*ids, str((self.noted_at - _EPOCH) // _MICROSECOND)))

    @classmethod
    def parse(cls, text: str) -> Metal:
        """From the last part of a line.

        Raises:
            ValueError: it is none.
        """
        if text == _UNKNOWN:
            return cls()
        node, server, moment = text.split("@")
        return cls(
            node_id=str(uuid.UUID(node)),
            server_id=str(uuid.UUID(server)),
            noted_at=_EPOCH + int(moment) * _MICROSECOND,
        )


def noted(before: Metal | None, node_id: str, server_id: str, now: datetime) -> Metal:
    """That a server was seen on a machine now; it stays as it was noted first."""
    if before is not None and (before.node_id, before.server_id) == (node_id, server_id):
        return before
    return Metal(node_id=node_id, server_id=server_id, noted_at=now)


def to_metadata(marker: Marker) -> dict[str, str]:
    """As metadata of a server: ``mlops.run_id``, ``mlops.deadline``, ..."""
    return {f"{MARKER}.{key}": _to_text(value)[:LONGEST] for key, value in marker.to_json().items()}


def from_metadata(metadata: Mapping[str, str]) -> Marker | None:
    """The marker in a server's metadata, or None when there is none or it is not one of ours."""
    prefix = f"{MARKER}."
    found = {key.removeprefix(prefix): _of_text(value) for key, value in metadata.items() if key.startswith(prefix)}
    return Marker.parse({MARKER: found})


def to_line(marker: Marker, metal: Metal | None = None) -> str:
    """As one line of at most 255 characters. An owner's name that is too long for it is cut."""
    parts = (
        _FORM,
        uuid.UUID(marker.run_id).hex,
        uuid.UUID(marker.deployment_id).hex,
        marker.generation,
        marker.index,
        marker.nodes,
        (marker.deadline - _EPOCH) // _MICROSECOND,
        (marker.renewed_until - _EPOCH) // _MICROSECOND,
        int(marker.priority),
        int(marker.preemptible),
    )
    line = " ".join(str(part) for part in parts)
    owner, end = marker.owner, f" {metal}" if metal is not None else ""
    while len(line) + 1 + len(_escaped(owner)) + len(end) > LONGEST:
        owner = owner[:-1]
    return f"{line} {_escaped(owner)}{end}"


@functools.lru_cache(maxsize=4096)
def from_line(line: str) -> Marker | None:
    """The marker in a description, or None when it is not one of ours."""
    parts = line.split(" ")
    if len(parts) not in {_PARTS, _PARTS + 1} or parts[0] != _FORM:
        return None
    try:
        return Marker(
            run_id=str(uuid.UUID(parts[1])),
            deployment_id=str(uuid.UUID(parts[2])),
            generation=int(parts[3]),
            index=int(parts[4]),
            nodes=int(parts[5]),
            deadline=_EPOCH + int(parts[6]) * _MICROSECOND,
            renewed_until=_EPOCH + int(parts[7]) * _MICROSECOND,
            priority=priority_of(parts[8]),
            preemptible=parts[9] == "1",
            owner=parts[10].encode("ascii").decode("unicode_escape"),
        )
    except (ValueError, OverflowError):
        return None


@functools.lru_cache(maxsize=4096)
def metal_of_line(line: str) -> Metal | None:
    """The machine of Ironic that a description tells of; None where it tells of none, or is not ours.

    What stands there and is nonsense tells that there is one.
    """
    if from_line(line) is None or len(parts := line.split(" ")) == _PARTS:
        return None
    try:
        return Metal.parse(parts[-1])
    except (ValueError, OverflowError):
        return Metal()


def _escaped(text: str) -> str:
    """In ASCII and without a space: as Python writes it in a literal."""
    return text.encode("unicode_escape").decode("ascii").replace(" ", "\\x20")


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _of_text(value: str) -> Any:
    return {"true": True, "false": False}.get(value, value)
