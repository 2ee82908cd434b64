"""Cinder in memory: volumes that take time to be made, filled and deleted, with the answers of the real one.

What was seen of Cinder 29 and is obeyed here: names are not unique; a volume that no host has yet is deleted at once;
one in any state but `available` and `error` is not (400), not even one that is being deleted or whose deletion failed;
a server reserves a volume when it is asked for, and only then does it show as attached when it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from mlops_sdk.testing.http_cloud.ironic import START
from mlops_sdk.testing.http_cloud.listing import ident, page
from mlops_sdk.testing.http_cloud.messages import Answer, Call

_KIND: Final = 0xC1DE
_NEVER: Final = float("inf")
_DELETABLE: Final = {"available", "error", "error_restoring", "error_extending", "error_managing"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePace:
    """How many seconds things take."""

    schedule_s: float = 0.4
    create_s: float = 1.0
    fill_s: float = 8.0
    delete_s: float = 3.0
    reset_s: float = 120.0
    """Until an operator resets what could not be deleted: nobody else can."""


@dataclass(slots=True, kw_only=True)
class FakeVolume:
    """A volume as Cinder keeps it. `server`: id of the server it is reserved for or attached to; `next`: what, when."""

    id: str
    name: str
    project: str
    description: str
    metadata: Mapping[str, str]
    size: int
    made_at: float
    created_at: str
    image: str = ""
    status: str = "creating"
    server: str = ""
    next: tuple[float, str] = (_NEVER, "")


class FakeCinder:
    """One Cinder.

    Args:
        monotonic: The world's clock, in seconds.
        pace: How long things take.
        quota: How many volumes a project may have.

    Attributes:
        volumes: By id.
        fails: How many more times ``create`` and ``delete`` fail, of any volume.
    """

    def __init__(self, monotonic: Callable[[], float], *, pace: VolumePace | None = None, quota: int = 500) -> None:
        self.volumes: dict[str, FakeVolume] = {}
        self.fails = Counter[str]()
        self.pace = pace or VolumePace()
        self.quota = quota
        self._monotonic = monotonic
        self._numbers = 0

    def settle(self) -> None:
        """Let everything happen that is due by now."""
        now = self._monotonic()
        for volume in list(self.volumes.values()):
            while volume.next[0] <= now:
                at, what = volume.next
                self._arrive(volume, what, at)

    def reserve(self, volume_ids: Iterable[str], server: str) -> str:
        """For a server that is asked for; why it cannot be, else ""."""
        for volume_id in volume_ids:
            volume = self.volumes.get(volume_id)
            if volume is None:
                return f"Block Device Mapping is Invalid: failed to get volume {volume_id}."
            if volume.status not in {"available", "downloading"}:
                return (
                    f"Invalid volume: Invalid input received: Invalid volume: Volume {volume_id} status must be "
                    f"available or downloading to reserve, but the current status is {volume.status}."
                )
        for volume_id in volume_ids:
            self.volumes[volume_id].status, self.volumes[volume_id].server = "reserved", server
        return ""

    def attach(self, server: str) -> None:
        """A server that runs has its volumes."""
        for volume in self._of(server):
            volume.status = "in-use"

    def let_go(self, server: str, *, keep: Collection[str] | None = None) -> None:
        """A server is gone, or (without `keep`) was not built: what was its is free; what is not kept is deleted."""
        for volume in self._of(server):
            volume.status, volume.server = "available", ""
            if keep is not None and volume.id not in keep:
                self._delete(volume)

    def handle(self, call: Call, project: str) -> Answer:
        """Carry out one request of somebody who is logged in to a project."""
        self.settle()
        return self.answer(call, project)

    def answer(self, call: Call, project: str) -> Answer:
        """The same, in the state that it is in: nothing else happens first."""
        root, _, volume_id = call.path.removeprefix(f"/v3/{project}/").partition("/")
        if root != "volumes":
            return _fault(404, "itemNotFound", "The resource could not be found.")
        if call.method == "POST":
            return self._create(call.body["volume"], project)
        if volume_id in {"", "detail"}:
            named = call.query.get("name")
            found = (v for v in self.volumes.values() if v.project == project and named in {None, v.name})
            return page("volumes", [_shown(volume) for volume in found], call, host="cinder.invalid")
        volume = self.volumes.get(volume_id)
        if volume is None or volume.project != project:
            return _fault(404, "itemNotFound", f"Volume {volume_id} could not be found.")
        if call.method == "DELETE":
            return self._on_delete(volume)
        return Answer(status=200, body={"volume": _shown(volume)})

    def _of(self, server: str) -> list[FakeVolume]:
        return [volume for volume in self.volumes.values() if volume.server == server]

    def _arrive(self, volume: FakeVolume, what: str, at: float) -> None:
        volume.next = (_NEVER, "")
        if what == "gone":
            del self.volumes[volume.id]
        elif what == "error_deleting":
            volume.status, volume.next = what, (at + self.pace.reset_s, "error")
        elif what == "available" and self.fails["create"] > 0:
            self.fails["create"] -= 1
            volume.status = "error"
        else:
            volume.status = what
            if what == "downloading":
                volume.next = (at + self.pace.fill_s, "available")

    def _create(self, wanted: Mapping[str, Any], project: str) -> Answer:
        if sum(volume.project == project for volume in self.volumes.values()) >= self.quota:
            words = (
                f"VolumeLimitExceeded: Maximum number of volumes allowed ({self.quota}) exceeded for quota 'volumes'."
            )
            return _fault(413, "overLimit", words)
        self._numbers += 1
        now = self._monotonic()
        made = FakeVolume(
            id=ident(_KIND, self._numbers),
            name=str(wanted.get("name") or ""),
            project=project,
            description=str(wanted.get("description") or ""),
            metadata=dict(wanted.get("metadata") or {}),
            size=int(wanted["size"]),
            image=str(wanted.get("imageRef") or ""),
            made_at=now,
            created_at=f"{START + timedelta(seconds=now):%Y-%m-%dT%H:%M:%S.%f}",
        )
        made.next = (now + self.pace.create_s, "downloading" if made.image else "available")
        self.volumes[made.id] = made
        return Answer(status=202, body={"volume": _shown(made)})

    def _on_delete(self, volume: FakeVolume) -> Answer:
        if self._monotonic() < volume.made_at + self.pace.schedule_s:  # no host has it yet
            del self.volumes[volume.id]
            return Answer(status=202)
        if volume.status not in _DELETABLE:
            words = (
                "Invalid volume: Volume status must be available or error or error_restoring or error_extending or "
                "error_managing and must not be migrating, attached, belong to a group, have snapshots, awaiting a "
                "transfer, or be disassociated from snapshots after volume transfer."
            )
            return _fault(400, "badRequest", words)
        self._delete(volume)
        return Answer(status=202)

    def _delete(self, volume: FakeVolume) -> None:
        then = "gone"
        if self.fails["delete"] > 0:
            self.fails["delete"] -= 1
            then = "error_deleting"
        volume.status, volume.next = "deleting", (self._monotonic() + self.pace.delete_s, then)


def _fault(status: int, kind: str, words: str) -> Answer:
    return Answer(status=status, body={kind: {"code": status, "message": words}})


def _shown(volume: FakeVolume) -> dict[str, Any]:
    attached = volume.status in {"in-use", "detaching"}
    return {
        "id": volume.id,
        "name": volume.name,
        "os-vol-tenant-attr:tenant_id": volume.project,
        "description": volume.description,
        "metadata": dict(volume.metadata),
        "size": volume.size,
        "status": volume.status,
        "attachments": [{"server_id": volume.server, "volume_id": volume.id}] if attached else [],
        "created_at": volume.created_at,
    }
