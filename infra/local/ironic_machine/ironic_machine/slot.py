"""The slot of one machine: the directory that the conductor and the machine's hardware share.

    <slot>/config-drive.iso   virtual media, read by the machine when it powers on
    <slot>/image              where the image is that it boots: one line
    <slot>/scratch/           the machine's data disk
    <slot>/console.log        what the machine printed

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

CONFIG_DRIVE = "config-drive.iso"
IMAGE = "image"
SCRATCH = "scratch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What an erasure removed: top-level entries and their allocated bytes."""

    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Slot:
    """One machine's directory. Every operation is idempotent."""

    path: Path

    def insert_config_drive(self, image: bytes) -> None:
        """Put a config drive into the machine; only the owner may read it, for it carries a private key."""
        with tempfile.NamedTemporaryFile(dir=self.path, prefix=".config-drive-", delete=False) as new:
            new.write(image)
        Path(new.name).replace(self.path / CONFIG_DRIVE)

    def eject_config_drive(self) -> None:
        """Take the config drive out, and what an interrupted insertion may have left."""
        (self.path / CONFIG_DRIVE).unlink(missing_ok=True)
        for leftover in self.path.glob(".config-drive-*"):
            leftover.unlink(missing_ok=True)

    def insert_image(self, image: Path) -> None:
        """Say what the machine boots."""
        (self.path / IMAGE).write_text(f"{image}\n")

    def eject_image(self) -> None:
        """It boots what the farm has for machines that nobody deployed."""
        (self.path / IMAGE).unlink(missing_ok=True)

    def erase_scratch(self) -> Erased:
        """Remove everything on the data disk. Symbolic links are removed, never followed.

        Raises:
            OSError: when something could not be removed, or is still there afterwards.
        """
        scratch = self.path / SCRATCH
        if scratch.is_symlink() or not scratch.is_dir():
            with contextlib.suppress(FileNotFoundError):
                scratch.unlink()
            scratch.mkdir(mode=0o755)
            return Erased(entries=0, bytes=0)
        entries = list(scratch.iterdir())
        size = sum(_allocated(entry) for entry in entries)
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        left = [entry.name for entry in scratch.iterdir()]
        if left:
            raise OSError(f"{len(left)} entries are still on {str(scratch)!r}: {left[:5]}")
        return Erased(entries=len(entries), bytes=size)


def _allocated(path: Path) -> int:
    total = path.lstat().st_blocks * 512
    if path.is_dir() and not path.is_symlink():
        for folder, names, files in os.walk(path):
            for name in (*names, *files):
                with contextlib.suppress(FileNotFoundError):
                    total += (Path(folder) / name).lstat().st_blocks * 512
    return total
