"""What a user gets from the wheel: its content, its base without any extra, the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "mlops_sdk": "mlops_sdk",
    "mlops_hooks": "hooks/mlops_hooks",
    "mlops_operators": "operators/mlops_operators",
    "mlops_pipelines": "pipelines/mlops_pipelines",
}
# What the base must do without: each belongs to an extra, or to the servers of the embedded stack.
ABSENT = ("airflow", "torch", "transformers", "safetensors", "tokenizers", "numpy", "pandas", "kubernetes", "dvc")

IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys
failed = {}
for package in ("mlops_sdk", "mlops_pipelines.recipes"):
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        try:
            importlib.import_module(module.name)
        except Exception as error:
            failed[module.name] = repr(error)
print(json.dumps({"failed": failed, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


@pytest.fixture(scope="module")
def base() -> Path:
    """An environment with our wheel and its locked base dependencies, made by the script that `make check` uses."""
    setup = [str(ROOT / "infra/local/setup/python_environments.sh"), "base"]
    made = subprocess.run(setup, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return ROOT / ".mlops/envs/base"


def run(*command: str | Path, **settings: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root"), **settings},
    )
    assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
    return done.stdout


def build_wheel(source: Path, into: Path) -> Path:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1580601600"}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(into)]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = into.glob("*.whl")
    return wheel


def copy_of_sources(into: Path) -> Path:
    into.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, into / name)
    for folder in PACKAGES.values():
        shutil.copytree(ROOT / folder, into / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return into


def test_the_wheel_holds_the_four_typed_packages_and_nothing_else(tmp_path: Path) -> None:
    wheel = build_wheel(copy_of_sources(tmp_path / "source"), tmp_path / "wheel")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    entry_points = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert "mlops = mlops_sdk.cli.main:main" in entry_points
    assert "[apache_airflow_provider]" in entry_points
    assert "[airflow.plugins]" in entry_points


def test_the_same_sources_give_the_same_wheel_wherever_and_whenever_it_is_built(tmp_path: Path) -> None:
    first = copy_of_sources(tmp_path / "here")
    second = copy_of_sources(tmp_path / "some/other/place")
    for path in second.rglob("*"):
        os.utime(path, (1, 1))
    built = [build_wheel(source, tmp_path / f"wheel-{number}") for number, source in enumerate((first, second))]
    assert built[0].read_bytes() == built[1].read_bytes()


def test_the_base_imports_without_airflow_or_torch(base: Path) -> None:
    python = base / "bin/python"
    probe = f"import importlib.util, json; print(json.dumps([n for n in {ABSENT!r} if importlib.util.find_spec(n)]))"
    assert json.loads(run(python, "-c", probe)) == []
    seen = json.loads(run(python, "-c", IMPORT_EVERYTHING))
    assert seen["failed"] == {}
    assert not set(ABSENT) & set(seen["loaded"])


def test_the_command_line_starts_without_any_extra(base: Path) -> None:
    assert "local" in run(base / "bin/mlops", "--help")
    run(base / "bin/mlops", "local", "--help")


def test_importing_the_library_leaves_airflow_and_torch_alone_even_where_they_are_installed() -> None:
    seen = json.loads(run(sys.executable, "-c", IMPORT_EVERYTHING))
    assert seen["failed"] == {}
    assert not {"airflow", "torch"} & set(seen["loaded"])
