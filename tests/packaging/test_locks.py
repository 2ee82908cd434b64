"""The locks: exact, hashed, free of any index host or local path, and in step with what we declare."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ["base", "compute", "image", "main", "openstack", "uv", "vllm"]
PIN = re.compile(r"^(?P<name>[a-z0-9][a-z0-9.-]*)(\[[a-z0-9,-]+\])?==(?P<version>[^ ;]+)( ; (?P<marker>[^\\]+))? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


def lines(lock: str) -> list[str]:
    return (ROOT / f"requirements/{lock}.txt").read_text(encoding="utf-8").splitlines()


def pins(lock: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in lines(lock):
        if match := PIN.match(line):
            found.setdefault(canonicalize_name(match["name"]), set()).add(match["version"])
    return found


def declared(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return [requirement for text in wanted if (requirement := Requirement(text)).name != "torch"]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_pins_hashes_and_comments_only(lock: str) -> None:
    strange = [
        line
        for line in lines(lock)
        if not (PIN.match(line) or HASH.match(line) or line.lstrip().startswith("#"))
        or "://" in line
        or re.search(r"(^|\s)/\w", line)
    ]
    assert strange == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_hash(lock: str) -> None:
    previous = ""
    for line in [*lines(lock), ""]:
        if PIN.match(previous):
            assert HASH.match(line), previous
        previous = line


@pytest.mark.parametrize("lock", LOCKS)
def test_torch_and_its_cuda_libraries_stay_out(lock: str) -> None:
    assert [name for name in pins(lock) if name == "torch" or name.startswith(("nvidia-", "cuda-", "triton"))] == []


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("base", ()),
        ("image", ("train",)),
        ("main", ("airflow", "train", "data", "kubernetes", "serve", "edge", "notebooks")),
    ],
)
def test_every_declared_dependency_is_locked_at_a_version_it_allows(lock: str, extras: tuple[str, ...]) -> None:
    locked = pins(lock)
    for requirement in declared(*extras):
        versions = locked.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement} is not in requirements/{lock}.txt: make lock"
        assert all(requirement.specifier.contains(version, prereleases=True) for version in versions), requirement


@pytest.mark.parametrize("lock", ["base", "image"])
def test_nodes_and_notebooks_get_the_versions_that_main_is_tested_with(lock: str) -> None:
    main = pins("main")
    assert {name: versions for name, versions in pins(lock).items() if main.get(name) != versions} == {}


def test_every_extra_is_part_of_the_main_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = pins("main")
    for extra in project["optional-dependencies"]:
        assert all(canonicalize_name(r.name) in locked for r in declared(extra)), extra
