"""The import contracts keep up with the code: a module that calls itself pure is held to it."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def pure_by_contract() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    return {module for c in contracts if c["name"].startswith("Decisions") for module in c["source_modules"]}


def pure_by_their_own_words() -> set[str]:
    found = set()
    for source, package in ((ROOT, "mlops_sdk"), (ROOT / "pipelines", "mlops_pipelines")):
        for path in (source / package).rglob("*.py"):
            words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            if re.search(r"(^|[.\n] ?)Pure\b", words):
                found.add(".".join(path.relative_to(source).with_suffix("").parts))
    return found


def test_every_module_that_calls_itself_pure_is_under_a_contract() -> None:
    claimed = pure_by_their_own_words()
    assert "mlops_sdk.capacity.lease" in claimed
    assert claimed - pure_by_contract() == set()
