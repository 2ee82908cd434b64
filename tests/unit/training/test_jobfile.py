"""The file with the job's secrets."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from pydantic import SecretStr

from mlops_sdk.config import S3Settings
from mlops_sdk.errors import SettingsError
from mlops_sdk.training.jobfile import VARIABLE, FileRef, JobFile


@pytest.fixture
def job() -> JobFile:
    return JobFile(
        run_id=uuid.UUID(int=7),
        run_key="aaaaaaaaaaaa",
        attempt=1,
        module="train",
        args={"steps": 3},
        prefix="runs/aaaaaaaaaaaa",
        address="127.0.0.1",
        scratch="/scratch/aaaaaaaaaaaa",
        s3=S3Settings(endpoint="http://s3", access_key_id="id", secret_access_key=SecretStr("hush-s3")),
        secrets={"token": SecretStr("hush-token")},
        bundle=FileRef(name="bundle.tar", key="bundles/x", sha256="0" * 64, size=1),
    )


def test_the_machine_reads_what_the_controller_wrote(
    job: JobFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "job.json"
    path.write_bytes(job.to_bytes())
    monkeypatch.setenv(VARIABLE, str(path))
    loaded = JobFile.load()
    assert loaded == job
    assert loaded.secrets["token"].get_secret_value() == "hush-token"


def test_no_secret_is_shown(job: JobFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "hush" not in repr(job)
    assert "hush" not in job.model_dump_json()
    path = tmp_path / "job.json"
    path.write_bytes(job.to_bytes().replace(b'"attempt":1', b'"attempt":"hush-x"'))
    monkeypatch.setenv(VARIABLE, str(path))
    with pytest.raises(SettingsError) as caught:
        JobFile.load()
    assert "hush" not in str(caught.value)


def test_outside_of_a_job_the_context_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(SettingsError, match="not part of a job"):
        JobFile.load()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ".hidden", ""])
def test_a_file_name_cannot_lead_out_of_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        FileRef(name=name, key="k", sha256="0" * 64, size=1)
