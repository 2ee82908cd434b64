"""The compute profile on paper: what host, flavors and settings say of each other, and settings without a gap."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from mlops_sdk.capacity.accelerators import card_named
from mlops_sdk.capacity.device_profiles import DeviceProfile, profile_of
from mlops_sdk.capacity.flavors import Flavor as NovaFlavor
from mlops_sdk.capacity.flavors import check_flavor
from mlops_sdk.config import NovaSettings
from mlops_sdk.local import secrets
from mlops_sdk.local.addresses import choose_or_load
from mlops_sdk.local.flavors import (
    CARD_TRAIT,
    CYBORG_TRAIT,
    EXPECTED,
    FLAVORS,
    METAL_FLAVOR,
    METAL_RESOURCE,
    MIG_CLASS,
    NETWORK,
    PROFILES,
)
from mlops_sdk.local.inventory import METAL_CLASS, metal_inventory, reference_inventory
from mlops_sdk.local.layout import Layout, Tools
from mlops_sdk.local.service import Service, in_start_order, with_needs
from mlops_sdk.local.services.compute import compute_services
from mlops_sdk.local.services.ironic import ironic_service
from mlops_sdk.local.services.keystone import keystone_service
from mlops_sdk.local.services.machines import MachineNetwork, machine_services
from mlops_sdk.local.site import Site

ROOT = Path(__file__).resolve().parents[3]
PARTS = {
    "placement": ("placement.conf",),
    "glance": ("glance-api.conf",),
    "neutron": ("neutron.conf",),
    "nova-tables": ("nova.conf", "nova-compute.conf"),
    "cinder-tables": ("cinder.conf",),
    "cyborg-tables": ("cyborg.conf",),
}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A place whose tables are all made, so that preparing a service writes its settings and starts nothing."""
    layout = Layout.at(tmp_path)
    layout.create()
    for part in ("placement", "glance", "neutron", "nova", "cinder", "cyborg"):
        layout.data(part).mkdir()
        (layout.data(part) / ".prepared").touch()
    tools = Tools(
        home=ROOT,
        openstack_python=Path("/env/bin/python"),
        node_image=Path("/image"),
        vllm_image=Path("/vllm"),
        compute_python=Path("/env/bin/python"),
    )
    chosen = choose_or_load(layout)
    return Site(
        layout=layout, tools=tools, addresses=chosen, secrets=secrets.choose_or_load(layout), node_host=chosen.gateway
    )


@pytest.fixture
def services(site: Site) -> dict[str, Service]:
    network = MachineNetwork(site=site)
    every = (
        keystone_service(site),
        ironic_service(site, needs=(), faults=False),
        *machine_services(site, network, faults=False, metal=True),
        *(Service(name=name) for name in ("settings",)),
        *compute_services(site, network, faults=False),
    )
    return {service.name: service for service in in_start_order(every)}


@pytest.fixture
def hardware() -> Any:
    """What the host reports: a module of the services' environment that needs nothing of it."""
    path = ROOT / "infra/local/compute_drivers/compute_drivers/hardware.py"
    spec = importlib.util.spec_from_file_location("hardware", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(path: Path) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, strict=True)
    parsed.read_string(path.read_text())
    return parsed


@pytest.mark.parametrize(("name", "files"), PARTS.items())
def test_settings_are_whole_private_and_enforce_access_rules(
    site: Site, services: dict[str, Service], name: str, files: tuple[str, ...]
) -> None:
    services[name].prepare()
    for file in files:
        path = site.layout.data(name.removesuffix("-tables")) / file
        assert "$" not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        token = settings(path)["keystone_authtoken"]
        assert token["service_type"] in {"placement", "image", "network", "compute", "block-storage", "accelerator"}
        assert (token["delay_auth_decision"], token["token_cache_time"]) == ("false", "-1")


def test_the_host_knows_no_database(site: Site, services: dict[str, Service]) -> None:
    services["nova-tables"].prepare()
    root = site.layout.data("nova")
    assert {"api_database", "database"} <= set(settings(root / "nova.conf").sections())
    assert {"api_database", "database"}.isdisjoint(settings(root / "nova-compute.conf").sections())


def test_no_command_carries_a_secret(site: Site, services: dict[str, Service]) -> None:
    hidden = {site.secrets.keystone_compute, site.secrets.rabbitmq}
    commands = [service.command() for service in services.values() if service.command is not None]
    assert len(commands) >= 12
    assert [command.argv for command in commands if any(secret in " ".join(command.argv) for secret in hidden)] == []


def test_what_is_offered_needs_every_service_of_the_profile(services: dict[str, Service]) -> None:
    every = {service.name for service in with_needs(tuple(services.values()), ("metal", "settings", "nodes", "reaper"))}
    assert every == set(services)
    without_metal = {service.name for service in with_needs(tuple(services.values()), ("compute",))}
    assert every - without_metal == {
        *("metal", "nova-metal", "metal-nodes"),
        *("ironic", "farm", "nodes", "reaper", "settings"),
    }


def test_machines_of_ironic_are_offered_by_a_host_of_their_own_shard(site: Site, services: dict[str, Service]) -> None:
    services["nova-metal"].prepare()
    own = site.layout.data("nova-metal")
    assert services["nova-metal"].command is not None
    files = [Path(part) for part in services["nova-metal"].command().argv if part.endswith(".conf")]
    assert files == [site.layout.data("nova") / "nova-compute.conf", own / "nova-compute.conf"]
    metal = settings(files[1])
    assert metal["DEFAULT"]["compute_driver"] == "ironic.IronicDriver"
    assert metal["ironic"]["shard"] == metal_inventory("10.77.3.0/24").shard
    assert reference_inventory("10.77.3.0/24").shard == ""
    assert stat.S_IMODE((own / "mkisofs").stat().st_mode) == 0o700
    assert metal["DEFAULT"]["mkisofs_cmd"] == str(own / "mkisofs")
    assert f"CUSTOM_{re.sub('[^A-Z0-9]', '_', METAL_CLASS.upper())}" == METAL_RESOURCE


def test_flavors_ask_for_what_the_host_has(hardware: Any) -> None:
    assert (CARD_TRAIT, MIG_CLASS) == (hardware.CARD_TRAIT, hardware.MIG_CLASS)
    card = card_named(f"{hardware.VENDOR}:{hardware.PRODUCT}")
    assert card_named(CARD_TRAIT) == card
    parts = [inventory for part in hardware.divided_cards("host").values() for inventory in part.items()]
    assert max(part["total"] for name, part in parts if name == MIG_CLASS) == 7
    for flavor in (flavor for flavor in FLAVORS if flavor.name != METAL_FLAVOR):
        asked = {key.removeprefix("resources:") for key in flavor.extra_specs if key.startswith("resources:")}
        assert asked <= {name for name, _ in parts}
        assert flavor.vcpus <= hardware.CORES - hardware.SHARED
        assert flavor.memory_mib <= hardware.MEMORY_MIB


def test_cyborgs_profiles_ask_for_the_cards_that_its_driver_finds(hardware: Any) -> None:
    assert card_named(f"{hardware.VENDOR}:{hardware.WHOLE_PRODUCT}") == card_named(hardware.WHOLE_TRAIT)
    assert hardware.WHOLE_TRAIT == CYBORG_TRAIT
    wanted = {"resources:" + hardware.WHOLE_CLASS: "1", "trait:" + hardware.WHOLE_TRAIT: "required"}
    assert [dict(group) for groups in PROFILES.values() for group in groups] == [wanted]
    named = {f.extra_specs["accel:device_profile"] for f in FLAVORS if "accel:device_profile" in f.extra_specs}
    assert named == set(PROFILES)
    cards = hardware.whole_cards("host")
    assert len(cards) == 2
    assert cards.keys().isdisjoint(hardware.divided_cards("host"))


def test_novas_alias_names_the_devices_that_the_host_reports(
    site: Site, services: dict[str, Service], hardware: Any
) -> None:
    services["nova-tables"].prepare()
    pci = settings(site.layout.data("nova") / "nova.conf")["pci"]
    alias, spec = json.loads(pci["alias"]), json.loads(pci["device_spec"])
    assert {d["vendor_id"] for d in hardware.pci_devices()} == {alias["vendor_id"]} == {spec["vendor_id"]}
    assert {d["product_id"] for d in hardware.pci_devices()} == {alias["product_id"]} == {spec["product_id"]}
    assert alias["resource_class"] == spec["resource_class"] == hardware.PASSTHROUGH_CLASS
    assert [d["numa_node"] for d in hardware.pci_devices()] == [0, 0, 1, 1]
    (passthrough,) = [f for f in FLAVORS if "pci_passthrough:alias" in f.extra_specs]
    assert passthrough.extra_specs["pci_passthrough:alias"] == f"{alias['name']}:1"


def test_what_the_settings_expect_of_the_flavors_is_what_they_give():
    nova = NovaSettings.model_validate({"networks": [NETWORK], "image": "i", "flavors": EXPECTED})
    assert set(nova.flavors) == {flavor.name for flavor in FLAVORS}
    profiles = {name: DeviceProfile(name=name, groups=groups) for name, groups in PROFILES.items()}
    for made in FLAVORS:
        shown = NovaFlavor(
            id="1",
            name=made.name,
            vcpus=made.vcpus,
            ram_mb=made.memory_mib,
            disk_gb=made.disk_gib,
            specs=made.extra_specs,
            profile=profile_of(made.extra_specs, profiles),
        )
        check_flavor(shown, expected=nova.flavors[made.name].expected)
