"""The slot that the conductor and a machine share: media in and out, and an erasure that erases."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def slot(slot_module: ModuleType, tmp_path: Path):
    path = tmp_path / "gpu-01"
    path.mkdir()
    return slot_module.Slot(path)


def test_a_config_drive_is_private_and_replaces_the_former(slot) -> None:
    slot.insert_config_drive(b"first")
    slot.insert_config_drive(b"second")

    drive = slot.path / "config-drive.iso"
    assert drive.read_bytes() == b"second"
    assert drive.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in slot.path.iterdir()] == ["config-drive.iso"]


def test_ejecting_twice_is_fine_and_removes_half_written_media(slot) -> None:
    slot.insert_config_drive(b"x")
    (slot.path / ".config-drive-abc").write_bytes(b"interrupted")

    slot.eject_config_drive()
    slot.eject_config_drive()

    assert list(slot.path.iterdir()) == []


def test_erasing_removes_everything_and_counts_it(slot) -> None:
    scratch = slot.path / "scratch"
    (scratch / "deep/er").mkdir(parents=True)
    (scratch / "deep/er/weights").write_bytes(b"x" * 1_000_000)
    (scratch / ".hidden").write_text("secret")

    erased = slot.erase_scratch()

    assert list(scratch.iterdir()) == []
    assert erased.entries == 2
    assert erased.bytes >= 1_000_000


def test_erasing_never_follows_a_link_out_of_the_disk(slot, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep")
    scratch = slot.path / "scratch"
    scratch.mkdir()
    (scratch / "link").symlink_to(outside)
    (scratch / "file-link").symlink_to(outside / "precious")

    slot.erase_scratch()

    assert (outside / "precious").read_text() == "keep"
    assert list(scratch.iterdir()) == []


def test_a_disk_that_was_replaced_by_a_link_is_made_anew(slot, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep")
    (slot.path / "scratch").symlink_to(outside)

    slot.erase_scratch()

    assert (outside / "precious").exists()
    assert (slot.path / "scratch").is_dir()
    assert not (slot.path / "scratch").is_symlink()


def test_a_missing_disk_is_an_empty_disk(slot) -> None:
    assert slot.erase_scratch().entries == 0
    assert (slot.path / "scratch").is_dir()
