"""The systems behind the emulator's Redfish API: each is a `Machine`, and its power state is that of its processes."""

from __future__ import annotations

from typing import Any

from machine import Machine
from sushy_tools import error
from sushy_tools.emulator.resources.systems.base import AbstractSystemsDriver

_ON = {"On", "ForceOn"}
_OFF = {"ForceOff", "GracefulShutdown"}
_RESTART = {"ForceRestart", "GracefulRestart"}


class MachineSystems(AbstractSystemsDriver):
    """A systems driver of sushy-tools.

    Boot settings are kept in memory only: the machines boot their image whatever they say.
    """

    def __init__(self, machines: list[Machine]) -> None:
        super().__init__()
        self.machines = {machine.uuid: machine for machine in machines}
        self._by_name = {machine.name: machine.uuid for machine in machines}
        self._settings: dict[tuple[str, str], Any] = {}

    @property
    def driver(self) -> str:
        """What sushy-tools prints."""
        return "<machines>"

    @property
    def systems(self) -> list[str]:
        """The ids of all systems."""
        return list(self.machines)

    def machine(self, identity: str) -> Machine:
        """The machine with an id.

        Raises:
            AliasAccessError: for a name; the emulator answers with a redirect.
            NotFound: for anything else.
        """
        if identity in self._by_name:
            raise error.AliasAccessError(self._by_name[identity])
        if identity not in self.machines:
            raise error.NotFound(f"system {identity!r} does not exist")
        return self.machines[identity]

    def uuid(self, identity: str) -> str:
        """The id of a system given by id or name."""
        return self._by_name.get(identity) or self.machine(identity).uuid

    def name(self, identity: str) -> str:
        """The name of a system given by id or name."""
        return identity if identity in self._by_name else self.machine(identity).name

    def get_power_state(self, identity: str) -> str:
        """`On` while the machine's process 1 lives."""
        return "On" if self.machine(identity).is_on else "Off"

    def set_power_state(self, identity: str, state: str) -> None:
        """Act on a Redfish ResetType. An operating system is never asked: graceful is forced here."""
        machine = self.machine(identity)
        if state not in _ON | _OFF | _RESTART:
            raise error.NotSupportedError(f"ResetType {state!r} is not supported")
        if state in _OFF | _RESTART:
            machine.power_off()
        if state in _ON | _RESTART:
            machine.power_on()

    def get_boot_device(self, identity: str) -> str:
        """The boot device that was last set."""
        return self._settings.get((identity, "device"), "Hdd")

    def set_boot_device(self, identity: str, boot_source: str) -> None:
        """Remember a boot device."""
        self._settings[identity, "device"] = boot_source

    def get_boot_mode(self, identity: str) -> str:
        """The boot mode that was last set."""
        return self._settings.get((identity, "mode"), "UEFI")

    def set_boot_mode(self, identity: str, boot_mode: str) -> None:
        """Remember a boot mode."""
        self._settings[identity, "mode"] = boot_mode

    def get_secure_boot(self, identity: str) -> bool:
        """Whether secure boot was enabled."""
        return self._settings.get((identity, "secure"), False)

    def set_secure_boot(self, identity: str, secure: bool) -> None:
        """Remember whether secure boot is enabled."""
        self._settings[identity, "secure"] = secure
