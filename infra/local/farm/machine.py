"""One machine: a slot on disk, and while it is on, a tree of processes in namespaces of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import configdrive
import etc
from fabric import Fabric, Plug

_HERE = Path(__file__).parent
_OFF_WITHIN_S = 10

# A machine dies with the *thread* that started it (that is how the kernel defines a parent's death), so all are started
# by one that lives as long as the farm.
_starter = ThreadPoolExecutor(1, thread_name_prefix="power")


class Machine:
    """A machine behind a BMC. Thread-safe; both switches are idempotent.

    Args:
        description: Its part of the inventory.
        farm: The farm's configuration.
        fabric: The network it is plugged into.
    """

    def __init__(self, description: dict[str, Any], farm: dict[str, Any], fabric: Fabric) -> None:
        self.name = str(description["name"])
        self.uuid = str(description["system_uuid"])
        self.description = description
        self.slot = Path(farm["state_dir"]) / self.name
        self._address = str(description["address"])  # until it is told another
        self._farm = farm
        self._fabric = fabric
        self._supply: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        for folder in (self.slot, self.slot / "scratch", self.slot / "root"):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)

    @property
    def is_on(self) -> bool:
        """Whether its process tree lives; a machine whose process 1 ended is off."""
        supply = self._supply
        return supply is not None and supply.poll() is None

    def power_on(self) -> None:
        """Start it; returns before it has booted."""
        with self._lock:
            if self.is_on:
                return
            drive, problem = self._read_config_drive()
            console = self.slot / "console.log"
            if console.exists():
                console.replace(self.slot / "console.previous.log")
            with console.open("w") as output:
                output.write(f"power on{problem}\n")
                output.flush()
                run_key, address = (drive.run_key, drive.address) if drive else ("", "")
                self._address = address or str(self.description["address"])
                self._fabric.admit(Plug(name=self.name, mac=self._mac, address=self._address, run_key=run_key))
                self._supply = _starter.submit(_start_supply, self._specification(drive), output).result()

    def power_off(self) -> None:
        """End every process of it; returns when the last one is gone."""
        with self._lock:
            supply, self._supply = self._supply, None
            if supply is None:
                return
            supply.terminate()  # it kills process 1 and ends when the kernel has ended all the others
            try:
                supply.wait(_OFF_WITHIN_S)
            except subprocess.TimeoutExpired:
                supply.kill()
                supply.wait()
            self._fabric.expel(self.name)

    @property
    def _mac(self) -> str:
        return str(self.description["ethernet"][0]["mac"])

    def _read_config_drive(self) -> tuple[configdrive.ConfigDrive | None, str]:
        try:
            return configdrive.read(self.slot / "config-drive.iso"), ""
        except (ValueError, OSError) as error:
            return None, f": the config drive is unreadable: {error}"

    def _specification(self, drive: configdrive.ConfigDrive | None) -> dict[str, Any]:
        """What `power_on.py` reads."""
        hostname = (drive.hostname if drive else "") or self.name
        return {
            "name": self.name,
            "hostname": hostname,
            "mac": self._mac,
            "address": self._address,
            "fabric": self._farm["fabric"],
            "root": str(self.slot / "root"),
            "scratch": str(self.slot / "scratch"),
            "scratch_mib": self._scratch_mib(),
            "image_dir": self._image(),
            "boot_program": str(_HERE / "boot.py"),
            "files": self._files(hostname) | _config_drive_files(drive),
        }

    def _files(self, hostname: str) -> dict[str, str]:
        neighbours = {m["name"]: m["address"] for m in self._farm["machines"]}
        return etc.files(hostname, {hostname: self._address, **neighbours})

    def _image(self) -> str:
        """The environment it boots: what its deployment said, else the farm's."""
        told = self.slot / "image"
        return told.read_text().strip() if told.exists() else self._farm["image_dir"]

    def _scratch_mib(self) -> int | None:
        """The size of /scratch: the slot's own, else the farm's, else whatever the disk below has."""
        own = self.slot / "scratch-mib"
        return int(own.read_text()) if own.exists() else self._farm.get("scratch_mib")


def _config_drive_files(drive: configdrive.ConfigDrive | None) -> dict[str, str]:
    if drive is None:
        return {}
    return {
        "/run/config-drive/meta_data.json": json.dumps(drive.meta_data),
        "/run/config-drive/user_data.json": json.dumps(drive.user_data),
    }


def _start_supply(specification: dict[str, Any], console: Any) -> subprocess.Popen[str]:
    supply = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_HERE / "power_on.py")],
        stdin=subprocess.PIPE,
        stdout=console,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    if supply.stdin is not None:
        with supply.stdin as stdin:
            json.dump(specification, stdin)
    return supply
