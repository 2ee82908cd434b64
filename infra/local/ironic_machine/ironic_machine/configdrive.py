"""Config drives: from what Ironic keeps in `instance_info` to the bytes of an ISO 9660 image."""

from __future__ import annotations

import base64
import gzip
import io
import json
import urllib.request
from typing import Any

import pycdlib

_LABEL = "config-2"
_FETCH_TIMEOUT_S = 30


def image_of(config_drive: dict[str, Any] | str, *, node_uuid: str, node_name: str) -> bytes:
    """The ISO image of a config drive in any of the forms that Ironic's API accepts.

    Args:
        config_drive: Its JSON form (`meta_data`, `user_data`, `network_data`, `vendor_data`), a URL, or the base64 of a
            gzipped image. What lies behind a URL is a gzipped image, or its base64.
        node_uuid: Default of `meta_data.uuid`.
        node_name: Default of `meta_data.name`.

    Raises:
        ValueError: when it is none of these.
    """
    if isinstance(config_drive, dict):
        return build(config_drive, node_uuid=node_uuid, node_name=node_name)
    content = config_drive.encode()
    if config_drive.startswith(("http://", "https://")):
        with urllib.request.urlopen(config_drive, timeout=_FETCH_TIMEOUT_S) as reply:  # noqa: S310 - scheme checked above
            content = reply.read()
        if content[:2] == b"\x1f\x8b":
            return gzip.decompress(content)
    try:
        return gzip.decompress(base64.b64decode(content, validate=False))
    except (OSError, ValueError) as error:
        raise ValueError(f"the config drive is neither JSON, nor a URL, nor base64 of gzip: {error}") from None


def build(config_drive: dict[str, Any], *, node_uuid: str, node_name: str) -> bytes:
    """Make the image from the JSON form, in the layout that cloud-init reads (`/openstack/latest/...`).

    Ironic itself would call `genisoimage`; this needs no program.
    """
    meta_data = {"uuid": node_uuid, "name": node_name, **(config_drive.get("meta_data") or {})}
    files = {"meta_data.json": json.dumps(meta_data).encode()}
    if config_drive.get("network_data"):
        files["network_data.json"] = json.dumps(config_drive["network_data"]).encode()
    if config_drive.get("vendor_data"):
        files["vendor_data2.json"] = json.dumps(config_drive["vendor_data"]).encode()
    user_data = config_drive.get("user_data")
    if user_data:
        files["user_data"] = user_data.encode() if isinstance(user_data, str) else json.dumps(user_data).encode()
    return _pack(files)


def _pack(files: dict[str, bytes]) -> bytes:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=4, rock_ridge="1.09", joliet=3, vol_ident=_LABEL)
    for folder in ("/openstack", "/openstack/latest"):
        iso.add_directory(folder, rr_name=folder.rsplit("/", 1)[1], joliet_path=folder)
    for name, content in files.items():
        path = f"/openstack/latest/{name}"
        iso.add_fp(io.BytesIO(content), len(content), path, rr_name=name, joliet_path=path)
    image = io.BytesIO()
    iso.write_fp(image)
    iso.close()
    return image.getvalue()
