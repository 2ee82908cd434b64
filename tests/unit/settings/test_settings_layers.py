"""Environment over file; what is wrong is named by field, and no value is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_sdk.config import Settings
from mlops_sdk.errors import SettingsError
from mlops_sdk.webhooks.config import WebhookSettings

SECRET = "a secret that belongs nowhere"
FILE = f"""
deployment_id = "6f1c3d1e-0000-4000-8000-000000000001"
broker_key = "a broker key that is long enough for us"
owner = "the file"
s3 = {{ endpoint = "http://127.0.0.1:7480", access_key_id = "key", secret_access_key = "{SECRET}" }}
keystone = {{ auth_url = "http://127.0.0.1:5000/v3" }}
mlflow = {{ tracking_uri = "http://127.0.0.1:5001" }}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "client.toml"
    path.write_text(FILE)
    return path


def test_the_environment_comes_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLOPS_S3__BUCKET", "from-the-environment")
    monkeypatch.setenv("MLOPS_OWNER", "the environment")
    settings = Settings.load(file)
    assert (settings.owner, settings.s3.bucket) == ("the environment", "from-the-environment")
    assert settings.s3.endpoint == "http://127.0.0.1:7480"


def test_what_is_wrong_is_named_without_its_value(file: Path):
    file.write_text(FILE.replace('owner = "the file"', "owner = 7").replace("access_key_id", "acces_key_id"))
    with pytest.raises(SettingsError) as caught:
        Settings.load(file)
    assert "owner: " in str(caught.value)
    assert "s3.access_key_id: Field required" in str(caught.value)
    assert str(file) in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("load", [Settings.load, WebhookSettings.load])
def test_a_file_that_is_not_toml_is_named_and_not_repeated(load, tmp_path: Path):
    broken = tmp_path / "settings.toml"
    broken.write_text(f'secret = "{SECRET}')
    with pytest.raises(SettingsError, match=r"settings\.toml.*not TOML") as caught:
        load(broken)
    assert SECRET not in str(caught.value)
    broken.unlink()
    with pytest.raises(SettingsError, match=r"settings\.toml"):
        load(broken)


def test_a_webhook_secret_that_is_too_short_is_not_shown(tmp_path: Path):
    path = tmp_path / "webhook.toml"
    path.write_text('inbox_url = "sqlite:///inbox.db"\nsecrets = ["too-short-one"]\n')
    with pytest.raises(SettingsError, match=r"secrets.*fewer than 16") as caught:
        WebhookSettings.load(path)
    assert "too-short-one" not in str(caught.value)
