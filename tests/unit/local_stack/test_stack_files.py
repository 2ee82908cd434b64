"""Files and plans of the embedded stack, without starting anything."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from mlops_sdk.errors import StackError
from mlops_sdk.local import secrets
from mlops_sdk.local.layout import Layout, Tools, write_private, write_private_json
from mlops_sdk.local.service import Command, Service, base_environment, in_start_order, with_needs
from mlops_sdk.local.settings_files import to_toml
from mlops_sdk.local.supervisor import tail


def services(**needs: tuple[str, ...]) -> tuple[Service, ...]:
    return tuple(Service(name=name, needs=wanted) for name, wanted in needs.items())


def names(found: tuple[Service, ...]) -> list[str]:
    return [service.name for service in found]


def test_services_start_after_what_they_need() -> None:
    assert names(in_start_order(services(top=("middle",), middle=("base",), base=()))) == ["base", "middle", "top"]


@pytest.mark.parametrize("broken", [services(a=("b",), b=("a",)), services(a=("missing",))])
def test_a_circle_or_an_unknown_need_is_refused(broken: tuple[Service, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be ordered"):
        in_start_order(broken)


def test_only_some_services_means_these_and_what_they_need() -> None:
    every = services(top=("middle",), middle=("base",), base=(), other=())
    assert names(with_needs(every, ("middle",))) == ["middle", "base"]
    with pytest.raises(ValueError, match="no service 'typo'; there are top, middle, base, other"):
        with_needs(every, ("typo",))


def test_settings_are_written_as_toml_that_reads_back() -> None:
    value = {"text": 'quo"te\\ and ü', "number": 1.5, "yes": True, "table": {"gpu.h200.8x": 0.25}}
    assert tomllib.loads(to_toml(value)) == value


def test_private_files_are_never_readable_by_others(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    write_private(target, "secret")
    write_private_json(target.with_name("other"), {"a": 1})
    for path in (target, target.with_name("other")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in target.parent.iterdir()) == ["file", "other"]


def test_secrets_are_chosen_once_and_stay_out_of_reprs(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path)
    first = secrets.choose_or_load(layout)
    assert secrets.choose_or_load(layout) == first
    assert secrets.choose_or_load(Layout.at(tmp_path / "other")) != first
    assert len(first.broker_key) >= 32
    assert first.broker_key not in repr(first)
    assert first.keystone_admin not in repr(first)
    assert "hunter2" not in repr(Command(argv=("x",), env={"PASSWORD": "hunter2"}))


def test_a_state_directory_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="too long a path"):
        Layout.at(tmp_path / ("x" * 100))


def test_two_state_directories_have_different_tags(tmp_path: Path) -> None:
    one, two = Layout.at(tmp_path / "1"), Layout.at(tmp_path / "2")
    assert one.tag != two.tag
    assert one.tag == Layout.at(tmp_path / "1").tag


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path))
    with pytest.raises(StackError, match="not a checkout"):
        Tools.find()


def test_services_inherit_no_secret_of_the_caller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    environment = base_environment(tmp_path)
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "1"


def test_the_end_of_a_log_is_quoted_indented(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("\n".join(str(n) for n in range(100)))
    assert tail(log, 2) == "    98\n    99"
    assert tail(tmp_path / "none.log") == "    (the log is empty)"
