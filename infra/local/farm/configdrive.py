"""Read a config drive: an ISO 9660 image with cloud-init's layout."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pycdlib
from pycdlib.pycdlibexception import PyCdlibException, PyCdlibInvalidInput

_CLOUD_CONFIG = "#cloud-config"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDrive:
    """The parts of a config drive that a machine uses. `user_data` is the cloud-config; it holds a private key."""

    meta_data: dict[str, Any]
    user_data: dict[str, Any] = field(repr=False)
    network_data: dict[str, Any] = field(default_factory=dict)

    @property
    def hostname(self) -> str:
        """The name the machine shall have, or ""."""
        return str(self.user_data.get("hostname") or self.meta_data.get("hostname") or "")

    @property
    def run_key(self) -> str:
        """The run the machine belongs to, or "": machines of one run may talk to each other."""
        of_server = (self.meta_data.get("meta") or {}).get("mlops.run_id")  # Nova's servers: flat, text only
        return str((self.meta_data.get("mlops") or {}).get("run_key") or of_server or "")

    @property
    def address(self) -> str:
        """The IPv4 address that it shall have, or "" for its own: the first that the network data fix."""
        networks = self.network_data.get("networks") or []
        return next((str(n["ip_address"]) for n in networks if n.get("type") == "ipv4" and n.get("ip_address")), "")


def read(path: Path) -> ConfigDrive | None:
    """The config drive in a slot, or None when there is none.

    Raises:
        ValueError: when it is not a config drive.
    """
    if not path.exists():
        return None
    iso = pycdlib.PyCdlib()
    try:
        with path.open("rb") as image:
            iso.open_fp(image)
            meta_data = _content(iso, "meta_data.json")
            user_data = _content(iso, "user_data")
            network_data = _content(iso, "network_data.json", default="{}")
            iso.close()
    except PyCdlibException as error:
        raise ValueError(f"{path.name} is not a config drive: {error}") from error
    return ConfigDrive(
        meta_data=json.loads(meta_data), user_data=_cloud_config(user_data), network_data=json.loads(network_data)
    )


def _content(iso: pycdlib.PyCdlib, name: str, *, default: str | None = None) -> str:
    content = io.BytesIO()
    try:
        iso.get_file_from_iso_fp(content, rr_path=f"/openstack/latest/{name}")
    except PyCdlibInvalidInput:
        if default is None:
            raise
        return default
    return content.getvalue().decode()


def _cloud_config(user_data: str) -> dict[str, Any]:
    """Only the JSON form of a cloud-config is understood; JSON is YAML, so writers lose nothing."""
    head, _, body = user_data.partition("\n")
    if head.strip() != _CLOUD_CONFIG:
        raise ValueError(f"user_data does not begin with {_CLOUD_CONFIG!r}")
    parsed = json.loads(body)
    if not isinstance(parsed, dict):
        raise ValueError("user_data is not an object")  # noqa: TRY004 - the file is wrong, not the caller
    return parsed
