"""The servers of a host: each has a slot on disk and, while it is on, is a machine as those behind the BMCs are.

    <slot>/server.json        what it is: id, name, link address, IPv4 address
    <slot>/config-drive.iso   what Nova tells it
    <slot>/scratch/           its disk
    <slot>/console.log        what it printed

Everything that has to outlive this process is in the slot, so the servers of a host that was killed can be switched on
again. Machines are made by `infra/local/farm`, which has to be on the path (`run_nova_compute.py` puts it there).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pycdlib
from fabric import Fabric
from machine import Machine

_LABEL = "config-2"
_RECORD = "server.json"
_LATEST = "openstack/latest/"
_NAME_LENGTH = 8  # of the id's digits: the name is an interface's too, and these have at most fifteen characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A server of this host. Without an `address` it has no machine: it is on nobody's network."""

    uuid: str
    name: str
    mac: str = ""
    address: str = ""


class Server:
    """One server. Idempotent; a server that has no machine is on as long as nobody switches it off."""

    def __init__(self, record: Record, slot: Path, machine: Machine | None) -> None:
        self.record = record
        self.slot = slot
        self._machine = machine
        self._on = False

    @property
    def is_on(self) -> bool:
        """Whether its first process lives."""
        return self._machine.is_on if self._machine else self._on

    def power_on(self) -> None:
        """Boot it; returns before it has booted."""
        self._on = True
        if self._machine:
            self._machine.power_on()

    def power_off(self) -> None:
        """End every process of it."""
        self._on = False
        if self._machine:
            self._machine.power_off()

    def console(self) -> str:
        """What it printed since it was switched on."""
        log = self.slot / "console.log"
        return log.read_text(errors="replace") if log.exists() else ""


class Servers:
    """All servers of this host, by id. Thread-safe.

    Args:
        settings: ``{"state_dir": where the slots are, "image_dir": ..., "fabric": ...}``, see `infra/local/farm`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._root = Path(settings["state_dir"])
        self._farm = {**settings, "machines": []}
        self._fabric = Fabric(settings["fabric"], ("server_ports", "server_peers"))
        self._lock = threading.Lock()
        self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._servers = {record.uuid: self._open(record) for record in self._records()}

    def get(self, uuid: str) -> Server | None:
        """The server with an id."""
        return self._servers.get(uuid)

    def all(self) -> list[Server]:
        """Every server."""
        return list(self._servers.values())

    def create(self, record: Record, drive: dict[str, bytes]) -> Server:
        """Make the slot of a server, off, with its config drive; one of this id that is there is made anew."""
        self.remove(record.uuid)
        slot = self._slot(record.uuid)
        slot.mkdir(mode=0o755, parents=True)
        _write_private(slot / "config-drive.iso", pack(drive))
        server = self._open(record)
        _write_private(slot / _RECORD, json.dumps(asdict(record)).encode())
        with self._lock:
            self._servers[record.uuid] = server
        return server

    def remove(self, uuid: str) -> None:
        """End a server and remove all that it stored."""
        with self._lock:
            server = self._servers.pop(uuid, None)
        if server:
            server.power_off()
        slot = self._slot(uuid)
        if slot.exists():
            shutil.rmtree(slot)

    def _slot(self, uuid: str) -> Path:
        return self._root / f"vm-{uuid[:_NAME_LENGTH]}"

    def _open(self, record: Record) -> Server:
        slot = self._slot(record.uuid)
        if not record.address:
            return Server(record, slot, None)
        description = {
            "name": slot.name,
            "system_uuid": record.uuid,
            "ethernet": [{"mac": record.mac}],
            "address": record.address,
        }
        return Server(record, slot, Machine(description, self._farm, self._fabric))

    def _records(self) -> list[Record]:
        """What is on disk; a slot that was left half made is removed, for Nova knows of no server there."""
        found: list[Record] = []
        for slot in self._root.iterdir():
            try:
                found.append(Record(**json.loads((slot / _RECORD).read_text())))
            except (OSError, ValueError, TypeError):
                shutil.rmtree(slot, ignore_errors=True)
        return found


def pack(files: dict[str, bytes]) -> bytes:
    """A config drive: an ISO 9660 image with the newest of the versions that Nova writes.

    Args:
        files: By path (``openstack/latest/meta_data.json``); other versions are left out.
    """
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=4, rock_ridge="1.09", joliet=3, vol_ident=_LABEL)
    for folder in ("/openstack", "/openstack/latest"):
        iso.add_directory(folder, rr_name=folder.rsplit("/", 1)[1], joliet_path=folder)
    for path, content in files.items():
        if path.startswith(_LATEST):
            name = path.removeprefix(_LATEST)
            iso.add_fp(io.BytesIO(content), len(content), f"/{path}", rr_name=name, joliet_path=f"/{path}")
    image = io.BytesIO()
    iso.write_fp(image)
    iso.close()
    return image.getvalue()


def _write_private(path: Path, content: bytes) -> None:
    """Whole or not at all, and for the owner only: a config drive may carry a private key."""
    scratch = path.with_name(f".{path.name}")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    scratch.replace(path)
