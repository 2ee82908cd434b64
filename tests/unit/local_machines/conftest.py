"""The programs under infra/ are run by path, never imported by the product; tests load them from their files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

INFRA = Path(__file__).parents[3] / "infra" / "local"


def load(path: str) -> ModuleType:
    """A module of infra/local, by its path."""
    name = f"infra_local_{path.replace('/', '_').removesuffix('.py')}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, INFRA / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def bmc() -> ModuleType:
    """Redfish resources of the farm."""
    return load("farm/bmc.py")


@pytest.fixture
def farm_fabric() -> ModuleType:
    """The farm's side of the network."""
    return load("farm/fabric.py")


@pytest.fixture
def slot_module() -> ModuleType:
    """The deploy interface's side of a machine's slot."""
    return load("ironic_machine/ironic_machine/slot.py")
