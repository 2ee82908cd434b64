"""Cinder's volume driver of the embedded stack: a volume is a sparse file. Deleting one removes the file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cinder import interface
from cinder.volume import driver
from oslo_config import cfg

_GIB = 1024**3
_OPTIONS = [cfg.StrOpt("sparse_files_dir", help="where the files are")]


@interface.volumedriver
class SparseFiles(driver.VolumeDriver):
    """Control path only: a server that a volume is attached to records it and does not see it."""

    VERSION = "1.0"
    CI_WIKI_NAME = "none"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.configuration.append_config_values(_OPTIONS)

    @staticmethod
    def get_driver_options() -> list[cfg.Opt]:
        """What the configuration may say."""
        return _OPTIONS

    def check_for_setup_error(self) -> None:
        """Make the folder."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def create_volume(self, volume: Any) -> None:
        """Make the file."""
        self._resize(volume, volume.size)

    def delete_volume(self, volume: Any) -> None:
        """Remove the file; gone is success."""
        self._file(volume).unlink(missing_ok=True)

    def extend_volume(self, volume: Any, new_size: int) -> None:
        """Make the file longer."""
        self._resize(volume, new_size)

    def create_snapshot(self, snapshot: Any) -> None:
        """Copy the file."""
        shutil.copyfile(self._file(snapshot.volume), self._root / f"snapshot-{snapshot.id}")

    def delete_snapshot(self, snapshot: Any) -> None:
        """Remove the copy."""
        (self._root / f"snapshot-{snapshot.id}").unlink(missing_ok=True)

    def create_volume_from_snapshot(self, volume: Any, snapshot: Any) -> None:
        """Copy the copy."""
        shutil.copyfile(self._root / f"snapshot-{snapshot.id}", self._file(volume))
        self._resize(volume, volume.size)

    def create_cloned_volume(self, volume: Any, src_vref: Any) -> None:
        """Copy another volume."""
        shutil.copyfile(self._file(src_vref), self._file(volume))
        self._resize(volume, volume.size)

    def clone_image(
        self, context: Any, volume: Any, image_location: Any, image_meta: Any, image_service: Any
    ) -> tuple[dict[str, Any], bool]:
        """Fill the file with a raw image, which is how Cinder is kept from looking for qemu; others are left to it."""
        del image_location
        if image_meta["disk_format"] != "raw":
            return {}, False
        with self._file(volume).open("wb") as file:
            image_service.download(context, image_meta["id"], file)
        self._resize(volume, volume.size)
        return {}, True

    def ensure_export(self, context: Any, volume: Any) -> None:
        """A file needs no export."""

    def create_export(self, context: Any, volume: Any, connector: Any) -> None:
        """A file needs no export."""

    def remove_export(self, context: Any, volume: Any) -> None:
        """A file needs no export."""

    def initialize_connection(self, volume: Any, connector: Any, **_: Any) -> dict[str, Any]:
        """Where the file is."""
        del connector
        return {"driver_volume_type": "local", "data": {"device_path": str(self._file(volume)), "access_mode": "rw"}}

    def terminate_connection(self, volume: Any, connector: Any, **_: Any) -> None:
        """Nothing was opened."""

    def _update_volume_stats(self) -> None:
        free = shutil.disk_usage(self._root).free // _GIB
        self._stats = {
            "volume_backend_name": self.configuration.safe_get("volume_backend_name"),
            "vendor_name": "openinfra-mlops",
            "driver_version": self.VERSION,
            "storage_protocol": "local",
            "total_capacity_gb": free,
            "free_capacity_gb": free,
            "reserved_percentage": 0,
            "thin_provisioning_support": True,
            "thick_provisioning_support": False,
            "max_over_subscription_ratio": 20.0,
            "provisioned_capacity_gb": 0,
            "multiattach": False,
            "QoS_support": False,
        }

    @property
    def _root(self) -> Path:
        return Path(self.configuration.safe_get("sparse_files_dir"))

    def _file(self, volume: Any) -> Path:
        return self._root / f"volume-{volume.id}"

    def _resize(self, volume: Any, size_gib: int) -> None:
        with self._file(volume).open("ab") as file:
            file.truncate(size_gib * _GIB)
