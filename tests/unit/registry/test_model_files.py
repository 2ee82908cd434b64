"""An exported model is fetched whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_sdk.errors import RegistryError
from mlops_sdk.objects import ObjectStore
from mlops_sdk.registry.model_files import fetch_model, upload_model
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store

PREFIX = "runs/abc/model"


@pytest.fixture
def s3() -> MemoryS3:
    return MemoryS3()


@pytest.fixture
def store(s3: MemoryS3, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """With boto3's transfers, on the server in memory."""

    def upload_file(self: MemoryS3, path: str, bucket: str, key: str) -> None:
        self.put_object(Bucket=bucket, Key=key, Body=Path(path).read_bytes())

    def download_file(self: MemoryS3, bucket: str, key: str, path: str) -> None:
        Path(path).write_bytes(self.get_object(Bucket=bucket, Key=key)["Body"].read())

    monkeypatch.setattr(MemoryS3, "upload_file", upload_file, raising=False)
    monkeypatch.setattr(MemoryS3, "download_file", download_file, raising=False)
    return memory_store(s3)


@pytest.fixture
def exported(store: ObjectStore, tmp_path: Path) -> str:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "weights.safetensors").write_bytes(b"w" * 100)
    return upload_model(store, PREFIX, folder, {"bits_per_byte": 2.3})


def test_what_was_exported_is_fetched(store: ObjectStore, exported: str, tmp_path: Path):
    found = fetch_model(store, PREFIX, tmp_path / "to", sha256=exported)
    assert found.sha256 == exported
    assert found.manifest.about == {"bits_per_byte": 2.3}
    assert (found.folder / "sub" / "weights.safetensors").read_bytes() == b"w" * 100
    assert set(found.manifest.files) == {"config.json", "sub/weights.safetensors"}


def test_a_changed_file_is_named(store: ObjectStore, s3: MemoryS3, exported: str, tmp_path: Path):
    s3.objects[f"{PREFIX}/config.json"] = b"{ }"
    with pytest.raises(RegistryError, match=r"model/config\.json"):
        fetch_model(store, PREFIX, tmp_path / "to", sha256=exported)


def test_another_manifest_is_refused(store: ObjectStore, exported: str, tmp_path: Path):
    with pytest.raises(RegistryError, match="expected SHA-256"):
        fetch_model(store, PREFIX, tmp_path / "to", sha256="0" * 64)


def test_no_model_is_an_error_that_says_so(store: ObjectStore, tmp_path: Path):
    with pytest.raises(RegistryError, match="no exported model"):
        fetch_model(store, "runs/none/model", tmp_path / "to")


def test_a_manifest_that_leads_outside_the_folder_is_refused(store: ObjectStore, s3: MemoryS3, tmp_path: Path):
    digest = "0" * 64
    s3.objects[f"{PREFIX}/manifest.json"] = (
        f'{{"version":1,"files":{{"../x":{{"bytes":1,"sha256":"{digest}"}}}},"about":{{}}}}'.encode()
    )
    with pytest.raises(RegistryError, match=r"\.\./x"):
        fetch_model(store, PREFIX, tmp_path / "to")
    assert not (tmp_path / "x").exists()
