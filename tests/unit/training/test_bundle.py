"""Code and data under their content hash, and what a machine does with them."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from mlops_sdk.errors import BundleError, NodeFailed, SettingsError
from mlops_sdk.objects import ObjectStore
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store
from mlops_sdk.training import fetch
from mlops_sdk.training.bundle import our_wheel, pack, put_bundle, read_tree
from mlops_sdk.training.fetch import check_requirements, fetch_bundle
from mlops_sdk.training.jobfile import FileRef
from mlops_sdk.training.spec import BundleRef


@pytest.fixture
def s3() -> MemoryS3:
    return MemoryS3()


@pytest.fixture
def store(s3: MemoryS3) -> ObjectStore:
    return memory_store(s3)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "openinfra_mlops-0.0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mlops_sdk/__init__.py", "WHO = 'bundle'\n")
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    root = tmp_path / "program"
    (root / "__pycache__").mkdir(parents=True)
    (root / "train.py").write_text("print('hi')\n")
    (root / "__pycache__" / "train.pyc").write_bytes(b"x")
    return root


def ref_of(bundle: BundleRef) -> FileRef:
    return FileRef(name="bundle.tar", key=bundle.key, sha256=bundle.sha256, size=bundle.size)


def test_equal_content_gives_the_same_object_whatever_the_files_times(
    store: ObjectStore, wheel: Path, program: Path
) -> None:
    first = put_bundle(store, program=program, requirements="a==1\n", wheel=wheel)
    (program / "train.py").touch()
    assert put_bundle(store, program=program, requirements="a==1\n", wheel=wheel) == first
    (program / "train.py").write_text("print('ho')\n")
    assert put_bundle(store, program=program, requirements="a==1\n", wheel=wheel) != first


def test_a_machine_gets_exactly_what_was_sent(store: ObjectStore, wheel: Path, program: Path, tmp_path: Path) -> None:
    bundle = put_bundle(store, program=program, requirements="", wheel=wheel)
    paths = fetch_bundle(store, ref_of(bundle), tmp_path / "scratch")
    assert [p.name for p in paths] == ["program", "site"]
    assert (paths[0] / "train.py").read_text() == "print('hi')\n"
    assert not (paths[0] / "__pycache__").exists()
    assert (paths[1] / "mlops_sdk" / "__init__.py").read_text() == "WHO = 'bundle'\n"


def test_a_bundle_that_is_there_is_not_fetched_again(
    s3: MemoryS3, store: ObjectStore, wheel: Path, tmp_path: Path
) -> None:
    bundle = put_bundle(store, requirements="", wheel=wheel)
    first = fetch_bundle(store, ref_of(bundle), tmp_path)
    s3.objects.clear()
    assert fetch_bundle(store, ref_of(bundle), tmp_path) == first


def test_changed_bytes_are_refused_and_leave_nothing(
    s3: MemoryS3, store: ObjectStore, wheel: Path, tmp_path: Path
) -> None:
    bundle = put_bundle(store, requirements="", wheel=wheel)
    s3.objects[bundle.key] = s3.objects[bundle.key][:-1] + b"!"
    with pytest.raises(BundleError, match=f"expected SHA-256 {bundle.sha256}"):
        fetch_bundle(store, ref_of(bundle), tmp_path)
    assert not (tmp_path / "bundle" / bundle.sha256).exists()


def test_somebody_elses_object_under_our_name_is_found_before_the_launch(
    s3: MemoryS3, store: ObjectStore, wheel: Path
) -> None:
    bundle = put_bundle(store, requirements="", wheel=wheel)
    s3.objects[bundle.key] = b"other"
    with pytest.raises(BundleError, match="not what its name says"):
        put_bundle(store, requirements="", wheel=wheel)


def test_a_missing_bundle_says_what_to_do(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="send the bundle before the launch"):
        fetch_bundle(store, FileRef(name="b", key="bundles/x.tar", sha256="0" * 64, size=1), tmp_path)


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "program/../../escape"])
def test_a_member_that_leads_outside_is_refused(s3: MemoryS3, store: ObjectStore, name: str, tmp_path: Path) -> None:
    body = pack({name: b"x", "requirements.txt": b""})
    s3.objects["bundles/x.tar"] = body
    ref = FileRef(name="b", key="bundles/x.tar", sha256=hashlib.sha256(body).hexdigest(), size=len(body))
    with pytest.raises(BundleError, match="refused"):
        fetch_bundle(store, ref, tmp_path / "scratch")
    assert not (tmp_path / "escape").exists()


def test_a_link_in_a_bundle_is_refused(s3: MemoryS3, store: ObjectStore, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("program/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    body = buffer.getvalue()
    s3.objects["bundles/x.tar"] = body
    ref = FileRef(name="b", key="bundles/x.tar", sha256=hashlib.sha256(body).hexdigest(), size=len(body))
    with pytest.raises(BundleError, match="not a regular file"):
        fetch_bundle(store, ref, tmp_path)


def test_a_program_file_that_leads_out_of_its_directory_is_refused(program: Path, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("x")
    (program / "link.txt").symlink_to(tmp_path / "private.txt")
    with pytest.raises(BundleError, match=r"link\.txt"):
        read_tree(program)


def test_a_full_scratch_disk_is_named_with_what_is_free(
    store: ObjectStore, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = put_bundle(store, requirements="", wheel=wheel)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch, "_unpack", full)
    with pytest.raises(NodeFailed, match=r"is full.*No space left on device.*bytes free"):
        fetch_bundle(store, ref_of(bundle), tmp_path)


def test_a_scratch_disk_too_small_is_found_before_writing(
    store: ObjectStore, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = put_bundle(store, requirements="", wheel=wheel)
    usage = fetch.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(NodeFailed, match="10 of"):
        fetch_bundle(store, ref_of(bundle), tmp_path)


def test_the_image_must_have_what_the_lock_says() -> None:
    lock = "# comment\npydantic==0.0.1 \\\n    --hash=sha256:00\nno-such-package==1 ; sys_platform == 'linux'\n"
    with pytest.raises(BundleError, match=r"'pydantic'.*wanted ==0\.0\.1, found \d+\..*1 more"):
        check_requirements(lock)


def test_pins_for_other_platforms_do_not_matter() -> None:
    check_requirements("colorama==0.0.0 ; sys_platform == 'win32'\n# nothing else\n")


def test_a_wheel_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        our_wheel(tmp_path / "no.whl")


def test_the_wheel_built_from_the_sources_holds_library_and_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLOPS_WHEEL", raising=False)
    name, body = our_wheel()
    assert name.endswith(".whl")
    assert our_wheel()[1] == body
    names = zipfile.ZipFile(io.BytesIO(body)).namelist()
    assert "mlops_sdk/training/worker.py" in names
    assert "mlops_pipelines/programs/__init__.py" in names


def test_another_folder_than_a_checkout_of_ours_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not a checkout of openinfra-mlops") as caught:
        put_bundle(store, source=tmp_path)
    assert str(tmp_path / "pyproject.toml") in caught.value.seen
    assert list(store.list("bundles/")) == []


def test_a_checkout_that_is_named_is_what_is_sent(store: ObjectStore, tmp_path: Path) -> None:
    here = Path(__file__).parents[3]
    for name in ("pyproject.toml", "README.md", "mlops_sdk", "hooks", "operators", "pipelines"):
        copy = shutil.copytree if (here / name).is_dir() else shutil.copy2
        copy(here / name, tmp_path / name)
    (tmp_path / "mlops_sdk" / "only_here.py").write_text("")
    bundle = put_bundle(store, source=tmp_path)
    with tarfile.open(fileobj=io.BytesIO(store.get(bundle.key) or b"")) as archive:
        wheel = next(name for name in archive.getnames() if name.startswith("wheel/"))
        packed = archive.extractfile(wheel)
        assert packed is not None
        assert "mlops_sdk/only_here.py" in zipfile.ZipFile(io.BytesIO(packed.read())).namelist()
