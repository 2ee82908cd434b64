"""A scheduler imports what the setting names, and starts whatever happens."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from airflow.plugins_manager import AirflowPlugin

from mlops_operators import preload
from mlops_operators.plugin import MlopsPlugin

VARIABLE = "AIRFLOW__MLOPS__PRELOAD_MODULES"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "preloaded_here.py").write_text("LOADED = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "preloaded_here"


def test_what_is_named_is_loaded_and_what_cannot_be_is_told(
    package: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, f"no_such_module_here, {package}")
    with caplog.at_level(logging.WARNING):
        preload.on_starting(object())
    assert package in sys.modules
    assert "no_such_module_here" in caplog.text
    del sys.modules[package]


def test_without_the_setting_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert preload.preload_modules() == []


def test_the_plugin_brings_it() -> None:
    plugin: AirflowPlugin = MlopsPlugin()
    assert preload in plugin.listeners
